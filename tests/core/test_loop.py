"""The RL stage on a tiny model: seams, conventions, determinism, and exact optima that it must reach and never beat."""

import binascii
import dataclasses
import math

import numpy as np
import pytest
import tiny_world
import torch
from tiny_world import EOS, VOCABULARY, ids_of, next_laws, tokens_of

from rlhf_lab.contracts import Component
from rlhf_lab.errors import NumericsError, RewardError
from rlhf_lab.lm import sampling
from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab.rl.actors import new_optimizer, open_actors
from rlhf_lab.rl.loop import assert_on_policy
from rlhf_lab.rl.parameters import Evaluation
from rlhf_lab.rl.update import Batch, optimizer_step, update
from rlhf_lab.streams import stream
from rlhf_lab_plugins.stage.rl import RL

ALL_TERMS = ["ppo_clip", "value_clip", {"name": "entropy", "weight": 0.3}, {"name": "pretrain_mix", "weight": 0.7, "ratio": 2}]
SMALL = {
    "reward": "words",
    "gold": "words",
    "steps": 2,
    "batch_size": 8,
    "samples_per_prompt": 2,
    "minibatches": 2,
    "inner_epochs": 2,
    "response_length": 4,
    "learning_rate": 0.01,
    "objective": ALL_TERMS,
    "kl": {"name": "adaptive", "beta": 0.1, "target": 0.05},
    "evaluation": {"every": 1, "prompts": 3, "samples": 2},
}
CRITIC_FREE = {"critic": "none", "objective": ["ppo_clip"]}


def small(**changes):
    return {**SMALL, **changes}


# Seams at step 0


@pytest.mark.parametrize("policy", [{}, {"freeze_embeddings": True}, {"adaptation": "lora", "lora_rank": 2}])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_before_the_first_update_everything_agrees(run_stage, policy, temperature, microbatch_size):
    """KL = 0, ratio = 1, nothing clipped, and what the sampler recorded is what training sees."""
    rows = run_stage(
        "rl", small(steps=1, policy={"name": "causal_lm", **policy}, temperature=temperature, microbatch_size=microbatch_size)
    ).rows()
    first = {row["split"]: row for row in reversed(rows) if row["step"] == 0}
    assert first["train"]["kl"] == pytest.approx(0, abs=1e-5) and first["validation"]["kl"] == pytest.approx(0, abs=1e-5)
    assert first["train"]["first_ratio"] == pytest.approx(1, abs=1e-5) and first["train"]["first_clip_fraction"] == 0
    assert first["train"]["sampler_gap"] < 1e-5 and first["validation"]["win_rate"] == 0.5


def test_also_from_an_sft_stage_that_was_an_adapter_with_dropout(run_stage):
    sft = run_stage("sft", {"adaptation": "lora", "lora_rank": 4, "dropout": 0.3, "learning_rate": 0.02, "log_samples": 0})
    for policy in ({}, {"adaptation": "lora"}):
        (row,) = run_stage("rl", small(steps=1, policy={"name": "causal_lm", **policy}), inputs={"sft": sft.folder}).rows(
            "train"
        )
        assert abs(row["kl"]) < 1e-5 and row["first_ratio"] == pytest.approx(1, abs=1e-5)


def test_another_reference_is_an_error(run_stage):
    with pytest.raises(NumericsError, match=r"at step 0 policy and reference must agree, but \{'kl'"):
        run_stage("rl", small(policy="off_reference"))
    run_stage("rl", small(policy={"name": "off_reference", "shift": 0.0}, steps=1))


@pytest.mark.parametrize(
    "row",
    [
        {"kl": 0.01},
        {"kl": -0.01},
        {"kl": math.nan},
        {"kl": 0.0, "first_ratio": 1.01},
        {"kl": 0.0, "first_ratio": 1.0, "first_clip_fraction": 0.1},
    ],
)
def test_each_seam_is_looked_at(row):
    with pytest.raises(NumericsError):
        assert_on_policy(row)
    assert_on_policy({"kl": 1e-6, "first_ratio": 1.0, "first_clip_fraction": 0.0})


def test_values_start_at_the_reward_model(run_stage):
    """From the reward model: the first returns are explained by nothing but chance, and the critic's loss is finite."""
    (row,) = run_stage("rl", small(steps=1, inner_epochs=1, minibatches=1)).rows("train")
    assert math.isfinite(row["explained_variance"]) and row["explained_variance"] <= 1 and row["value_clip_fraction"] == 0


# One optimiser step against a loss written without masks, padding or micro-batches


def batch_of(cfg, actors):
    """A batch off the policy's own law, so that clips, ratios and values all matter."""
    generator = torch.Generator().manual_seed(0)
    rollout = actors.policy.rollout(
        ["w0", "w3 w1 w2", "w7 w7 w7 w2", "w4"],
        np.random.default_rng(1),
        samples=2,
        response_length=4,
        temperature=cfg.temperature,
    )
    shape = rollout.mask_BT.shape
    noise = [torch.randn(shape, generator=generator) for _ in range(4)]
    fillers = [
        x.masked_fill(~rollout.mask_BT, math.nan)
        for x in (rollout.logprobs_BT + 0.3 * noise[0], rollout.logprobs_BT, *noise[1:])
    ]
    return Batch(rollout, *fillers[:4], values_BT=fillers[4], scores_B=noise[0][:, 0].clone(), beta=0.1)


