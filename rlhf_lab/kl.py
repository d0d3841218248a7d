"""Estimators of KL(π‖ref) from samples of π (Schulman 2020, "Approximating KL divergence")."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor


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


def sequence_kl(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """kl_B = Σ_t (log π − log ref), nats per sequence: what is logged and what the controller sees."""
    return (logprobs_BT - ref_logprobs_BT).masked_fill(~mask_BT, 0.0).sum(1)


def standard_error(kl_B: Tensor) -> Tensor:
    """Standard error of the batch mean; NaN for a single sequence."""
    return kl_B.std() / math.sqrt(len(kl_B)) if len(kl_B) > 1 else kl_B.new_tensor(math.nan)
