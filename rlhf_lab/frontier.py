"""The reward–KL frontier: the highest reward that any policy can have at a given KL from the reference.

It is drawn by the tilted policies π_β ∝ ref · e^{r/β} (Rafailov et al. 2023, eq. 4); for several prompts with one β for all,
KL and reward being means over the prompts. In a world that can be enumerated it is exact. In others it is estimated by
giving samples of the reference the weights e^{r/β}, that is, as the exact frontier of the samples' own law; which is worth
something only where enough of the weights count, and is blank elsewhere.

X prompts, N responses to each, J values of β.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicHermiteSpline
from scipy.special import log_softmax, logsumexp

from rlhf_lab.errors import RewardError

Array = NDArray[np.float64]

# Effective samples per prompt, under which an estimate is left blank. At 30, for normal rewards and 256 samples, what is left
# of the bias is 0.003 standard deviations of the reward, a quarter of the standard error with 64 prompts; at 10 it is as large.
MIN_ESS = 30.0
DECADES, POINTS = 3.0, 241  # the default β: so many decades to both sides of the standard deviation of the reward


@dataclass(frozen=True)
class Frontier:
    """Points of the frontier, KL ascending, in nats per sequence; `reward_at_0` and `slope_at_0` are R and dR/d√KL at KL 0.

    `ess_J` is the effective number of samples per prompt and `reward_se_J` the standard error of the reward at a given KL,
    from the sampling of the responses to these prompts; infinity and 0 where nothing was sampled.
    """

    reward_at_0: float
    slope_at_0: float
    beta_J: Array
    kl_J: Array
    reward_J: Array
    reward_se_J: Array
    ess_J: Array

    def reward_optimal_at_kl(self, kl: ArrayLike) -> Array:
        """The highest possible mean reward at each KL; NaN beyond the last point. A KL below 0, an estimate, counts as 0.

        Hermite interpolation in d = √KL with the slopes that are known: dR/dKL = β, so dR/dd = 2dβ.
        """
        d = np.sqrt(np.clip(np.asarray(kl, dtype=float), 0.0, None))
        d_J = np.sqrt(np.clip(self.kl_J, 0.0, None))
        rises_J = np.diff(d_J, prepend=0.0) > 1e-6
        if not rises_J.any():
            return np.where(d == 0, self.reward_at_0, np.nan)
        d_J, reward_J, slope_J = d_J[rises_J], self.reward_J[rises_J], (2 * d_J * self.beta_J)[rises_J]
        knots, values, slopes = np.r_[0.0, d_J], np.r_[self.reward_at_0, reward_J], np.r_[self.slope_at_0, slope_J]
        return CubicHermiteSpline(knots, values, slopes, extrapolate=False)(d)

    def gap(self, kl: ArrayLike, reward: ArrayLike) -> Array:
        """How much more reward was to be had at that KL; below 0 by sampling error only."""
        return self.reward_optimal_at_kl(kl) - np.asarray(reward, dtype=float)

    def table(self) -> pd.DataFrame:
        """A row per point: beta, kl, reward_proxy, reward_proxy_se, ess."""
        columns = {"beta": self.beta_J, "kl": self.kl_J, "reward_proxy": self.reward_J}
        return pd.DataFrame({**columns, "reward_proxy_se": self.reward_se_J, "ess": self.ess_J})


def from_table(table: pd.DataFrame) -> Frontier:
    """The frontier whose `table()` this is, default β; from its first point, next to KL 0, follows where it starts.

    There R = R(0) + √(2 Var r) d and d = √(Var r / 2) / β, so √(2 Var r) = 2dβ.
    """
    columns = [table[c].to_numpy(float) for c in ("beta", "kl", "reward_proxy", "reward_proxy_se", "ess")]
    beta, kl, reward = (column[0] if len(column) else np.nan for column in columns[:3])
    return Frontier(float(reward - 2 * kl * beta), float(2 * np.sqrt(kl) * beta), *columns)


def exact_frontier(ref_logprobs_XN: ArrayLike, rewards_XN: ArrayLike, betas: ArrayLike | None = None) -> Frontier:
    """The frontier where all N responses are known with their probability under the reference; (N) is one prompt."""
    log_law_XN, rewards_XN = np.atleast_2d(np.asarray(ref_logprobs_XN, dtype=float)), _finite(rewards_XN)
    beta_J = _descending(log_law_XN, rewards_XN, betas)
    kl_J, reward_J, _ = _points(log_law_XN, rewards_XN, beta_J)
    return Frontier(*_start(log_law_XN, rewards_XN), beta_J, kl_J, reward_J, np.zeros_like(kl_J), np.full_like(kl_J, np.inf))


def estimated_frontier(rewards_XN: ArrayLike, betas: ArrayLike | None = None, *, min_ess: float = MIN_ESS) -> Frontier:
    """The frontier from the rewards of N samples of the reference for each of X prompts (self-normalised importance weights).

    With ŵ the normalised weights of a prompt: reward Σ ŵ r, KL Σ ŵ log(N ŵ), ESS 1 / Σ ŵ² (Owen 2013, eq. 9.13), of which
    the harmonic mean over prompts counts. At a given KL the frontier is min_β β·KL + β log mean e^{r/β}, concave in the
    law of the samples: so the plain estimate is too low on average (Jensen), to first order by β/2 · (1/ESS − 1/N), which is
    added back; and its standard error is β √((1/ESS − 1/N) / X). From the first point with an ESS under `min_ess` on there
    is no estimate.
    """
    rewards_XN = _finite(rewards_XN)
    n_prompts, n = rewards_XN.shape
    log_law_XN = np.full_like(rewards_XN, -np.log(n))
    beta_J = _descending(log_law_XN, rewards_XN, betas)
    kl_J, reward_J, ess_J = _points(log_law_XN, rewards_XN, beta_J)
    poor_J = np.logical_or.accumulate(ess_J < min_ess)
    beta_J, kl_J, reward_J, ess_J = beta_J[~poor_J], kl_J[~poor_J], reward_J[~poor_J], ess_J[~poor_J]
    variance_J = np.clip(1 / ess_J - 1 / n, 0.0, None)
    corrected_J, error_J = reward_J + beta_J / 2 * variance_J, beta_J * np.sqrt(variance_J / n_prompts)
    return Frontier(*_start(log_law_XN, rewards_XN), beta_J, kl_J, corrected_J, error_J, ess_J)


def _points(log_law_XN: Array, rewards_XN: Array, beta_J: Array) -> tuple[Array, Array, Array]:
    """KL, reward and ESS at each β, of the tilted law."""
    return tuple(np.array([_tilted(log_law_XN, rewards_XN, beta) for beta in beta_J]).reshape(-1, 3).T)


def _tilted(log_law_XN: Array, rewards_XN: Array, beta: float) -> tuple[float, float, float]:
    """KL(π_β‖law) and E[r], means over the prompts, and the effective number of responses, the harmonic mean."""
    tilted_XN = log_softmax(log_law_XN + rewards_XN / beta, axis=1)
    p_XN = np.exp(tilted_XN)
    log_ratio_XN = np.where(p_XN > 0, tilted_XN - log_law_XN, 0.0)
    return (p_XN * log_ratio_XN).sum(1).mean(), (p_XN * rewards_XN).sum(1).mean(), 1 / np.square(p_XN).sum(1).mean()


def _start(log_law_XN: Array, rewards_XN: Array) -> tuple[float, float]:
    """E[r], and the slope of R(√KL) at 0: √(2 Var r), the mean over prompts of the variance within a prompt."""
    p_XN = np.exp(log_law_XN - logsumexp(log_law_XN, axis=1, keepdims=True))
    mean_X1 = (p_XN * rewards_XN).sum(1, keepdims=True)
    variance_X = (p_XN * np.square(rewards_XN - mean_X1)).sum(1)
    return float(mean_X1.mean()), float(np.sqrt(2 * variance_X.mean()))


def _descending(log_law_XN: Array, rewards_XN: Array, betas: ArrayLike | None) -> Array:
    """The values of β, from weak tilt to strong."""
    if betas is not None:
        return np.sort(np.asarray(betas, dtype=float))[::-1]
    spread = _start(log_law_XN, rewards_XN)[1] / np.sqrt(2) or 1.0
    return spread * np.logspace(DECADES, -DECADES, POINTS)


def _finite(rewards_XN: ArrayLike) -> Array:
    rewards_XN = np.atleast_2d(np.asarray(rewards_XN, dtype=float))
    if not np.isfinite(rewards_XN).all():
        raise RewardError("a frontier needs finite rewards, but one of the samples has none: check the reward source")
    return rewards_XN