def by_hand(cfg, ctx, actors, batch, index, position):
    """Σ weight · term over single, unpadded sequences (Schulman et al. 2017, eq. 7 and 9; Ouyang et al. 2022, eq. 2)."""
    sequences = [tokens_of(batch.rollout)[i] for i in index]
    lengths = [len(response) for _, response in sequences]
    policy_loss = 0.0
    for i, (prompt, response), n in zip(index, sequences, lengths, strict=True):
        weight = {"token_mean": 1 / sum(lengths), "sequence_mean": 1 / (n * len(index)), "constant": 1 / (len(index) * 4)}[
            cfg.aggregation
        ]
        ids = torch.tensor([prompt + response])
        laws = (actors.policy.module(input_ids=ids).logits[0, len(prompt) - 1 : -1] / cfg.temperature).log_softmax(-1)
        hidden = actors.critic.module.backbone(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
        for t, token in enumerate(response):
            ratio, advantage = (laws[t, token] - batch.old_logprobs_BT[i, t]).exp(), batch.advantages_BT[i, t]
            ppo = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            value, old, target = actors.critic.module.head(hidden[t])[0], batch.values_BT[i, t], batch.returns_BT[i, t]
            clipped = torch.min(torch.max(value, old - 0.2), old + 0.2)
            value_loss = 0.5 * torch.max((value - target) ** 2, (clipped - target) ** 2)
            bonus = (laws[t].exp() * laws[t]).sum()  # minus the entropy
            policy_loss = policy_loss + weight * (ppo + 0.1 * value_loss + 0.3 * bonus)
    texts = ctx.data.pretraining("train")
    order = np.random.default_rng(np.random.SeedSequence([0, binascii.crc32(b"pretraining"), 0])).permutation(len(texts))
    chosen = [[*ids_of(texts[order[2 * position + k]]), EOS] for k in range(2 * len(index))]
    nll = [
        -actors.policy.module(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum()
        for ids in chosen
    ]
    return policy_loss + 0.7 * sum(nll) / sum(len(ids) - 1 for ids in chosen)


def gradients(actors):
    return [p.grad.clone() for actor in (actors.policy, actors.critic) for p in actor.module.parameters()]


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("microbatch_size", [1, 3, None])
def test_the_gradient_of_an_optimiser_step(open_stage, aggregation, microbatch_size):
    """Clip, value clip, entropy and pretraining together, at τ = 0.8, NaN in every masked place."""
    cfg, ctx = open_stage(
        "rl",
        small(
            aggregation=aggregation,
            microbatch_size=microbatch_size,
            temperature=0.8,
            max_grad_norm=None,
            whiten_advantages="none",
        ),
    )
    actors = open_actors(cfg, ctx)
    actors.optimizer = torch.optim.SGD([p for group in actors.optimizer.param_groups for p in group["params"]], lr=0.0)
    batch, index, position = batch_of(cfg, actors), torch.tensor([6, 0, 3, 1, 7]), 3
    row = optimizer_step(cfg, ctx, actors, batch, index, position)
    got = gradients(actors)
    actors.optimizer.zero_grad()
    loss = by_hand(cfg, ctx, actors, batch, index.tolist(), position)
    loss.backward()
    for mine, theirs in zip(got, gradients(actors), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    assert max(g.abs().max().item() for g in got) > 0.1
    total = row["loss_ppo_clip"] + 0.1 * row["loss_value_clip"] + 0.3 * row["loss_entropy"] + 0.7 * row["loss_pretrain_mix"]
    assert total == pytest.approx(loss.item(), abs=1e-5)
    assert 0 < row["clip_fraction"] < 1 and 0 < row["value_clip_fraction"] < 1


@pytest.mark.parametrize("ddof", [0, 1])
def test_minibatch_whitening_is_over_the_tokens_of_the_minibatch(open_stage, ddof):
    """Whitened by numpy beforehand, or by the step itself: one gradient."""
    index = torch.tensor([6, 0, 3, 1])
    found = []
    for how in ("minibatch", "none"):
        cfg, ctx = open_stage("rl", small(whiten_advantages=how, whiten_ddof=ddof, max_grad_norm=None))
        actors = open_actors(cfg, ctx)
        batch = batch_of(cfg, actors)
        if how == "none":
            mask_BT = batch.rollout.mask_BT[index]
            bare = batch.advantages_BT[index][mask_BT].numpy()
            white_BT = batch.advantages_BT.clone()
            white_BT[index] = white_BT[index].masked_scatter(mask_BT, torch.tensor((bare - bare.mean()) / bare.std(ddof=ddof)))
            batch = dataclasses.replace(batch, advantages_BT=white_BT)
        optimizer_step(cfg, ctx, actors, batch, index, 0)
        found.append(gradients(actors))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_gradient_clip_limits_policy_and_critic_each_and_reports_what_was_there(open_stage):
    norms = {}
    for limit in (None, 0.05):
        cfg, ctx = open_stage("rl", small(max_grad_norm=limit))
        actors = open_actors(cfg, ctx)
        row = optimizer_step(cfg, ctx, actors, batch_of(cfg, actors), torch.arange(8), 0)
        for name, actor in (("policy", actors.policy), ("critic", actors.critic)):
            norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in actor.module.parameters()))
            norms[name, limit] = norm, row[f"grad_norm_{name}"]
    for name in ("policy", "critic"):
        free, reported = norms[name, None]
        assert reported == pytest.approx(free, rel=1e-5) and free > 0.05
        assert norms[name, 0.05] == (pytest.approx(0.05, rel=1e-3), pytest.approx(free, rel=1e-5))


def test_adam_is_given_what_the_spec_says(open_stage):
    cfg, ctx = open_stage(
        "rl",
        small(adam_betas=(0.8, 0.95), adam_eps=1e-3, learning_rate=0.02, critic={"name": "value_model", "learning_rate": 0.5}),
    )
    optimizer = open_actors(cfg, ctx).optimizer
    assert type(optimizer) is torch.optim.Adam
    assert [(g["lr"], g["initial_lr"], g["betas"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.02, 0.02, (0.8, 0.95), 1e-3, 0),
        (0.5, 0.5, (0.8, 0.95), 1e-3, 0),
    ]


@pytest.mark.parametrize("inner_epochs, minibatches", [(1, 1), (4, 1), (1, 4), (3, 2)])
def test_optimiser_steps_are_epochs_times_minibatches(open_stage, inner_epochs, minibatches):
    """Counted by Adam itself."""
    cfg, ctx = open_stage("rl", small(inner_epochs=inner_epochs, minibatches=minibatches))
    actors = open_actors(cfg, ctx)
    update(cfg, ctx, actors, batch_of(cfg, actors), step=0)
    assert {int(state["step"]) for state in actors.optimizer.state.values()} == {inner_epochs * minibatches}


def test_each_inner_epoch_sees_every_sequence_once(open_stage):
    """At a learning rate of 0 the gradients of an epoch's four minibatches add up to four times that of the whole batch."""
    found = {}
    for minibatches in (1, 4):
        kept = {
            "aggregation": "constant",
            "whiten_advantages": "none",
            "max_grad_norm": None,
            "advantage": "rloo",
            **CRITIC_FREE,
        }
        cfg, ctx = open_stage("rl", small(inner_epochs=2, minibatches=minibatches, **kept))
        actors = open_actors(cfg, ctx)
        actors.optimizer = torch.optim.SGD(actors.policy.module.parameters(), lr=0.0)
        weight, seen = actors.policy.module.get_input_embeddings().weight, []
        actors.optimizer.register_step_pre_hook(lambda *_, weight=weight, seen=seen: seen.append(weight.grad.clone()))
        update(cfg, ctx, actors, batch_of(cfg, actors), step=0)
        found[minibatches] = seen
    assert len(found[1]) == 2 and len(found[4]) == 8 and found[1][0].abs().max() > 1e-3
    for epoch in range(2):
        torch.testing.assert_close(sum(found[4][4 * epoch : 4 * epoch + 4]), 4 * found[1][epoch], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found[4][0], found[4][4])  # shuffled anew


def test_a_loss_that_is_not_finite_stops_the_run(open_stage):
    cfg, ctx = open_stage("rl", small())
    actors = open_actors(cfg, ctx)
    batch = batch_of(cfg, actors)
    broken = dataclasses.replace(batch, advantages_BT=batch.advantages_BT * math.inf)
    with pytest.raises(NumericsError, match="the loss is not finite"):
        optimizer_step(cfg, ctx, actors, broken, torch.arange(8), 0)


def test_no_critic_no_second_group(open_stage):
    cfg, ctx = open_stage("rl", small(**CRITIC_FREE, advantage="rloo"))
    actors = open_actors(cfg, ctx)
    assert actors.critic is None and len(new_optimizer(cfg, actors.policy, None).param_groups) == 1


# What is recorded


def test_a_rows_step_is_the_number_of_updates_before_it(run_stage):
    done = run_stage("rl", small(steps=5, evaluation={"every": 2, "prompts": 2}))
    assert [row["step"] for row in done.rows("train")] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in done.rows("validation")] == [0, 2, 4, 5]


def test_beta_follows_the_controller_by_hand(run_stage):
    """β_{t+1} = β_t (1 + K clip(KL_t / KL* − 1, ±clip)) from the KL per sequence that stands in row t."""
    kl = {"name": "adaptive", "beta": 0.3, "target": 4.0, "gain": 0.5, "clip": 0.99}
    done = run_stage("rl", small(steps=8, kl=kl, learning_rate=0.05, schedule="constant"))
    rows, beta = done.rows("train"), 0.3
    for row in rows:
        assert row["beta"] == pytest.approx(beta, rel=1e-6)
        beta *= 1 + 0.5 * min(0.99, max(-0.99, row["kl"] / 4 - 1))
    assert done.rows("validation")[-1]["beta"] == pytest.approx(beta, rel=1e-6)
    unclipped = [row for row in rows if 0.04 < row["kl"] < 7.96]
    assert len(unclipped) >= 4  # there a KL per token would be another number


def test_recorded_kl_length_and_reward_are_those_of_the_samples(run_stage, world):
    """The table of samples holds the whole evaluation here; each number again by plain forwards and by counting words."""
    done = run_stage(
        "rl", small(steps=3, learning_rate=0.05, response_length=6, evaluation={"every": 3, "prompts": 12, "log_samples": 100})
    )
    row, samples = done.rows("validation")[-1], [s for s in done.samples() if s["step"] == 3]
    policy, reference = load_causal_lm(done.folder / "policy"), load_causal_lm(world / "sft")
    kls = []
    for sample in samples:
        prompt, words = ids_of(sample["prompt"]), ids_of(sample["response"])
        versions = [words, [*words, EOS]]  # the table drops special tokens: with or without the EOS
        sums = [
            sum(
                a - b
                for a, b in zip(
                    tiny_world.plain_logprobs(policy, prompt, y), tiny_world.plain_logprobs(reference, prompt, y), strict=True
                )
            )
            for y in versions
        ]
        kls.append(min(sums, key=lambda kl: abs(kl - sample["kl"])))
    exact = [s for s, kl in zip(samples, kls, strict=True) if abs(kl - s["kl"]) < 1e-4]
    assert len(exact) >= 9 and len(samples) == 12  # the others sampled a special token inside
    assert row["kl"] == pytest.approx(np.mean([s["kl"] for s in samples]), abs=1e-6)
    assert row["kl_se"] == pytest.approx(np.std([s["kl"] for s in samples], ddof=1) / math.sqrt(12), rel=1e-4)
    scores = [words_score(s["response"]) for s in samples]
    assert [s["reward_proxy"] for s in samples] == scores and row["reward_proxy"] == pytest.approx(np.mean(scores))
    assert abs(row["kl"]) > 0.05


def test_the_return_is_the_score_less_beta_kl(run_stage):
    """Logged from the tensors of the loss: mean Σ_t r_t = mean score − β · mean KL, at every step."""
    for row in run_stage("rl", small(steps=4, learning_rate=0.03, kl={"name": "fixed", "beta": 0.5})).rows("train"):
        assert row["return"] == pytest.approx(row["score"] - 0.5 * row["kl"], abs=1e-5)


def test_responses_without_eos(run_stage):
    """Replaced, or punished: score against the raw proxy, by the share that never ended."""
    for row in run_stage("rl", small(no_eos_penalty=2.0)).rows("train"):
        assert 0 < row["eos_rate"] < 1
        assert row["score"] == pytest.approx(row["reward_proxy"] - 2 * (1 - row["eos_rate"]), abs=1e-5)
    row = run_stage("rl", small(no_eos_score=-5.0, reward={"name": "words", "value": 0.0})).rows("train")[0]
    assert row["score"] <= row["eos_rate"] - 5 * (1 - row["eos_rate"]) and row["score"] < row["reward_proxy"]


def test_entropy_and_length_have_their_bounds(run_stage):
    for row in run_stage("rl", small(steps=3)).rows():
        assert 0 <= row["entropy"] <= math.log(len(VOCABULARY)) and 1 <= row["response_length"] <= 4
        assert 0 <= row["eos_rate"] <= 1 and row.get("kl_k3", 0) >= 0


def words_score(text):
    return text.split().count("w1") - text.split().count("w2")


def share_won(texts, others):
    pairs = [(words_score(a), words_score(b)) for a, b in zip(texts, others, strict=True)]
    return np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])


