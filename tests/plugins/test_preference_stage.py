"""The preference stage: its numbers by plain forwards, what is refused, what is learned, and its resume byte for byte."""

import json
import math

import numpy as np
import pytest
import tiny_world
import torch
from enumerated_world import DATA, known
from safetensors.torch import load_file
from tiny_world import EOS, TinyData, ids_of, plain_logprobs, registry

from rlhf_lab.contracts import Ranking
from rlhf_lab.declaration.overrides import expand_dotted, merge
from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.errors import DataError, Interrupted
from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab.proof import exact
from rlhf_lab.store.checkpoint import keep_only_resumable, remove_checkpoints
from rlhf_lab.streams import stream
from rlhf_lab_plugins.model.tabular import load_table
from rlhf_lab_plugins.stage.comparisons import write_rankings

WORLD = TinyData().open(None)
SMALL = {"response_length": 4, "evaluation": {"prompts": 4, "log_samples": 2, "every": 100}, "validation_examples": 6}
LOSSES = {
    "dpo": {}, "ipo": {}, "ipo_per_token": {"name": "ipo", "per_token": True}, "cdpo": {}, "kto": {}, "simpo": {}, "orpo": {},
    "hinge": {}, "slic": {},
}  # fmt: skip


def settings(name, **more):
    return {**SMALL, "loss": {"name": name, **LOSSES.get(name, {})}, **more}


def pairs(split="train"):
    """(prompt, chosen, rejected) of the tiny world's rankings, worked out apart."""
    return [
        (r.prompt, r.completions[w], r.completions[n])
        for r in WORLD.rankings(split)
        for w in range(3)
        for n in range(3)
        if r.ratings[w] > r.ratings[n]
    ]


def log_prob(model, prompt, response):
    """Σ log π over the response tokens and the EOS, by a plain forward of one unpadded sequence."""
    return sum(plain_logprobs(model, ids_of(prompt), [*ids_of(response), EOS]))


@pytest.fixture
def another(tmp_path):
    """The folder of another policy than `sft`."""
    tiny_world.save_policy(tmp_path / "another", seed=5)
    return tmp_path / "another"


def mean_log_probs(model, found):
    return [np.mean([log_prob(model, prompt, responses[k]) for prompt, *responses in found]) for k in (0, 1)]


# Numbers


def test_the_first_step_is_at_the_reference(run_stage, world):
    """All pairs in one batch: loss log 2, log-ratios 0, and the mean log-probs of plain forwards."""
    rows = run_stage("preference", settings("dpo", batch_size=100)).rows()
    (row,) = [row for row in rows if row["split"] == "train"]
    chosen, rejected = mean_log_probs(load_causal_lm(world / "sft"), pairs())
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (row["logprob_chosen"], row["logprob_rejected"]) == pytest.approx((chosen, rejected), abs=1e-4)
    assert (row["log_ratio_chosen"], row["log_ratio_rejected"]) == pytest.approx((0, 0), abs=1e-5)
    assert [row["step"] for row in rows if row["split"] == "validation"] == [0, 1]


def test_loss_and_accuracy_on_held_out_pairs(run_stage, world):
    """After training, from the saved policy and the one it started from."""
    done = run_stage("preference", settings("dpo", batch_size=8, learning_rate=0.01, epochs=2, validation_examples=100))
    policy, reference = load_causal_lm(done.folder / "policy"), load_causal_lm(world / "sft")
    margins = [
        sum(s * (log_prob(policy, x, y) - log_prob(reference, x, y)) for s, y in ((1, chosen), (-1, rejected)))
        for x, chosen, rejected in pairs("validation")
    ]
    row = done.rows("validation")[-1]
    assert row["loss"] == pytest.approx(np.mean([math.log1p(math.exp(-0.1 * m)) for m in margins]), abs=1e-5)
    assert row["accuracy"] == pytest.approx(np.mean([m > 0 for m in margins])) and row["beta"] == 0.1
    assert max(abs(m) for m in margins) > 1


