"""Statistics over seeds, and the two forms that relate reward to KL (Gao et al. 2022).

Everything takes plain arrays. n is always the number of seeds with a finite value, and is always returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy
from scipy.stats import t as student_t


class Interval(NamedTuple):
    """A mean with a confidence interval from n values; the interval is NaN for n < 2."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def t_half_width(std: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> NDArray[np.float64] | np.float64:
    """t_{n−1} · s / √n, with s the standard deviation that divides by n − 1; NaN for n < 2."""
    std, n = np.asarray(std, dtype=float), np.asarray(n, dtype=float)
    enough = np.where(n >= 2, n, np.nan)
    return student_t.ppf((1 + confidence) / 2, enough - 1) * std / np.sqrt(enough)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean and t-interval of the finite values."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    std = finite.std(ddof=1) if finite.size > 1 else np.nan
    mean, half = float(finite.mean()), float(t_half_width(std, finite.size, confidence))
    return Interval(mean, mean - half, mean + half, int(finite.size))


def mean_by_step(frame: pd.DataFrame, column: str, confidence: float = 0.95) -> pd.DataFrame:
    """Per step: mean over the runs, low and high of the t-interval, n. Indexed by step, ascending."""
    over_runs = frame.groupby("step")[column].agg(["mean", "std", "count"]).sort_index()
    half = t_half_width(over_runs["std"], over_runs["count"], confidence)
    return pd.DataFrame(
        {"mean": over_runs["mean"], "low": over_runs["mean"] - half, "high": over_runs["mean"] + half, "n": over_runs["count"]}
    )


def bootstrap_interval(
    items: Sequence, statistic: Callable[[list], ArrayLike], *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap: low and high of `statistic` over resamples of `items` (one item per seed).

    Coarse for few items: of n seeds there are only C(2n−1, n) different resamples, 10 for n = 3. NaN for n < 2.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(items), size=(draws, len(items)))
    results = np.array([statistic([items[i] for i in pick]) for pick in picks], dtype=float)
    tail = (1 - confidence) / 2
    low, high = np.quantile(results, [tail, 1 - tail], axis=0)
    return (low, high) if len(items) > 1 else (np.full_like(low, np.nan), np.full_like(high, np.nan))


# ---------------------------------------------------------------------------------------------------------------
# Reward against d = √KL (Gao et al. 2022, eq. 1 and 2). R is the reward above its value at d = 0.


def reward_best_of_n(d: ArrayLike, alpha: float, beta: float) -> NDArray[np.float64]:
    """R_bon(d) = d (α − β d)."""
    d = np.asarray(d, dtype=float)
    return d * (alpha - beta * d)


def reward_rl(d: ArrayLike, alpha: float, beta: float) -> NDArray[np.float64]:
    """R_RL(d) = d (α − β log d), and 0 at d = 0. Its slope is infinite there: not meant for d near 0."""
    d = np.asarray(d, dtype=float)
    return d * alpha - beta * xlogy(d, d)


FORMS = {"best_of_n": lambda d: d * d, "rl": lambda d: xlogy(d, d)}


class GaoFit(NamedTuple):
    """Least-squares α and β of one form, with percentile intervals over seeds; d in nats^½."""

    form: str
    alpha: float
    beta: float
    alpha_interval: tuple[float, float]
    beta_interval: tuple[float, float]
    n: int


def least_squares_gao(d: ArrayLike, reward: ArrayLike, form: str) -> NDArray[np.float64]:
    """(α, β) that minimise Σ (R − α d + β g(d))², with g(d) = d² (best-of-n) or d log d (RL). Both forms are linear."""
    d, reward = np.asarray(d, dtype=float), np.asarray(reward, dtype=float)
    finite = np.isfinite(d) & np.isfinite(reward)
    design = np.stack([d[finite], -FORMS[form](d[finite])], axis=1)
    if np.linalg.matrix_rank(design) < 2:
        return np.full(2, np.nan)
    return np.linalg.lstsq(design, reward[finite], rcond=None)[0]


def fit_gao(curves: Sequence[tuple[ArrayLike, ArrayLike]], form: str, *, draws: int = 1000, seed: int = 0) -> GaoFit:
    """Fit one form to the curves (d, R) of all seeds together; intervals from resampling whole seeds."""

    def pooled(chosen: Sequence[tuple[ArrayLike, ArrayLike]]) -> NDArray[np.float64]:
        return least_squares_gao(np.concatenate([d for d, _ in chosen]), np.concatenate([r for _, r in chosen]), form)

    alpha, beta = pooled(curves)
    low, high = bootstrap_interval(curves, pooled, draws=draws, seed=seed)
    interval_alpha, interval_beta = ((float(a), float(b)) for a, b in zip(low, high, strict=True))
    return GaoFit(form, float(alpha), float(beta), interval_alpha, interval_beta, len(curves))