def test_win_rates_against_the_start_by_counting(run_stage):
    """Prompt by prompt over the samples of the table, which hold the whole evaluation; a tie counts half."""
    evaluation = {"every": 4, "prompts": 12, "samples": 2, "log_samples": 100}
    done = run_stage("rl", small(steps=4, learning_rate=0.05, response_length=8, evaluation=evaluation))
    texts = {step: [s["response"] for s in done.samples() if s["step"] == step] for step in (0, 4)}
    rates = {row["step"]: row["win_rate"] for row in done.rows("validation")}
    assert rates == {0: 0.5, 4: pytest.approx(share_won(texts[4], texts[0]))} and rates[4] != 0.5


def test_win_rates_against_another_stage_by_counting(run_stage, world, tmp_path):
    """The baseline answers the same prompts with the same noise."""
    tiny_world.save_policy(tmp_path / "other", seed=5)
    evaluation = {"prompts": 12, "samples": 2, "log_samples": 100, "baseline": "comparisons"}
    done = run_stage("rl", small(steps=1, response_length=8, evaluation=evaluation), inputs={"comparisons": tmp_path / "other"})
    start = [s for s in done.samples() if s["step"] == 0]
    answers = sampling.rollout(
        load_causal_lm(tmp_path / "other"),
        tiny_world.encoder(),
        [s["prompt"] for s in start[::2]],
        stream(0, "evaluation"),
        samples=2,
        response_length=8,
        temperature=1.0,
    ).responses
    expected = share_won([s["response"] for s in start], answers)
    assert done.rows("validation")[0]["win_rate"] == pytest.approx(expected) and expected != 0.5