def test_the_reference_is_measured_once_and_only_for_losses_that_need_it(run_stage, world):
    """The file holds plain forwards of the reference; without a need there is none, and the KL is measured all the same."""
    done = run_stage("preference", settings("dpo", batch_size=5, learning_rate=0.01, epochs=2))
    kept_EK = load_file(done.folder / "reference.train.safetensors")["logprobs_EK"]
    model = load_causal_lm(world / "sft")
    expected = [[log_prob(model, x, chosen), log_prob(model, x, rejected)] for x, chosen, rejected in pairs()]
    assert kept_EK.tolist() == [pytest.approx(row, abs=1e-4) for row in expected]
    for loss in ("simpo", "orpo", "slic"):
        free = run_stage("preference", settings(loss, batch_size=5, learning_rate=0.01))
        assert not list(free.folder.glob("reference.*")) and "log_ratio_chosen" not in free.rows("train")[0]
        assert free.rows("validation")[-1]["kl"] > 0


def test_the_baseline_of_kto_is_the_mean_log_ratio_of_mismatched_responses(open_stage, world, another):
    """Each response of the batch to the prompt before which it stands; the reference is another model, so that it is not 0."""
    cfg, ctx = open_stage("preference", settings("kto", policy={"name": "causal_lm", "init": "another", "reference": "sft"}),
                          inputs={"another": another})  # fmt: skip
    policy, examples = cfg.policy.build(ctx), cfg.judged(ctx, "train")[:5]
    preferred_BK = torch.tensor([[True], [False], [True], [False], [True]])
    models = [load_causal_lm(folder) for folder in (another, world / "sft")]
    mismatched = [(examples[i].prompt, examples[i - 1].completions[0]) for i in range(5)]
    expected = np.mean([log_prob(models[0], *pair) - log_prob(models[1], *pair) for pair in mismatched])
    assert cfg.baseline(ctx, policy, examples, preferred_BK).item() == pytest.approx(max(0.0, expected), abs=1e-4)
    assert expected > 1 or expected < -1


@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo"])
def test_micro_batches_change_memory_not_numbers(run_stage, loss):
    # a small rate: five steps of a large one make of rounding what the tolerance could not tell from a wrong weight
    stable = settings(loss, batch_size=6, adam_eps=1e-3, learning_rate=0.003)
    plain, *others = [run_stage("preference", {**stable, "microbatch_size": size}) for size in (None, 1, 4)]
    for other in others:
        for mine, theirs in zip(other.rows("train"), plain.rows("train"), strict=True):
            numbers = [{k: v for k, v in row.items() if not isinstance(v, str)} for row in (mine, theirs)]
            assert numbers[0] == pytest.approx(numbers[1], rel=2e-5, abs=2e-5)


def test_responses_that_were_cut_off_are_scored_without_an_eos(open_stage, tmp_path, world):
    folder = tmp_path / "cut"
    folder.mkdir()
    write_rankings(folder / "rankings.train.jsonl", [Ranking("w0", ("w1 w2", "w3"), (1.0, 0.0), (False, True))])
    cfg, ctx = open_stage("preference", settings("dpo", comparisons="comparisons"), inputs={"comparisons": folder})
    policy, examples = cfg.policy.build(ctx), cfg.judged(ctx, "train")
    kept = cfg.reference(ctx, policy, examples, "train")[0].tolist()
    model = load_causal_lm(world / "sft")
    expected = [sum(plain_logprobs(model, ids_of("w0"), ids_of("w1 w2"))), log_prob(model, "w0", "w3")]
    assert kept == pytest.approx(expected, abs=1e-4)


def test_several_stages_of_comparisons_are_put_together(open_stage, tmp_path):
    folders = {name: tmp_path / name for name in ("first", "second")}
    for number, folder in enumerate(folders.values()):
        folder.mkdir()
        write_rankings(folder / "rankings.train.jsonl", [Ranking(f"w{number}", ("w1", "w2"), (1.0, 0.0), (True, True))])
    for stage in ("preference", "reward_model"):
        cfg, ctx = open_stage(stage, {"comparisons": ["first", "second"]}, inputs=folders)
        found = cfg.judged(ctx, "train") if stage == "preference" else cfg.rankings(ctx, "train")
        assert [ranking.prompt for ranking in found] == ["w0", "w1"]


# What is learned


