"""Scores to token rewards: what happens to a score when there is no EOS, where it lands, and the KL beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab.contracts import Rollout, Scores
from rlhf_lab.errors import RewardError
from rlhf_lab.rl.not_finite import OnNaN


def checked(name: str, scores: Scores | Tensor, rollout: Rollout, on_nan: OnNaN = "fail") -> Scores:
    """The scores as fp32. Raises RewardError for the wrong number of scores or, under `fail`, one that is not finite."""
    scores = scores if isinstance(scores, Scores) else Scores(scores)
    scores_B = torch.as_tensor(scores.scores_B, dtype=torch.float32).detach().to(rollout.mask_BT.device)
    if scores_B.shape != (len(rollout),):
        raise RewardError(f"reward {name!r} returned scores of shape {tuple(scores_B.shape)} for {len(rollout)} responses")
    if on_nan == "fail" and not scores_B.isfinite().all():
        first = int((~scores_B.isfinite()).nonzero()[0])
        raise RewardError(
            f"reward {name!r} returned {scores_B[first].item()} for the response {rollout.responses[first]!r} "
            f"to {rollout.prompts[first]!r}"
        )
    return Scores(scores_B, {key: torch.as_tensor(value, dtype=torch.float32) for key, value in scores.columns.items()})


def undisturbed(scorer: Callable[[Rollout], Any], rollout: Rollout) -> Any:
    """The scores of a scorer that is afterwards as it was: running moments learn from what is trained on, and nothing else."""
    if not hasattr(scorer, "state_dict"):
        return scorer(rollout)
    before = scorer.state_dict()
    scores = scorer(rollout)
    scorer.load_state_dict(before)
    return scores


def without_eos(scores_B: Tensor, ended_B: Tensor, *, score: float | None, penalty: float) -> Tensor:
    """Responses that never ended get `score` instead (Huang et al. 2024, "EOS trick": −1), or lose `penalty` (TRL)."""
    replaced_B = scores_B - penalty if score is None else torch.full_like(scores_B, score)
    return torch.where(ended_B, scores_B, replaced_B)


def trained(rollout: Rollout, truncation: str) -> Tensor:
    """trained_B: the sequences that the loss hears; with `mask` not those that were cut off (Yu et al. 2025, section 3.4)."""
    return rollout.ended_B if truncation == "mask" else torch.ones_like(rollout.ended_B)


def with_states(rollout: Rollout, score_at: Literal["eos", "post_eos", "last"], length: float) -> Rollout:
    """The rollout with the places that have a reward and a value.

    eos: the response tokens, so the score is at the last one. post_eos: also the place after a response of fewer than
    `length` tokens, where the score then is and the critic says what it expects knowing the whole response (Huang et al.
    2024 and TRL; with their fixed length a response that fills it has its score at the last token). last: all `length`
    places, the score in the last one (lm-human-preferences, where the places after the end hold further tokens; here
    nothing is said there, see `held`).
    """
    if score_at == "eos":
        return rollout
    mask_BT = rollout.mask_BT
    wide = {}
    if mask_BT.shape[1] < length:
        more = (0, 1 if score_at == "post_eos" else length - mask_BT.shape[1])
        names = ("response_ids_BT", "mask_BT", "logprobs_BT")
        wide = {name: torch.nn.functional.pad(x, more) for name in names if (x := getattr(rollout, name)) is not None}
        mask_BT = wide["mask_BT"]
    place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    states_BT = place_T <= mask_BT.sum(1, keepdim=True) if score_at == "post_eos" else torch.ones_like(mask_BT)
    return replace(rollout, **wide, states_BT=states_BT)


def held(values_BT: Tensor, rollout: Rollout) -> Tensor:
    """V_t = V_min(t, L): after the place that follows the end nothing more is said, so nothing more is known."""
    if rollout.states_BT is None:
        return values_BT
    last_BT = torch.arange(values_BT.shape[-1], device=values_BT.device).minimum(rollout.mask_BT.sum(1, keepdim=True))
    return values_BT.gather(-1, last_BT.expand_as(values_BT))


def to_go(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Σ_{s ≥ t} x_s over the response tokens, 0 in masked places."""
    sums_BT = x_BT.masked_fill(~mask_BT, 0.0).flip(1).cumsum(1).flip(1)
    return sums_BT.masked_fill(~mask_BT, 0.0)


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, beta: float, states_BT: Tensor | None = None) -> Tensor:
    """r_t = −β·kl_t, plus the score, once: at the last response token, or the last of `states_BT`.

    Σ_t r_t = score − β·Σ_t kl_t (Ziegler et al. 2019, eq. 2; lm-human-preferences `train_policy.py`, compute_rewards).
    """
    rewards_BT = (-beta * kl_BT).masked_fill(~mask_BT, 0.0)
    last_B1 = (mask_BT if states_BT is None else states_BT).sum(1, keepdim=True) - 1
    return rewards_BT.scatter_add(1, last_B1, scores_B[:, None].to(rewards_BT.dtype))
