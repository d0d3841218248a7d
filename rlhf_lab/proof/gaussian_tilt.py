"""Over-optimisation in closed form: a Gaussian whose mean moves along what the proxy likes.

A response is a number z, the reference is N(0, 1), and the policy at distance d = √KL is N(√2 d, 1): KL is half the square
of the mean. With proxy(z) = p z/√2 and gold(z) = α z/√2 − c (z² − 1)/2 their expectations under that policy are

    E[proxy] = p d        E[gold] = d (α − c d)

exactly, which is the best-of-n form of Gao et al. 2022 (eq. 1) with its peak at d = α/2c. The policies are the tilted ones,
π ∝ ref · e^{proxy/β} with β = p/2d, so that p d is also the reward–KL frontier of the proxy: nothing lies above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad
from scipy.stats import norm

from rlhf_lab.best_of_n import best_of_n_kl
from rlhf_lab.store.files import digest
from rlhf_lab.streams import stream

Array = NDArray[np.float64]


class Tilt(NamedTuple):
    """p, α and c of the equations above; rewards per nats^½, and per nat for c."""

    proxy_slope: float = 1.0
    alpha: float = 1.0
    c: float = 0.2

    def proxy(self, z: ArrayLike) -> Array:
        return self.proxy_slope * np.asarray(z) / math.sqrt(2)

    def gold(self, z: ArrayLike) -> Array:
        return self.alpha * np.asarray(z) / math.sqrt(2) - self.c * (np.square(z) - 1) / 2

    def beta(self, d: ArrayLike) -> Array:
        """The KL coefficient whose optimum stands at distance d: p / 2d."""
        with np.errstate(divide="ignore"):
            return np.divide(self.proxy_slope, 2 * np.asarray(d, dtype=float))


STANDARD = Tilt()


def steps(
    tilt: Tilt = STANDARD,
    distances: Sequence[float] = tuple(np.linspace(0.0, 5.0, 21)),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    samples: int | None = None,
    n: Sequence[int] = (),
) -> pd.DataFrame:
    """A steps table of one run per seed that walks through `distances`, as `rlhf_lab.load` would give it.

    Without `samples` every number is the expectation. With them KL, proxy and gold are means over so many draws of z, the
    KL by its estimator k1, drawn from stream (seed, "gaussian_tilt", step). Each value of `n` adds a row of best-of-n.
    """
    rows = [_row(tilt, step, d, seed, samples) for seed in seeds for step, d in enumerate(distances)]
    rows += [_best_of_n_row(tilt, size, seed) for seed in seeds for size in n]
    return pd.DataFrame(rows)


def _row(tilt: Tilt, step: int, d: float, seed: int, samples: int | None) -> dict[str, float | str]:
    if samples is None:
        kl, proxy, gold = d**2, tilt.proxy_slope * d, d * (tilt.alpha - tilt.c * d)
    else:
        z = math.sqrt(2) * d + stream(seed, "gaussian_tilt", step).standard_normal(samples)
        kl, proxy, gold = (math.sqrt(2) * d * z - d**2).mean(), tilt.proxy(z).mean(), tilt.gold(z).mean()
    return _columns(tilt, seed, "rl", step) | {
        "kl": kl,
        "reward_proxy": proxy,
        "reward_gold": gold,
        "beta": float(tilt.beta(d)),
        "reward_optimal_at_kl": tilt.proxy_slope * math.sqrt(max(0.0, kl)),
    }


def _best_of_n_row(tilt: Tilt, n: int, seed: int) -> dict[str, float | str]:
    """Best of n under the proxy: the law n φ(z) Φ(z)^{n−1}, whose KL is log n − (n − 1)/n exactly."""

    def expected(f: Callable[[float], Array]) -> float:
        return quad(lambda z: f(z) * n * norm.pdf(z) * norm.cdf(z) ** (n - 1), -12, 12)[0]

    kl = float(best_of_n_kl(n))
    return _columns(tilt, seed, "best_of_n", 0) | {
        "n": n,
        "kl": kl,
        "reward_proxy": expected(tilt.proxy),
        "reward_gold": expected(tilt.gold),
        "reward_optimal_at_kl": tilt.proxy_slope * math.sqrt(kl),
    }


def _columns(tilt: Tilt, seed: int, stage: str, step: int) -> dict[str, float | str]:
    keys = {"run_id": digest([*tilt, seed]), "arm": "gaussian_tilt", "seed": seed}
    return {**keys, "stage": stage, "step": step, "split": "validation"}
