"""Scores to token rewards."""

import math

import pytest
import torch

from rlhf_lab.contracts import Rollout, Scores
from rlhf_lab.errors import RewardError
from rlhf_lab.kl import ESTIMATORS
from rlhf_lab.rewards import checked, token_rewards, without_eos

LENGTHS = (3, 5, 1, 4)
MASK = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
GENERATOR = torch.Generator().manual_seed(0)
LOGPROBS = torch.randn(4, 6, generator=GENERATOR, dtype=torch.float64)
REF = torch.randn(4, 6, generator=GENERATOR, dtype=torch.float64)
SCORES = torch.tensor([2.0, -1.0, 0.5, 0.0], dtype=torch.float64)


def rollout(n):
    ids = torch.zeros(n, 1, dtype=torch.long)
    mask = torch.ones(n, 1, dtype=torch.bool)
    return Rollout(
        ("x",) * n, tuple(f"y{i}" for i in range(n)), ids, mask, ids, mask, torch.ones(n, dtype=torch.bool), torch.arange(n)
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
@pytest.mark.parametrize("filler", [0.0, 1e9, math.nan])
def test_they_sum_to_the_score_minus_beta_kl(estimator, filler):
    """The score is counted once and the KL once, whatever stands in masked places."""
    rewards = token_rewards(SCORES, LOGPROBS.masked_fill(~MASK, filler), REF.masked_fill(~MASK, filler), MASK, 0.3, estimator)
    for b, n in enumerate(LENGTHS):
        kl = sum(ESTIMATORS[estimator](LOGPROBS[b, t] - REF[b, t]).item() for t in range(n))
        assert rewards[b].sum().item() == pytest.approx(SCORES[b].item() - 0.3 * kl, abs=1e-12)
    assert (rewards[~MASK] == 0).all()


def test_the_score_stands_at_the_last_response_token():
    rewards = token_rewards(torch.tensor([7.0, 7.0, 7.0, 7.0]), LOGPROBS, REF, MASK, 0.0)
    assert rewards.nonzero().tolist() == [[b, n - 1] for b, n in enumerate(LENGTHS)]
    assert rewards.sum(1).tolist() == [7.0] * 4


def test_each_token_pays_for_its_own_log_ratio():
    """By hand: β = 0.5, log ratios 0.2, −0.4; score 3 on the second token."""
    logprobs, ref = torch.tensor([[-1.0, -1.4]]), torch.tensor([[-1.2, -1.0]])
    rewards = token_rewards(torch.tensor([3.0]), logprobs, ref, torch.ones(1, 2, dtype=torch.bool), 0.5)
    assert rewards[0].tolist() == pytest.approx([-0.1, 3.2], abs=1e-6)


def test_no_beta_no_penalty_even_far_away():
    far = token_rewards(SCORES, LOGPROBS * 50, REF, MASK, 0.0)
    assert far.sum(1).tolist() == SCORES.tolist()


def test_responses_that_never_ended():
    scores, ended = torch.tensor([2.0, 3.0, -4.0]), torch.tensor([True, False, False])
    assert without_eos(scores, ended, score=-1.0, penalty=0.0).tolist() == [2.0, -1.0, -1.0]
    assert without_eos(scores, ended, score=None, penalty=1.5).tolist() == [2.0, 1.5, -5.5]
    assert without_eos(scores, ended, score=None, penalty=0.0).tolist() == scores.tolist()
    assert without_eos(scores, ended, score=0.0, penalty=0.0).tolist() == [2.0, 0.0, 0.0]


def test_what_a_reward_source_may_not_return():
    with pytest.raises(RewardError, match=r"'mine' returned scores of shape \(3,\) for 2 responses"):
        checked("mine", torch.zeros(3), rollout(2))
    with pytest.raises(RewardError, match=r"shape \(2, 1\)"):
        checked("mine", torch.zeros(2, 1), rollout(2))
    for bad in (math.nan, math.inf):
        with pytest.raises(RewardError, match="for the response 'y1'"):
            checked("mine", torch.tensor([0.0, bad]), rollout(2))


def test_scores_come_out_as_fp32_without_a_graph():
    weight = torch.ones((), requires_grad=True)
    scores = checked("mine", Scores(torch.tensor([1, 2]) * weight.double(), {"n": [3, 4]}), rollout(2))
    assert scores.scores_B.dtype == torch.float32 and not scores.scores_B.requires_grad
    assert scores.columns["n"].tolist() == [3.0, 4.0]
    assert checked("mine", [0.5, 1.5], rollout(2)).scores_B.tolist() == [0.5, 1.5]
