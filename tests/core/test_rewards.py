"""Scores to token rewards."""

import math

import pytest
import torch

from rlhf_lab.contracts import Rollout, Scores
from rlhf_lab.errors import RewardError
from rlhf_lab.rl.kl import ESTIMATORS, per_token
from rlhf_lab.rl.rewards import checked, token_rewards, trained, undisturbed, without_eos

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
    kl_BT = per_token(estimator, LOGPROBS.masked_fill(~MASK, filler), REF.masked_fill(~MASK, filler), MASK)
    rewards = token_rewards(SCORES, kl_BT.masked_fill(~MASK, filler), MASK, 0.3)
    for b, n in enumerate(LENGTHS):
        kl = sum(ESTIMATORS[estimator](LOGPROBS[b, t] - REF[b, t]).item() for t in range(n))
        assert rewards[b].sum().item() == pytest.approx(SCORES[b].item() - 0.3 * kl, abs=1e-12)
    assert (rewards[~MASK] == 0).all()


def test_the_score_stands_at_the_last_response_token():
    rewards = token_rewards(torch.tensor([7.0, 7.0, 7.0, 7.0]), LOGPROBS - REF, MASK, 0.0)
    assert rewards.nonzero().tolist() == [[b, n - 1] for b, n in enumerate(LENGTHS)]
    assert rewards.sum(1).tolist() == [7.0] * 4


def test_each_token_pays_for_its_own_log_ratio():
    """By hand: β = 0.5, log ratios 0.2, −0.4; score 3 on the second token."""
    logprobs, ref, mask = torch.tensor([[-1.0, -1.4]]), torch.tensor([[-1.2, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    rewards = token_rewards(torch.tensor([3.0]), per_token("k1", logprobs, ref, mask), mask, 0.5)
    assert rewards[0].tolist() == pytest.approx([-0.1, 3.2], abs=1e-6)


def test_no_beta_no_penalty_even_far_away():
    far = token_rewards(SCORES, LOGPROBS * 50 - REF, MASK, 0.0)
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


class Counts:
    """Scores the number of times that it was asked, the first time 1."""

    def __init__(self):
        self.n = 0

    def __call__(self, rollout):
        self.n += 1
        return torch.full((len(rollout),), float(self.n))

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_a_scorer_that_is_left_undisturbed_goes_on_as_if_nobody_had_asked():
    scorer = Counts()
    assert scorer(rollout(1)).item() == 1.0
    assert [undisturbed(scorer, rollout(1)).item() for _ in range(3)] == [2.0, 2.0, 2.0]
    assert scorer(rollout(1)).item() == 2.0
    assert undisturbed(lambda r: torch.zeros(len(r)), rollout(2)).tolist() == [0.0, 0.0]


def test_what_is_trained_on():
    some = Rollout(**{**vars(rollout(3)), "ended_B": torch.tensor([True, False, True])})
    assert trained(some, "mask").tolist() == [True, False, True]
    assert trained(some, "terminal").all() and trained(some, "bootstrap").all()
