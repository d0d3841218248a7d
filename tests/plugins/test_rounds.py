"""Stages that build on policies: rejection sampling and its distillation, evaluation, and rounds of RLHF."""

import numpy as np
import pytest
import tiny_world
from micro_spec import lab
from tiny_world import TinyData, encoder, plain_logprobs, tokens_of

import rlhf_lab
from rlhf_lab.best_of_n import accepted
from rlhf_lab.contracts import Demonstration
from rlhf_lab.errors import DataError, NumericsError
from rlhf_lab.lm import sampling
from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab.streams import stream
from rlhf_lab_plugins.stage.rejection_sampling import read_demonstrations

WORLD = TinyData().open(None)
SAMPLING = {"reward": "words", "prompts": 20, "validation_prompts": 4, "samples": 2, "response_length": 5}
RL = {"reward": "words", "gold": "words", "steps": 1, "batch_size": 4, "response_length": 5, "evaluation": {"prompts": 6}}


@pytest.fixture
def another(tmp_path):
    """What a stage that trains a policy leaves: the model is in `policy`."""
    tiny_world.save_policy(tmp_path / "another" / "policy", seed=5)
    return tmp_path / "another"


def score(text):
    return text.split().count("w1") - text.split().count("w2")


def groups(world):
    """(prompt, responses, which of them ended) as the documented streams have them."""
    prompts = WORLD.prompts("train")
    order = [stream(0, "rejection_sampling.train", i // 12).permutation(12)[i % 12] for i in range(20)]
    asked = [prompts[i] for i in order]
    sampled = sampling.rollout(
        load_causal_lm(world / "sft"), encoder(), asked, stream(0, "rejection_sampling", 0, 0), samples=2, response_length=5,
        temperature=1.0,
    )  # fmt: skip
    for i, prompt in enumerate(asked):
        rows = slice(2 * i, 2 * i + 2)
        yield prompt, sampled.responses[rows], sampled.ended_B[rows].tolist()


# Rejection sampling


def test_the_best_of_n_that_ended_is_kept(run_stage, world):
    done = run_stage("rejection_sampling", SAMPLING)
    expected = []
    for prompt, responses, ended in groups(world):
        candidates = [text for text, whole in zip(responses, ended, strict=True) if whole]
        if candidates:
            expected.append(Demonstration(prompt, max(candidates, key=score)))
    assert read_demonstrations(done.folder, "train") == expected and 5 < len(expected) < 20
    row, held_out = done.rows()
    assert (row["demonstrations"], row["split"], held_out["split"]) == (len(expected), "train", "validation")
    assert row["reward_proxy"] == pytest.approx(np.mean([score(d.completion) for d in expected]))
    assert row["acceptance"] == pytest.approx(len(expected) / 40)


def test_what_is_accepted_follows_the_optimum():
    """A law of four responses: among 200,000 samples of π the kept ones are π e^{r/β} / Z, within 5 standard errors."""
    p, reward, beta = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 1.0, 2.0, -1.0]), 0.8
    rng = np.random.default_rng(0)
    drawn = rng.choice(4, 200_000, p=p)
    kept = drawn[accepted(reward[drawn], beta, rng.random(200_000))]
    expected = p * np.exp(reward / beta) / np.sum(p * np.exp(reward / beta))
    shares = np.bincount(kept, minlength=4) / len(kept)
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / len(kept))).all()
    assert len(kept) / 200_000 == pytest.approx(np.sum(p * np.exp((reward - 2) / beta)), abs=0.005)


def test_boltzmann_keeps_the_best_and_by_chance_others(run_stage, world):
    done = run_stage("rejection_sampling", {**SAMPLING, "keep": "boltzmann", "beta": 1.0})
    kept = read_demonstrations(done.folder, "train")
    for prompt, responses, ended in groups(world):
        whole = [text for text, there in zip(responses, ended, strict=True) if there]
        if whole:
            assert max(whole, key=score) in {d.completion for d in kept if d.prompt == prompt}
    assert len(kept) > len(read_demonstrations(run_stage("rejection_sampling", SAMPLING).folder, "train"))


def test_where_nothing_ends_there_is_nothing_to_show(run_stage):
    cold = {"response_length": 1, "temperature": 0.01, "prompts": 2}
    with pytest.raises(DataError, match="no response ends within response_length: 1 tokens"):
        run_stage("rejection_sampling", {**SAMPLING, **cold})