@pytest.mark.parametrize(
    "batch", [{"batch_size": 1, "samples_per_prompt": 1, "minibatches": 1}, {"evaluation": {"prompts": 1}}]
)
def test_a_single_sequence_has_no_standard_error(run_stage, batch):
    """And raises no warning."""
    done = run_stage("rl", small(**batch, response_length=1, steps=1))
    rows = done.rows("train" if "batch_size" in batch else "validation")
    assert all(row["kl_se"] is None and row["kl"] is not None for row in rows)


def test_gold_is_measured_and_never_trained_on(run_stage):
    """Another gold reward: other gold columns, the same policy."""
    one, two = (run_stage("rl", small(gold={"name": "words", "value": v})) for v in (1.0, -3.0))
    assert all(torch.equal(one.weights()[name], two.weights()[name]) for name in one.weights())
    assert one.rows("train") == two.rows("train") and one.rows("validation") != two.rows("validation")


def test_a_reward_that_is_not_finite_stops_the_run(run_stage):
    with pytest.raises(RewardError, match=r"reward 'root' returned nan for the response '.*w2"):
        run_stage("rl", small(reward="root"))


# Where the KL is, what comes after a cut, what a baseline costs


def test_kl_in_the_loss_is_in_no_reward(run_stage):
    """The return is the score, the row still tells β, and the term is β times the mean estimate over tokens."""
    terms = {**CRITIC_FREE, "advantage": "rloo", "objective": ["ppo_clip", {"name": "kl_loss", "estimator": "full"}]}
    kl = {"name": "fixed", "beta": 0.5}
    rows = run_stage("rl", small(**terms, kl=kl, kl_placement="loss", steps=4, learning_rate=0.05)).rows("train")
    for row in rows:
        assert row["return"] == pytest.approx(row["score"], abs=1e-6) and row["beta"] == 0.5 and row["loss_kl_loss"] >= -1e-7
    assert rows[-1]["loss_kl_loss"] > 0.01
    both = run_stage("rl", small(**terms, kl=kl, kl_placement="both", steps=4, learning_rate=0.05)).rows("train")
    for row in both:
        assert row["return"] == pytest.approx(row["score"] - 0.5 * row["kl"], abs=1e-5)


def test_the_full_kl_in_the_reward(run_stage):
    """Σ_t r_t = score − β Σ_t KL(π‖ref at the state), which has the mean of k1 and is never negative."""
    rows = run_stage("rl", small(kl={"name": "fixed", "beta": 0.5}, kl_estimator="full", steps=5, learning_rate=0.05)).rows(
        "train"
    )
    paid = [(row["score"] - row["return"]) / 0.5 for row in rows]
    assert all(x >= -1e-5 for x in paid) and paid[-1] > 0.05
    assert paid[-1] == pytest.approx(rows[-1]["kl"], abs=5 * rows[-1]["kl_se"])
    assert abs(paid[-1] - rows[-1]["kl"]) > 1e-4


def test_the_controller_is_told_the_kl_per_token(run_stage):
    """Proportional control by hand, from the KL per sequence and the length that stand in the row."""
    kl = {"name": "adaptive", "beta": 0.3, "target": 1.0, "gain": 0.5, "clip": 0.99}
    rows = run_stage("rl", small(steps=5, kl=kl, kl_unit="token", learning_rate=0.05)).rows("train")
    beta = 0.3
    for row in rows:
        assert row["beta"] == pytest.approx(beta, rel=1e-5)
        beta *= 1 + 0.5 * min(0.99, max(-0.99, row["kl"] / row["response_length"] - 1))


def test_the_doubling_rule_sees_the_kl_of_the_update(run_stage):
    """A step too small to notice halves β each time, though the KL to the reference is what it is; a large one doubles it."""
    kl = {"name": "step_kl_doubling", "beta": 1.0, "target": 0.1}
    terms = {**CRITIC_FREE, "advantage": "rloo", "objective": [{"name": "kl_penalty", "beta": None}], "kl_placement": "loss"}
    held = run_stage("rl", small(**terms, kl=kl, steps=3, learning_rate=1e-9)).rows("train")
    assert [row["beta"] for row in held] == [1.0, 0.5, 0.25]
    moved = run_stage("rl", small(**terms, kl=kl, steps=3, learning_rate=0.1, schedule="constant")).rows("train")
    assert [row["beta"] for row in moved] == [1.0, 2.0, 4.0]


def test_masked_truncation_trains_on_what_ended_only(open_stage):
    """The gradient of a batch with two cut responses is that of the batch without them."""
    found = []
    for how in ("masked", "left out"):
        cfg, ctx = open_stage("rl", small(objective=["ppo_clip", "value_clip"], max_grad_norm=None, whiten_advantages="none"))
        actors = open_actors(cfg, ctx)
        batch, index = batch_of(cfg, actors), torch.arange(8)
        kept_B = torch.tensor([True, True, False, True, True, True, False, True])
        if how == "masked":
            batch = dataclasses.replace(batch, trained_B=kept_B)
        optimizer_step(cfg, ctx, actors, batch, index if how == "masked" else index[kept_B], 0)
        found.append(gradients(actors))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("whiten", ["minibatch", "rollout"])
def test_a_batch_of_nothing_but_cut_responses_moves_nothing(run_stage, world, whiten):
    """Two responses of one token each, neither of which is the EOS."""
    from safetensors.torch import load_file

    cut = {"truncation": "mask", "response_length": 1, "reward": "words", "objective": ["ppo_clip", "value_clip"]}
    done = run_stage("rl", small(**cut, whiten_advantages=whiten, steps=1, batch_size=2, samples_per_prompt=1))
    start = load_file(world / "sft" / "model.safetensors")
    assert done.rows("train")[0]["eos_rate"] == 0
    assert all(torch.equal(weight, start[name]) for name, weight in done.weights().items())
    assert all("loss_ppo_clip" not in row for row in done.rows("train"))


