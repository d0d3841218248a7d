"""Statistics over the places of a mask. What stands elsewhere, NaN included, changes nothing."""

from __future__ import annotations

from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked places; NaN where there are none."""
    return x.masked_fill(~mask, 0.0).sum() / mask.sum()


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, ddof: int = 0, eps: float = 1e-8) -> Tensor:
    """(x − mean) · rsqrt(var + eps) over the masked places, 0 elsewhere; with `shift_mean=False` the mean stays.

    `ddof=0` is lm-human-preferences and Huang et al. 2024, `ddof=1` is TRL and verl. Rewards are whitened without
    shifting the mean (their mean says whether to stop early), advantages with.
    """
    mean = masked_mean(x, mask)
    centred = (x - mean).masked_fill(~mask, 0.0)
    variance = centred.square().sum() / (mask.sum() - ddof)
    white = centred * (variance + eps).rsqrt()
    return white if shift_mean else (white + mean).masked_fill(~mask, 0.0)