@pytest.mark.parametrize("loss", LOSSES)
def test_each_variant_learns_what_is_preferred(run_stage, loss):
    """Ratings count `w1`: after 25 steps on all pairs the policy says it more often, and is surer of the chosen responses."""
    done = run_stage(
        "preference",
        settings(loss, gold="words", batch_size=100, epochs=25, learning_rate=0.02, evaluation={"prompts": 12, "samples": 8,
                 "every": 100}),
    )  # fmt: skip
    rows, train = done.rows("validation"), done.rows("train")
    assert rows[-1]["gold_good"] > rows[0]["gold_good"] + 0.2
    assert train[-1]["accuracy"] > 0.85 and train[-1]["loss"] < train[0]["loss"]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4) and rows[-1]["kl"] > 0.5 and rows[-1]["win_rate"] > 0.5
    assert all(row["reward_proxy"] is None for row in rows)
    assert len(done.samples()) == 2 * 8


def test_a_low_rank_adapter_is_trained_and_merged(run_stage, world):
    lora = {"name": "causal_lm", "adaptation": "lora", "lora_rank": 4}
    done = run_stage("preference", settings("dpo", policy=lora, batch_size=8, learning_rate=0.01, epochs=2))
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "sft", done.folder / "policy"))
    assert before.keys() == after.keys() and not all(torch.equal(before[name], after[name]) for name in before)
    assert done.rows("train")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def bradley_terry(exactly, n, rng):
    """n comparisons for each prompt: two draws from the reference, the first preferred with probability σ(r_1 − r_2)."""
    for x, rollout in enumerate(exactly.everything):
        p_N = exactly.ref_XN[x].exp().numpy()
        drawn = rng.choice(len(p_N), (n, 2), p=p_N / p_N.sum())
        gaps = np.diff(exactly.rewards_XN[x].numpy()[drawn[:, ::-1]])[:, 0]
        for (i, j), won in zip(drawn, rng.random(n) < 1 / (1 + np.exp(-gaps)), strict=True):
            texts, ended = (tuple(column[k] for k in (i, j)) for column in (rollout.responses, rollout.ended_B.tolist()))
            yield Ranking(rollout.prompts[0], texts, (float(won), float(not won)), ended)


def test_dpo_comes_to_the_optimum_of_rlhf(run_stage, tmp_path):
    """The stage with a tabular policy, on 4,000 comparisons that follow Bradley and Terry: from .62 nats away to the noise of
    the labels. The reward is that of the enumerable world, so this optimum is the one that PPO is held against."""
    data = {**DATA, "words": 2, "length": 2}
    exactly, beta = known(data=data), 0.5
    write_rankings(tmp_path / "rankings.train.jsonl", list(bradley_terry(exactly, 2000, np.random.default_rng(0))))
    write_rankings(tmp_path / "rankings.validation.jsonl", [])
    parameters = {"policy": "tabular", "loss": {"name": "dpo", "beta": beta}, "comparisons": "comparisons", "epochs": 6,
                  "batch_size": 500, "learning_rate": 0.2, "floor": 0.0, "max_grad_norm": None, "response_length": 2,
                  "evaluation": {"every": 1000, "prompts": 2, "log_samples": 0}}  # fmt: skip
    done = run_stage("preference", parameters, data=data, model="tabular", inputs={"comparisons": tmp_path})
    law_XN = exactly.law(load_table(done.folder / "policy"))
    best_XN = exact.optimum(exactly.ref_XN, exactly.rewards_XN, beta)
    before, after = exact.kl(exactly.ref_XN, best_XN).mean().item(), exact.kl(law_XN, best_XN).mean().item()
    assert before > 0.6 and after < 0.03, (before, after)
    assert exactly.gap(law_XN) >= -1e-9


# Presets

SPEC = """
experiment: one_word
base:
  data: micro
  model: scratch
  sft: {}
  comparisons: {labeler: grammar_gold}
  reward_model: {comparisons: comparisons}
  rl: {kl: {name: fixed, beta: 0.2}, gold: grammar_gold}
arms:
  ppo: {}
"""
DIRECT = [r.component for r in registry().registrations() if r.kind == "preset" and "rl.name" in r.component.values]


def test_an_arm_in_one_word(tmp_path):
    """Beside PPO: the stage of another kind replaces it as a whole, under the name that the figures look for."""
    arms = [f"  {p.name}: {{preset: {p.name}, rl: {{comparisons: comparisons}}}}\n" for p in DIRECT]
    (tmp_path / "spec.yaml").write_text(SPEC + "".join(arms))
    found = {point.arm: point.config.stages["rl"] for point in load_sweep(tmp_path / "spec.yaml", [], registry()).points}
    assert found.pop("ppo").name == "rl" and set(found) == {"dpo", "ipo", "kto", "simpo", "orpo"}
    for arm, stage in found.items():
        assert (stage.name, stage.loss.name, stage.comparisons) == ("preference", arm, "comparisons")


