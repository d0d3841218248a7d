"""Estimators of KL(π‖ref) from samples of π (Schulman 2020, "Approximating KL divergence")."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3", "abs", "full"]


def k1(log_ratio: Tensor) -> Tensor:
    """D = log π − log ref. Unbiased; the only one of them whose use in the reward gives the gradient of the KL."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """D²/2. Biased; as a loss its gradient is that of the reverse KL."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """e^(−D) − 1 + D. Unbiased and never negative; as a loss its gradient is that of the forward KL."""
    return (-log_ratio).exp() - 1 + log_ratio


def absolute(log_ratio: Tensor) -> Tensor:
    """|D|. Biased upwards (an option of several systems)."""
    return log_ratio.abs()


ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "abs": absolute}


def full(logits_NV: Tensor, ref_logits_NV: Tensor, temperature: float) -> Tensor:
    """Σ_v π(v) (log π(v) − log ref(v)) at each position, both at τ, nats per token, shape (N,) or (B, T).

    Exact given the tokens before; its sum over the tokens of a sample is what is left of k1's when the noise of each single
    token is averaged out (Rao-Blackwell). As a loss its gradient is that of the reverse KL at the states visited; in the
    reward a token does not pay for itself, only for where it leads, so that the gradient is not that of the KL.
    """
    logprobs_NV = (logits_NV / temperature).log_softmax(-1)
    return (logprobs_NV.exp() * (logprobs_NV - (ref_logits_NV / temperature).log_softmax(-1))).sum(-1)


def per_token(
    estimator: Estimator, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor, exact_BT: Tensor | None = None
) -> Tensor:
    """kl_BT by one of `ESTIMATORS` from the log-probs of the sampled tokens, or `exact_BT` itself for `full`."""
    if estimator == "full":
        return exact_BT
    return ESTIMATORS[estimator]((logprobs_BT - ref_logprobs_BT).masked_fill(~mask_BT, 0.0))


def sequence_kl(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """kl_B = Σ_t (log π − log ref), nats per sequence: what is logged and what the controller sees."""
    return (logprobs_BT - ref_logprobs_BT).masked_fill(~mask_BT, 0.0).sum(1)


def standard_error(kl_B: Tensor) -> Tensor:
    """Standard error of the batch mean; NaN for a single sequence."""
    return kl_B.std() / math.sqrt(len(kl_B)) if len(kl_B) > 1 else kl_B.new_tensor(math.nan)


def from_old(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """kl_B = Σ_t (ρ − 1 − log ρ), ρ = π/π_old: for samples of π_old unbiased for Σ_t KL(π_old‖π), and never negative.

    How far an update went, nats per sequence (Schulman 2020, k3; Schulman et al. 2017, section 4 adapts its penalty to it).
    """
    return k3((old_logprobs_BT - logprobs_BT).masked_fill(~mask_BT, 0.0)).sum(1)


def mean(kl_B: Tensor, mask_BT: Tensor, unit: Literal["sequence", "token"]) -> float:
    """What a controller is told: the mean over sequences, or over all tokens of the batch."""
    return kl_B.mean().item() if unit == "sequence" else (kl_B.sum() / mask_BT.sum()).item()