def test_bootstrapped_truncation_puts_the_critics_value_in_place_of_the_score(open_stage):
    """By hand on one cut response and one that ended: δ_T = r_T + V(after) − V_T, with V from a plain forward pass."""
    from rlhf_lab.rl.loop import state_values

    cfg, ctx = open_stage("rl", small(truncation="bootstrap"))
    actors = open_actors(cfg, ctx)
    whole = tiny_world.encoder().encode(["w0", "w3 w1 w2"], ["w4 w5 w6 w7", "w2"], ended=[False, True])
    values_BT, after_B = state_values(cfg, actors, whole)
    for b, (prompt, response) in enumerate(tokens_of(whole)):
        everything = tiny_world.plain_scalars(actors.critic.module, prompt + response)
        assert values_BT[b, : len(response)].tolist() == pytest.approx(everything[len(prompt) - 1 : -1], abs=1e-5)
        assert after_B[b].item() == pytest.approx(0.0 if b else everything[-1], abs=1e-5)
    assert cfg.without_eos["score"] == 0.0


def test_the_critic_warms_up_while_the_policy_waits(run_stage, world):
    """Two of three steps: weights, KL and β of the policy stay, the critic's loss falls; then the policy moves."""
    from safetensors.torch import load_file

    warm = {"critic_warmup": 2, "learning_rate": 0.05, "critic": {"name": "value_model", "learning_rate": 0.01}}
    held = run_stage("rl", small(**warm, steps=2))
    start = load_file(world / "sft" / "model.safetensors")
    assert all(torch.equal(weight, start[name]) for name, weight in held.weights().items())
    rows = run_stage("rl", small(**warm, steps=3)).rows("train")
    assert [row["grad_norm_policy"] > 0 for row in rows] == [False, False, True]
    assert [row["beta"] for row in rows] == [rows[0]["beta"]] * 3
    assert all(abs(row["kl"]) < 1e-5 for row in rows) and all(row["grad_norm_critic"] > 0 for row in rows)


def test_greedy_baselines_are_sampled_scored_and_paid_for(run_stage, open_stage):
    """The row's greedy score is that of the likeliest words, found here token by token; the rollouts stay the same ones."""
    terms = {**CRITIC_FREE, "steps": 1, "objective": ["policy_gradient"], "whiten_advantages": "none"}
    row = run_stage("rl", small(**terms, advantage="remax")).rows("train")[0]
    plain = run_stage("rl", small(**terms, advantage="monte_carlo")).rows("train")[0]
    assert all(row[name] == plain[name] for name in ("kl", "score", "response_length", "entropy"))
    assert "greedy_score" not in plain
    cfg, ctx = open_stage("rl", small(**terms, advantage="remax"))
    actors = open_actors(cfg, ctx)
    prompts, n = ctx.data.prompts("train"), cfg.batch_size // cfg.samples_per_prompt
    order = np.random.default_rng(np.random.SeedSequence([0, binascii.crc32(b"prompts"), 0])).permutation(len(prompts))
    texts = [likeliest(actors.policy.module, ids_of(prompts[i])) for i in order[:n]]
    assert row["greedy_tokens"] == sum(map(len, texts))
    words = [" ".join(VOCABULARY[token] for token in text) for text in texts]
    assert row["greedy_score"] == pytest.approx(np.mean([words_score(text) for text in words]))


def likeliest(model, ids):
    said = []
    while len(said) < 4 and EOS not in said:
        said.append(int(next_laws(model, ids + said)[-1].argmax()))
    return said


def test_an_evaluation_leaves_running_moments_alone(run_stage):
    """However often is evaluated: the same training rows, bit by bit."""
    scaled = {"reward": {"name": "scaled", "source": "words"}, "steps": 4}
    often, once = (run_stage("rl", small(**scaled, evaluation={"every": n, "prompts": 3})).rows("train") for n in (1, 100))
    assert often == once


def test_a_sampler_that_differs_raises_an_alarm(run_stage, caplog):
    quiet = run_stage("rl", small(steps=1)).rows("train")[0]
    assert quiet["sampler_alarm"] == 0.0 and not caplog.records
    loud = run_stage("rl", small(steps=1, sampler_gap_limit=0.0)).rows("train")[0]
    assert loud["sampler_alarm"] == 1.0 and loud["sampler_gap"] == quiet["sampler_gap"] > 0
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "sampler and training differ by" in record.getMessage()


# Sameness


