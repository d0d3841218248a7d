"""Scores to token rewards: what happens to a score when there is no EOS, where it lands, and the KL beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lab.contracts import Rollout, Scores
from rlhf_lab.errors import RewardError
from rlhf_lab.kl import ESTIMATORS


def checked(name: str, scores: Scores | Tensor, rollout: Rollout) -> Scores:
    """The scores as fp32. Raises RewardError for the wrong number of scores or one that is not finite."""
    scores = scores if isinstance(scores, Scores) else Scores(scores)
    scores_B = torch.as_tensor(scores.scores_B, dtype=torch.float32).detach().to(rollout.mask_BT.device)
    if scores_B.shape != (len(rollout),):
        raise RewardError(f"reward {name!r} returned scores of shape {tuple(scores_B.shape)} for {len(rollout)} responses")
    if not scores_B.isfinite().all():
        first = int((~scores_B.isfinite()).nonzero()[0])
        raise RewardError(
            f"reward {name!r} returned {scores_B[first].item()} for the response {rollout.responses[first]!r} "
            f"to {rollout.prompts[first]!r}"
        )
    return Scores(scores_B, {key: torch.as_tensor(value, dtype=torch.float32) for key, value in scores.columns.items()})


def without_eos(scores_B: Tensor, ended_B: Tensor, *, score: float | None, penalty: float) -> Tensor:
    """Responses that never ended get `score` instead (Huang et al. 2024, "EOS trick": −1), or lose `penalty` (TRL)."""
    replaced_B = scores_B - penalty if score is None else torch.full_like(scores_B, score)
    return torch.where(ended_B, scores_B, replaced_B)


def token_rewards(
    scores_B: Tensor, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor, beta: float, estimator: str = "k1"
) -> Tensor:
    """r_t = −β·k(log π(y_t) − log ref(y_t)), plus the score at the last response token, once.

    Σ_t r_t = score − β·Σ_t k_t (Ziegler et al. 2019, eq. 2; lm-human-preferences `train_policy.py`, compute_rewards).
    """
    log_ratio_BT = (logprobs_BT - ref_logprobs_BT).masked_fill(~mask_BT, 0.0)
    rewards_BT = (-beta * ESTIMATORS[estimator](log_ratio_BT)).masked_fill(~mask_BT, 0.0)
    last_B1 = mask_BT.sum(1, keepdim=True) - 1
    return rewards_BT.scatter_add(1, last_B1, scores_B[:, None].to(rewards_BT.dtype))