@pytest.mark.parametrize("preset", DIRECT, ids=lambda preset: preset.name)
def test_each_preset_trains(preset, run_stage):
    values = expand_dotted({path: value for path, (value, _) in preset.values.items()})["rl"]
    rows = run_stage("preference", merge(values, {**SMALL, "batch_size": 16, "warmup_steps": 0})).rows("train")
    assert len(rows) >= 2 and rows[-1]["logprob_chosen"] != rows[0]["logprob_chosen"]


# What is refused


@pytest.mark.parametrize(
    "rankings, message",
    [
        ([], "stage preference: there are no comparisons to learn from"),
        ([Ranking("w0", ("w1", "w2"), (1.0, 1.0), (True, True))] * 3, "all 3 rankings tie"),
    ],
)
def test_nothing_to_learn_from_is_said(run_stage, tmp_path, rankings, message):
    write_rankings(tmp_path / "rankings.train.jsonl", rankings)
    with pytest.raises(DataError, match=message):
        run_stage("preference", settings("dpo", comparisons="comparisons"), inputs={"comparisons": tmp_path})


def test_a_batch_of_one_kind_is_said_before_the_first_step(run_stage, tmp_path):
    """Three pairs are six responses; in batches of five the last one stands alone."""
    ranked = [Ranking("w0", ("w1", "w2"), (1.0, 0.0), (True, True))] * 3
    for split in ("train", "validation"):
        write_rankings(tmp_path / f"rankings.{split}.jsonl", ranked)
    inputs = {"comparisons": tmp_path}
    with pytest.raises(DataError, match=r"kto learns from desirable and undesirable .* batch of 1 all are"):
        run_stage("preference", settings("kto", comparisons="comparisons", batch_size=5), inputs=inputs)
    with pytest.raises(DataError, match="batch of 6 all are desirable"):
        run_stage("preference", settings("kto", comparisons="comparisons", loss={"name": "kto", "desirable_above": -1}),
                  inputs=inputs)  # fmt: skip
    with pytest.raises(ValueError, match="kto pairs each prompt with a neighbour's response; set batch_size: 2 or more"):
        run_stage("preference", settings("kto", batch_size=1))


# Going on


def run(parameters, folder, world, stop):
    folder.mkdir(exist_ok=True)
    ctx = tiny_world.context("preference", parameters, folder, world)
    ctx.stop_requested = stop
    keep_only_resumable(folder)
    ctx.config.stages["preference"].run(ctx)
    remove_checkpoints(folder)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


SCALED = {"name": "weighted_sum", "sources": ["words", {"name": "scaled", "source": "length"}], "weights": [1.0, 0.3]}


@pytest.mark.parametrize("loss, more", [("dpo", {"reward": SCALED, "gold": "words"}), ("kto", {"warmup_steps": 2})])
def test_stopped_after_every_step_it_leaves_the_same_bytes(loss, more, world, tmp_path):
    parameters = settings(loss, batch_size=9, epochs=2, learning_rate=0.01, **more)
    parameters["evaluation"] = {"prompts": 4, "every": 2, "log_samples": 2}
    run(parameters, tmp_path / "undisturbed", world, lambda: False)
    stops = 0
    while stops < 30:
        try:
            run(parameters, tmp_path / "resumed", world, lambda: True)
            break
        except Interrupted:
            stops += 1
    last = json.loads((tmp_path / "undisturbed" / "steps.jsonl").read_text().splitlines()[-1])
    assert stops == last["step"] - 1 > 3
    assert contents(tmp_path / "resumed") == contents(tmp_path / "undisturbed")


def test_the_order_of_examples_is_that_of_the_documented_stream(run_stage, world):
    """The first batch of 4 by its mean log-prob: pairs in the order of stream `examples`, epoch 0, of the run's seed."""
    row = run_stage("preference", settings("dpo", batch_size=4), seed=3).rows("train")[0]
    found = pairs()
    index = stream(3, "examples", 0).permutation(len(found))[:4]
    chosen, _ = mean_log_probs(load_causal_lm(world / "sft"), [found[i] for i in index])
    assert row["logprob_chosen"] == pytest.approx(chosen, abs=1e-4)