def test_the_same_stage_twice_gives_the_same_bytes(run_stage):
    """Whatever has drawn from the global generators in between."""
    one = run_stage("rl", small())
    torch.manual_seed(99)
    np.random.seed(99)
    two = run_stage("rl", small())
    for name in ("steps.jsonl", "samples.jsonl", "policy/model.safetensors"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


@pytest.mark.parametrize("policy", ["full", "lora"])
def test_micro_batches_change_memory_not_numbers(run_stage, policy):
    """Through two whole iterations. A large ε keeps Adam from blowing rounding up."""
    kept = {"policy": {"name": "causal_lm", "adaptation": policy}, "adam_eps": 1e-3}
    plain, *others = [run_stage("rl", small(**kept, microbatch_size=size)).rows() for size in (None, 1, 3)]
    for rows in others:
        for mine, theirs in zip(rows, plain, strict=True):
            assert mine == pytest.approx(theirs, abs=2e-5, nan_ok=True)


def test_arms_of_one_seed_share_prompts_and_noise(run_stage):
    """Their first rollouts are the same text; another seed's are not."""
    one, two = (run_stage("rl", small(kl={"name": "fixed", "beta": beta}, steps=1)) for beta in (0.0, 5.0))
    shared = ("kl", "reward_proxy", "response_length", "entropy", "eos_rate")
    first, second = one.rows("train")[0], two.rows("train")[0]
    assert [first[key] for key in shared] == [second[key] for key in shared]
    assert [s for s in one.samples() if s["step"] == 0] == [s for s in two.samples() if s["step"] == 0]
    other = run_stage("rl", small(steps=1), seed=1)
    assert [other.rows("train")[0][key] for key in shared] != [first[key] for key in shared]


def test_a_learning_rate_of_next_to_nothing_leaves_the_policy(run_stage, world):
    """lr → 0: every ratio 1, every KL 0, and the weights are the SFT model's."""
    from safetensors.torch import load_file

    done = run_stage("rl", small(steps=3, learning_rate=1e-12))
    for row in done.rows():
        assert abs(row["kl"]) < 1e-5 and row.get("ratio", 1) == pytest.approx(1, abs=1e-5) and row.get("approx_kl", 0) < 1e-9
    start = load_file(world / "sft" / "model.safetensors")
    assert all(torch.allclose(weight, start[name], atol=1e-9) for name, weight in done.weights().items())


def test_the_average_after_one_step_by_its_closed_form(run_stage, world):
    """d θ_0 + (1 − d) θ_1, with θ_1 from the same run without averaging; training itself is unchanged."""
    from safetensors.torch import load_file

    once = {"steps": 1, "inner_epochs": 1, "minibatches": 1, "learning_rate": 0.05}
    plain, averaged = run_stage("rl", small(**once)), run_stage("rl", small(**once, ema=0.75))
    start, end = load_file(world / "sft" / "model.safetensors"), plain.weights()
    for name, weight in averaged.weights().items():
        assert torch.allclose(weight, 0.75 * start[name] + 0.25 * end[name], atol=1e-6)
    assert plain.rows("train") == averaged.rows("train")
    assert averaged.rows("validation")[-1]["kl"] != plain.rows("validation")[-1]["kl"]


def test_the_average_after_k_steps_by_its_closed_form(open_stage):
    """θ_ema = d^k θ_0 + (1 − d) Σ d^(k−i) θ_i over the optimiser steps of an update."""
    cfg, ctx = open_stage("rl", small(ema=0.9, inner_epochs=2, minibatches=2, learning_rate=0.05))
    actors = open_actors(cfg, ctx)
    weight, path = actors.policy.module.get_input_embeddings().weight, []
    path.append(weight.detach().clone())
    actors.optimizer.register_step_post_hook(lambda *_: path.append(weight.detach().clone()))
    update(cfg, ctx, actors, batch_of(cfg, actors), step=0)
    expected = 0.9**4 * path[0] + sum(0.1 * 0.9 ** (4 - i) * path[i] for i in range(1, 5))
    with actors.average.applied():
        assert len(path) == 5 and torch.allclose(weight, expected, atol=1e-6)
    assert torch.equal(weight, path[-1])


def test_the_critic_sends_no_gradient_into_the_policy(open_stage):
    """With the value loss alone the policy stays where it is."""
    cfg, ctx = open_stage("rl", small(objective=["value_clip"]))
    actors = open_actors(cfg, ctx)
    optimizer_step(cfg, ctx, actors, batch_of(cfg, actors), torch.arange(8), 0)
    assert all(p.grad is None or not p.grad.any() for p in actors.policy.module.parameters())
    assert any(p.grad.any() for p in actors.critic.module.parameters())


def test_pretraining_mix_lowers_the_loss_on_pretraining_text(run_stage):
    """From the first step's to the last one's, and far below that of the same run without it."""
    mix = {"name": "pretrain_mix", "weight": 5.0, "ratio": 4}
    terms = {**CRITIC_FREE, "advantage": "rloo", "steps": 12, "learning_rate": 0.02, "evaluation": {"every": 100, "prompts": 1}}
    rows = run_stage("rl", small(**{**terms, "objective": ["ppo_clip", mix]})).rows("train")
    assert rows[-1]["loss_pretrain_mix"] < rows[0]["loss_pretrain_mix"] - 0.5
    watched = run_stage("rl", small(**{**terms, "objective": ["ppo_clip", {**mix, "weight": 0.0}]})).rows("train")
    assert rows[-1]["loss_pretrain_mix"] < watched[-1]["loss_pretrain_mix"] - 0.5


def test_a_run_may_have_nothing_but_the_pretraining_term(run_stage):
    terms = {**CRITIC_FREE, "advantage": "rloo", "objective": [{"name": "pretrain_mix", "weight": 1.0, "ratio": 1}]}
    assert all(row["loss_pretrain_mix"] > 0 for row in run_stage("rl", small(**terms)).rows("train"))


def test_a_term_listed_twice_counts_twice(open_stage):
    gradient = {}
    for n in (1, 2):
        cfg, ctx = open_stage("rl", small(objective=["value_clip"] * n, max_grad_norm=None))
        actors = open_actors(cfg, ctx)
        optimizer_step(cfg, ctx, actors, batch_of(cfg, actors), torch.arange(8), 0)
        gradient[n] = actors.critic.module.head.weight.grad
    torch.testing.assert_close(gradient[2], 2 * gradient[1], rtol=1e-5, atol=1e-7)


def test_whitened_rewards_keep_their_mean(run_stage):
    """By hand on the first batch, where the KL is 0: rewards are the scores at the last tokens and zeros elsewhere."""
    plain, white = (run_stage("rl", small(steps=1, whiten_rewards=flag)).rows("train")[0] for flag in (False, True))
    n = plain["response_length"]
    assert white["score"] == plain["score"]
    # mean over tokens of the whitened rewards is that of the plain ones; so Σ per response is kept on average
    assert white["return"] == pytest.approx(plain["return"], abs=1e-4) and n > 1
    assert white["loss_value_clip"] != plain["loss_value_clip"]


# Every field is read


CHANGES = {
    "score_at": "post_eos",
    "policy": {"name": "causal_lm", "freeze_embeddings": True},
    "critic": {"name": "value_model", "learning_rate": 0.1},
    "reward": {"name": "words", "value": 3.0},
    "gold": {"name": "words", "value": 3.0},
    "kl": {"name": "fixed", "beta": 0.5},
    "kl_estimator": "k3",
    "kl_placement": "both",
    "kl_unit": "token",
    "critic_warmup": 1,
    "truncation": "mask",
    "sampler_gap_limit": 0.0,
    "advantage": "monte_carlo",
    "objective": ALL_TERMS[:3],
    "steps": 3,
    "batch_size": 12,
    "samples_per_prompt": 4,
    "minibatches": 1,
    "inner_epochs": 1,
    "response_length": 5,
    "max_prompt_tokens": 2,
    "temperature": 0.7,
    "learning_rate": 0.02,
    "schedule": "constant",
    "warmup_steps": 2,
    "warmup_from": 0.5,
    "adam_betas": (0.5, 0.999),
    "adam_eps": 1e-2,
    "max_grad_norm": 0.01,
    "ema": 0.9,
    "aggregation": "sequence_mean",
    "whiten_advantages": "minibatch",
    "whiten_rewards": True,
    "whiten_ddof": 1,
    "advantages_shift_mean": False,
    "rewards_shift_mean": True,
    "baseline": "before_kl",
    "logprob_temperature": "one",
    "no_eos_score": -1.0,
    "no_eos_penalty": 0.5,
    "evaluation": {**SMALL["evaluation"], "prompts": 4},
}
CHANGES_OF_EVALUATION = {"every": 2, "prompts": 4, "samples": 3, "baseline": "comparisons"}
NOT_IN_THE_ROWS = {
    "seed",
    "microbatch_size",
    "log_samples",
    "on_nan",
}  # the plan's; memory only; the samples table's; where something is not finite: see the tests above and below
CHANGES_OF_COMPONENTS = [
    (
        "policy",
        {"name": "causal_lm", "adaptation": "lora", "lora_rank": 2, "lora_alpha": 2.0},
        {"init": "comparisons", "adaptation": "full", "lora_rank": 3, "lora_alpha": 8.0},
    ),
    ("policy", {"name": "causal_lm"}, {"freeze_embeddings": True, "reference": "comparisons"}),
    (
        "critic",
        {"name": "value_model", "adaptation": "lora", "lora_rank": 2, "lora_alpha": 2.0},
        {"init": "sft", "adaptation": "full", "lora_rank": 3, "lora_alpha": 8.0, "learning_rate": 0.1},
    ),
    ("critic", {"name": "value_model"}, {"freeze_embeddings": True}),
    ("kl", {"name": "fixed"}, {"beta": 0.5}),
    ("kl", SMALL["kl"], {"beta": 0.2, "target": 9.0, "gain": 0.7, "clip": 0.05}),
    ("advantage", {"name": "gae"}, {"gamma": 0.8, "lam": 0.5}),
    ("advantage", {"name": "monte_carlo"}, {"gamma": 0.8}),
    ("advantage", {"name": "rloo"}, {}),
    ("objective", {"name": "ppo_clip"}, {"weight": 0.5, "eps": 0.01}),
    ("objective", {"name": "value_clip"}, {"weight": 0.5, "eps": 0.001}),
    ("objective", {"name": "entropy"}, {"weight": 0.5}),
    ("objective", {"name": "pretrain_mix"}, {"weight": 0.5, "ratio": 3}),
]


@pytest.fixture(scope="module")
def rows_of(world, tmp_path_factory):
    """Rows of an RL stage, each distinct one computed once. `comparisons` serves as the name of another model's stage."""
    tiny_world.save_policy(world / "comparisons", seed=5)
    known = {}

    def rows(**changes):
        key = repr(sorted(small(**changes).items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("rl")
            ctx = tiny_world.context("rl", small(**changes), folder, world)
            ctx.config.stages["rl"].run(ctx)
            known[key] = tiny_world.Finished(folder).rows()
        return known[key]

    return rows


def listed(slot, component):
    """A parameter of the stage: an objective stands beside the other terms."""
    if slot != "objective":
        return component
    return [component, *(term for term in ALL_TERMS if (term if isinstance(term, str) else term["name"]) != component["name"])]


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_some_row(rows_of, field):
    """`warmup_from` needs a warm-up, `kl_placement` a KL in the loss, `baseline` a group, and so on."""
    extra = {"warmup_steps": 2} if field == "warmup_from" else {}
    extra |= {"kl": {"name": "adaptive", "target": 3.0, "clip": 1.0}} if field == "kl_unit" else {}
    extra |= {"kl_placement": "loss", "objective": [*ALL_TERMS, "kl_loss"]} if field == "kl_placement" else {}
    extra |= {"whiten_rewards": True} if field == "rewards_shift_mean" else {}
    extra |= {"temperature": 0.7} if field == "logprob_temperature" else {}
    extra |= {"advantage": "rloo", "learning_rate": 0.02} if field == "baseline" else {}
    assert rows_of(**{**extra, field: CHANGES[field]}) != rows_of(**extra)


def test_the_variance_of_whitening_is_chosen_for_rewards_too(rows_of):
    only_rewards = {"whiten_rewards": True, "whiten_advantages": "none"}
    assert rows_of(**only_rewards, whiten_ddof=1) != rows_of(**only_rewards)


@pytest.mark.parametrize("field", CHANGES_OF_EVALUATION)
def test_every_field_of_the_evaluation_changes_some_row(rows_of, field):
    assert rows_of(evaluation={**SMALL["evaluation"], field: CHANGES_OF_EVALUATION[field]}) != rows_of()


@pytest.mark.parametrize(
    "slot, component, changes",
    CHANGES_OF_COMPONENTS,
    ids=lambda value: value["name"] if isinstance(value, dict) and "name" in value else "",
)
def test_every_parameter_of_a_component_changes_some_row(rows_of, slot, component, changes):
    plain = rows_of(**{slot: listed(slot, component)})
    for field, value in changes.items():
        assert rows_of(**{slot: listed(slot, {**component, field: value})}) != plain, (
            f"{slot} {component['name']}: {field} changes nothing"
        )


def test_the_lists_above_are_complete():
    """A new field without a row in one of them fails here."""
    assert set(CHANGES) == set(RL.model_fields) - NOT_IN_THE_ROWS
    assert set(CHANGES_OF_EVALUATION) == set(Evaluation.model_fields) - NOT_IN_THE_ROWS
    kinds = {"policy": "policy", "critic": "critic", "kl": "kl_controller", "advantage": "advantage", "objective": "objective"}
    fields: dict[type[Component], set[str]] = {}
    for slot, component, changes in CHANGES_OF_COMPONENTS:
        fields.setdefault(tiny_world.registry().get(kinds[slot], component["name"]).component, set()).update(changes)
    assert {cls.name: changed for cls, changed in fields.items()} == {cls.name: set(cls.model_fields) for cls in fields}


def test_log_samples_is_how_many_samples_are_kept(run_stage):
    for n in (0, 2):
        done = run_stage("rl", small(steps=1, evaluation={"prompts": 3, "log_samples": n}))
        kept = done.samples() if n else []
        assert len(kept) == 2 * n and (n or not (done.folder / "samples.jsonl").exists())


# An exact optimum


BETA = 0.5
ARM_SCORES = [0.0, 0.5, -0.5, 0.2, 1.0, -1.0, 0.3, 1.5, 0.0, -0.3, 0.8, 1.2, -1.5, 0.1, 0.6, -0.8]
BANDIT = {
    "reward": {"name": "first_token", "scores": ARM_SCORES},
    "kl": {"name": "fixed", "beta": BETA},
    "steps": 80,
    "batch_size": 128,
    "inner_epochs": 2,
    "minibatches": 1,
    "response_length": 1,
    "learning_rate": 0.02,
    "max_grad_norm": None,
    "evaluation": {"every": 8, "prompts": 2, "samples": 512, "log_samples": 0},
}
ARMS = {
    "gae": {
        "critic": {"name": "value_model", "learning_rate": 0.02},
        "objective": ["ppo_clip", {"name": "value_clip", "weight": 1.0}],
    },
    "monte_carlo": {**CRITIC_FREE, "advantage": "monte_carlo"},
    "rloo": {**CRITIC_FREE, "advantage": "rloo", "samples_per_prompt": 4, "whiten_advantages": "none"},
    "lora": {**CRITIC_FREE, "advantage": "monte_carlo", "policy": {"name": "causal_lm", "adaptation": "lora", "lora_rank": 8}},
}
SHORTFALL = {"gae": 0.003, "monte_carlo": 0.003, "rloo": 0.003, "lora": 0.06}  # an adapter cannot move the tied output layer
SCORES = torch.tensor(ARM_SCORES, dtype=torch.float64)


def log_laws(folder):
    """log π(·|x) for the two prompts, in float64."""
    model = load_causal_lm(folder)
    return torch.stack([next_laws(model, ids_of(prompt))[-1] for prompt in ("w0", "w5 w3")])


def optimum(log_ref, beta):
    """π* ∝ ref e^{r/β}, and J* = β log Z, for each prompt."""
    tilted = log_ref + SCORES / beta
    return tilted.log_softmax(-1), beta * tilted.logsumexp(-1)


def kl_and_reward(log_pi, log_ref):
    return (log_pi.exp() * (log_pi - log_ref)).sum(-1).mean().item(), (log_pi.exp() * SCORES).sum(-1).mean().item()


def frontier(log_ref, kl):
    """The largest E[r] at a KL: min over β of J*(β) + β·KL (its concave dual), on a fine grid of β."""
    betas = np.geomspace(0.01, 100, 2000)
    return min(optimum(log_ref, beta)[1].mean().item() + beta * kl for beta in betas)


def test_the_closed_form_itself():
    """The bandit of the books: ref (.5, .3, .2), r (0, 1, 2), β 1."""
    ref, r = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    best = (ref.log() + r).softmax(0)
    assert best.tolist() == pytest.approx([0.17900002, 0.29194350, 0.52905648], abs=1e-7)
    assert (best * r).sum().item() == pytest.approx(1.35005646, abs=1e-7)
    assert (best * (best / ref).log()).sum().item() == pytest.approx(0.32283428, abs=1e-7)
    assert (ref * r.exp()).sum().log().item() == pytest.approx(1.02722218, abs=1e-7)


@pytest.mark.parametrize("arm", ARMS)
def test_a_bandit_is_learned_to_its_closed_form_and_never_beyond(run_stage, world, arm):
    """J* − J(π) = β KL(π‖π*) must fall to 0.3 % of what there was to gain, an order above what sampling noise leaves.

    J is flat at its optimum: 0.3 % of the gain moves KL and E[r] by up to √0.003 ≈ 5 % of their range. No row may stand
    above the frontier by more than 4 standard errors of the sampled means.
    """
    done = run_stage("rl", {**BANDIT, **ARMS[arm]}, data="two_prompts")
    log_ref, log_pi = log_laws(world / "sft"), log_laws(done.folder / "policy")
    log_best, j_best = optimum(log_ref, BETA)
    gain = (j_best - (log_ref.exp() * SCORES).sum(-1)).mean().item()
    loss = BETA * (log_pi.exp() * (log_pi - log_best)).sum(-1).mean().item()
    assert gain > 0.3 and loss < SHORTFALL[arm] * gain
    (kl, reward), (best_kl, best_reward) = kl_and_reward(log_pi, log_ref), kl_and_reward(log_best, log_ref)
    if arm != "lora":
        assert kl == pytest.approx(best_kl, rel=0.05) and reward == pytest.approx(best_reward, rel=0.05)
    assert reward <= frontier(log_ref, kl) + 1e-9
    slack = SCORES.std().item() / math.sqrt(1024)
    for row in done.rows("validation"):
        assert row["reward_proxy"] <= frontier(log_ref, max(row["kl"], 0.0)) + 4 * (slack + row["kl_se"])
    last = done.rows("validation")[-1]
    assert last["kl"] == pytest.approx(kl, abs=4 * last["kl_se"]) and last["reward_proxy"] == pytest.approx(
        reward, abs=4 * slack
    )


def test_the_adaptive_controller_holds_its_target_on_the_frontier(run_stage, world):
    """Target 0.3 nats: the policy ends near it, and near the best reward that 0.3 nats can buy."""
    kl = {"name": "adaptive", "beta": 0.5, "target": 0.3, "gain": 0.2}
    done = run_stage(
        "rl", {**BANDIT, **ARMS["monte_carlo"], "kl": kl, "schedule": "constant", "steps": 120}, data="two_prompts"
    )
    log_ref, log_pi = log_laws(world / "sft"), log_laws(done.folder / "policy")
    reached, reward = kl_and_reward(log_pi, log_ref)
    assert reached == pytest.approx(0.3, rel=0.15)
    start = kl_and_reward(log_ref, log_ref)[1]
    assert 0.95 * (frontier(log_ref, reached) - start) < reward - start <= frontier(log_ref, reached) - start + 1e-9


# What a spec may not ask for


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"batch_size": 9}, "must be divisible by samples_per_prompt × minibatches = 4"),
        ({"advantage": "rloo", "samples_per_prompt": 1}, "rloo compares samples of one prompt"),
        ({"no_eos_score": -1.0, "no_eos_penalty": 1.0}, "not both"),
        ({"critic": "none"}, "gae and value_clip need values"),
        ({"objective": ["ppo_clip", "kl_loss"]}, "kl_loss puts β times a KL into the loss, and kl_placement: reward"),
        ({"kl_placement": "loss"}, "needs a term of the objective that has the KL"),
        ({"kl_placement": "both"}, "needs a term of the objective that has the KL"),
        ({"kl": "step_kl_doubling"}, "set kl_placement: loss, and kl_penalty with beta: null"),
        ({**CRITIC_FREE, "advantage": "rloo", "critic_warmup": 1}, "critic_warmup needs a critic"),
        ({**CRITIC_FREE, "advantage": "rloo", "truncation": "bootstrap"}, "needs an estimator with values"),
        ({"truncation": "bootstrap", "no_eos_penalty": 1.0}, "leave no_eos_… out"),
        ({"advantage": "grpo", "samples_per_prompt": 1}, "grpo compares samples of one prompt"),
        ({"kl": {"name": "adaptive", "beta": 0}}, "greater than 0"),
    ],
)
def test_combinations_that_cannot_work_are_refused(open_stage, wrong, said):
    with pytest.raises(ValueError, match=said):
        open_stage("rl", small(**wrong))
