"""Metrics are read from the tensors that the loss used, and are what their names say."""

import math

import numpy as np
import pytest
import torch
from tiny_world import VOCABULARY

from rlhf_lab.lm.logprobs import entropy
from rlhf_lab.rl import loop
from rlhf_lab.rl.actors import open_actors
from rlhf_lab.rl.kl import full
from rlhf_lab.rl.update import Batch, optimizer_step
from rlhf_lab.testing.world import padded

SMALL = {
    "reward": "words",
    "steps": 3,
    "batch_size": 8,
    "minibatches": 2,
    "inner_epochs": 2,
    "response_length": 5,
    "learning_rate": 0.03,
    "kl": {"name": "fixed", "beta": 0.3},
    "objective": ["ppo_clip", "value_clip", {"name": "entropy", "weight": 0.1}],
    "evaluation": {"every": 5, "prompts": 2},
}


@pytest.fixture
def trained_on(monkeypatch):
    """Every batch that the update was given, as it was given."""
    seen, original = [], loop.update

    def watched(cfg, ctx, actors, batch, step):
        seen.append(batch)
        return original(cfg, ctx, actors, batch, step)

    monkeypatch.setattr(loop, "update", watched)
    return seen


def test_the_row_is_read_from_the_tensors_of_the_loss(run_stage, trained_on):
    """KL, score, β and explained variance of each row, again from the batch that was trained on, one response at a time."""
    rows = run_stage("rl", SMALL).rows("train")
    assert len(rows) == len(trained_on) == 3 and abs(rows[-1]["kl"]) > 1e-3
    for row, batch in zip(rows, trained_on, strict=True):
        bare = [mask.nonzero().squeeze(1) for mask in batch.rollout.mask_BT]
        kls = [(batch.old_logprobs_BT[b, t] - batch.ref_logprobs_BT[b, t]).double().sum().item() for b, t in enumerate(bare)]
        assert row["kl"] == pytest.approx(np.mean(kls), abs=1e-5)
        assert (
            row["score"] == pytest.approx(batch.scores_B.double().mean().item(), abs=1e-6) and row["beta"] == batch.beta == 0.3
        )
        values, returns = (
            np.concatenate([x_BT[b, t].double().numpy() for b, t in enumerate(bare)])
            for x_BT in (batch.values_BT, batch.returns_BT)
        )
        assert row["explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns), abs=1e-4)
        assert row["response_length"] == pytest.approx(np.mean([len(t) for t in bare]))


def test_entropy_and_kl_over_the_vocabulary_are_never_negative():
    """Far out, at several temperatures, and for laws that are almost the same; never above log V either."""
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-4, 1.0, 30.0):
        logits_BTV, other_BTV = (scale * torch.randn(4, 6, 16, generator=generator) for _ in range(2))
        for temperature in (0.3, 1.0, 2.0):
            entropy_BT = entropy(logits_BTV, temperature)
            assert (entropy_BT >= 0).all() and (entropy_BT <= math.log(16) + 1e-5).all()
            assert (full(logits_BTV, other_BTV, temperature) >= -1e-6).all()
        assert full(logits_BTV, logits_BTV, 1.0).abs().max() == 0


def batch_of(actors, left, right):
    """The same responses with more padding on both sides, and NaN in it."""
    rollout = actors.policy.rollout(
        ["w0", "w3 w1 w2", "w7 w7 w7 w2", "w4"], np.random.default_rng(1), samples=2, response_length=4, temperature=1.0
    )
    noise = [torch.randn(rollout.mask_BT.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    wide = padded(rollout, left, right, VOCABULARY.index("w1"))

    def widened(x_BT):
        return torch.nn.functional.pad(x_BT, (0, right)).masked_fill(~wide.mask_BT, math.nan)

    drawn = [widened(x_BT) for x_BT in (rollout.logprobs_BT + 0.3 * noise[0], rollout.logprobs_BT, *noise[1:])]
    return Batch(wide, *drawn[:4], values_BT=drawn[4], scores_B=torch.zeros(8), beta=0.1)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_metrics_do_not_change_with_padding(open_stage, aggregation):
    """All that an optimiser step logs: losses, ratio, clip fractions, approx_kl, gradient norms."""
    rows = []
    for left, right in ((0, 0), (3, 2)):
        cfg, ctx = open_stage("rl", {**SMALL, "aggregation": aggregation})
        actors = open_actors(cfg, ctx)
        rows.append(optimizer_step(cfg, ctx, actors, batch_of(actors, left, right), torch.arange(8), 0))
    assert rows[1] == pytest.approx(rows[0], abs=1e-5) and len(rows[0]) >= 8
    assert rows[0]["loss_entropy"] < 0 and rows[0]["clip_fraction"] > 0