def test_best_of_n_is_distilled(run_stage, world):
    """SFT on what was kept, from the model that wrote it, says the rewarded word more often."""
    kept = run_stage("rejection_sampling", {**SAMPLING, "prompts": 60, "samples": 12})
    again = {"init": "start", "demonstrations": "kept", "epochs": 12, "learning_rate": 0.02, "sample_length": 4}
    distilled = run_stage("sft", again, inputs={"kept": kept.folder, "start": world / "sft"})
    measured = {"gold": "words", "response_length": 5, "evaluation": {"prompts": 12, "samples": 8}}
    policy = {"name": "causal_lm", "init": "distilled", "reference": "sft"}
    before, after = (
        run_stage("evaluate", {**measured, "policy": policy}, inputs={"distilled": folder}).rows()[0]
        for folder in (world / "sft", distilled.folder)
    )
    assert after["reward_gold"] > before["reward_gold"] + 0.2 and after["kl"] > 0.1
    assert after["split"] == "validation" and before["kl"] == pytest.approx(0, abs=1e-5)


# Evaluation, and policies that start elsewhere than their reference


def test_an_evaluation_is_the_first_row_of_rl(run_stage):
    """The same policy, prompts and noise: the same row, but for what only RL has."""
    (row,) = run_stage("evaluate", {key: RL[key] for key in ("reward", "gold", "response_length", "evaluation")}).rows()
    first = run_stage("rl", RL).rows("validation")[0]
    theirs = {name: value for name, value in first.items() if name not in ("stage", "beta")}
    assert {name: row[name] for name in theirs} == theirs and row["beta"] is None


def test_a_policy_may_start_where_another_stage_ended(run_stage, world, another):
    """KL at step 0 is the mean log-ratio of its samples, by plain forwards of both models."""
    policy = {"name": "causal_lm", "init": "another", "reference": "sft"}
    done = run_stage("rl", {**RL, "policy": policy}, inputs={"another": another})
    models = load_causal_lm(another), load_causal_lm(world / "sft")
    sampled = sampling.rollout(
        models[0], encoder(), WORLD.prompts("validation")[:6], stream(0, "evaluation"), response_length=5, temperature=1.0
    )
    found = [[plain_logprobs(model, *ids) for model in models] for ids in tokens_of(sampled)]
    row = done.rows("validation")[0]
    assert row["kl"] == pytest.approx(np.mean([sum(p) - sum(q) for p, q in found]), abs=1e-4) and row["kl"] > 1
    with pytest.raises(NumericsError, match="policy and reference must agree"):
        run_stage("rl", {**RL, "policy": {"name": "off_reference", "shift": 0.5}})


def test_an_adapter_may_have_another_reference_too(run_stage, another):
    policy = {"name": "causal_lm", "init": "another", "reference": "sft"}
    full, lora = (
        run_stage("rl", {**RL, "policy": policy | how}, inputs={"another": another}).rows("validation")[0]["kl"]
        for how in ({}, {"adaptation": "lora", "lora_rank": 2})
    )
    assert full == pytest.approx(lora, abs=1e-4) and full > 1


# Rounds

SPEC = """\
experiment: rounds
base:
  data: {name: micro, sentences: 64, pretraining_sentences: 8}
  model: {name: scratch, hidden_size: 8, layers: 1, heads: 1}
  sft: {batch_size: 32, log_samples: 0, sample_length: 4}
  comparisons: &asked {name: comparisons, labeler: grammar_gold, prompts: 12, validation_prompts: 4, response_length: 6}
  reward_model: &proxy {name: reward_model, batch_size: 8, normalize_examples: 8, sample_length: 6}
  reward_model.comparisons: comparisons
  rl: &round {name: rl, gold: grammar_gold, steps: 1, batch_size: 4, response_length: 6, evaluation: {prompts: 4}}
  rl.reward: reward_model
arms:
  one: {}
  two:
    comparisons_2: *asked
    comparisons_2.policy: rl
    reward_model_2: *proxy
    reward_model_2.comparisons: [comparisons, comparisons_2]
    rl_2: *round
    rl_2.policy: {name: causal_lm, init: rl, reference: sft}
    rl_2.reward: {name: reward_model, stage: reward_model_2}
seeds: [0]
resources: {workers: 1, threads: 1}
"""


def test_rounds_are_stages_that_name_each_other(tmp_path):
    """Two rounds: the first is the same cached stages as in the arm that has only one, the second starts from its policy."""
    path = tmp_path / "rounds.yaml"
    path.write_text(SPEC)
    result = lab("run", path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    folders = [folder.parent for folder in (tmp_path / "out" / "rounds" / "stages").glob("*/COMMIT")]
    assert len(folders) == 7  # sft, and comparisons, reward model and RL twice
    frame = rlhf_lab.load(tmp_path / "out" / "rounds")
    rows = frame[(frame["arm"] == "two") & (frame["split"] == "validation")].set_index("stage")
    assert rows.loc["rl_2", "kl"].iloc[0] == pytest.approx(rows.loc["rl", "kl"].iloc[-1], abs=1e-5)
    asked = frame[(frame["arm"] == "two") & (frame["split"] == "train")].set_index("stage")["rankings"]
    assert asked.loc["reward_model_2"].sum() == asked.loc["comparisons"] + asked.loc["comparisons_2"]
