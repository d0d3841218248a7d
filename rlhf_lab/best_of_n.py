"""Best-of-n: what the best of n samples under the proxy is worth, and how far from the sampler it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from rlhf_lab.errors import RewardError, SpecError


def best_of_n_weights(n_samples: int, n: int) -> NDArray[np.float64]:
    """w_i = C(i−1, n−1) / C(N, n), i = 1 … N: the chance that the i-th lowest of N samples is the best of n of them.

    The n samples are drawn from the N without replacement; the weights sum to 1. Log-gamma keeps N in the thousands finite.
    """
    rank = np.arange(n, n_samples + 1)
    log_ways = gammaln(rank) - gammaln(n) - gammaln(rank - n + 1)
    log_all = gammaln(n_samples + 1) - gammaln(n + 1) - gammaln(n_samples - n + 1)
    return np.concatenate([np.zeros(n - 1), np.exp(log_ways - log_all)])


def best_of_n(proxy_N: ArrayLike, value_N: ArrayLike, n: int) -> float:
    """Expected value of the sample that the proxy likes best out of n, from N ≥ n scored samples of one prompt.

    Unbiased: the mean over all subsets of size n (Nakano et al. 2021, appendix I). Samples with equal proxy are equally
    likely to be taken. With `value_N` the proxy itself this is the expected proxy of best-of-n; with gold scores, its gold.
    """
    proxy_N, value_N = np.asarray(proxy_N, dtype=float), np.asarray(value_N, dtype=float)
    if proxy_N.ndim != 1 or proxy_N.shape != value_N.shape:
        raise ValueError(f"proxy and value must be two lists of one length, not of shapes {proxy_N.shape} and {value_N.shape}")
    if not 1 <= n <= proxy_N.size:
        raise SpecError(f"best-of-{n} needs n between 1 and the number of samples per prompt, which is {proxy_N.size}")
    if np.isnan(proxy_N).any():
        raise RewardError("a proxy score of a best-of-n sample is NaN, so no best sample can be named: check the reward source")
    _, tie_N, size_U = np.unique(proxy_N, return_inverse=True, return_counts=True)
    weight_U = np.add.reduceat(best_of_n_weights(proxy_N.size, n), np.cumsum(size_U) - size_U)
    return float(np.sum((weight_U / size_U)[tie_N] * value_N))


def best_of_n_kl(n: ArrayLike) -> NDArray[np.float64] | np.float64:
    """KL(best-of-n ‖ sampler) = log n − (n − 1)/n, in nats per sequence (Stiennon et al. 2020, appendix G.3).

    Exact where the proxy has no ties, an upper bound where it has (Beirami et al. 2024).
    """
    n = np.asarray(n, dtype=float)
    return (np.log(n) - (n - 1) / n)[()]


def accepted(reward_N: ArrayLike, beta: float, uniform_N: ArrayLike) -> NDArray[np.bool_]:
    """Which of N samples of π rejection sampling keeps: each with probability e^{(r − max r)/β}.

    What is kept follows π* ∝ π e^{r/β} as N grows; with few samples max r is too low, and the kept ones are too near to π
    (Liu et al. 2024, RSO, algorithm 1, in one pass).
    """
    reward_N = np.asarray(reward_N, dtype=float)
    return np.asarray(uniform_N) < np.exp((reward_N - reward_N.max()) / beta)
