"""Result tables made from known formulas, in the layout that runs write."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

STEPS = (0, 2, 5, 8, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)


def gao(d, alpha, beta):
    """R = d (α − β log d) (Gao et al. 2022, eq. 2), R(0) = 0."""
    return np.array([0.0 if v == 0 else v * (alpha - beta * np.log(v)) for v in np.atleast_1d(d)])


def run_rows(run, arm, seed, final_kl, *, axis=None, noise=0.08, gold=True):
    rng = np.random.default_rng([run, seed])
    kl = final_kl * (1 - np.exp(-np.array(STEPS) / 35)) / (1 - np.exp(-100 / 35)) * rng.normal(1, noise)
    d = np.sqrt(kl)
    start = np.array(STEPS) == 0
    jitter = np.where(start, 0, noise)
    frame = pd.DataFrame(
        {
            "run_id": f"{run:04x}{seed}",
            "arm": arm,
            "seed": seed,
            "stage": "rl",
            "step": STEPS,
            "split": "validation",
            "kl": kl,
            "reward_proxy": gao(d, 1.15, 0.2) + jitter * rng.normal(size=len(STEPS)),
            "reward_gold": gao(d, 1.1, 0.9) + jitter * rng.normal(size=len(STEPS)) if gold else np.nan,
            "entropy": 2 - kl / 30,
            "response_length": 15 + 2 * d + rng.normal(size=len(STEPS)),
            "beta": np.nan,
        }
    )
    train = frame.assign(split="train", beta=axis["rl.kl.beta"] if axis else 0.02, kl=kl * rng.normal(1, 0.05, len(STEPS)))
    table = pd.concat([frame, train], ignore_index=True)
    return table.assign(**axis) if axis else table


def best_of_n_rows(frame, gold=True):
    n = 2.0 ** np.arange(0, 9)
    kl = np.log(n) - (n - 1) / n
    d = np.sqrt(kl)
    rows = pd.DataFrame(
        {
            "stage": "best_of_n",
            "step": 0,
            "split": "validation",
            "n": n,
            "kl": kl,
            "reward_proxy": d * (1.3 - 0.1 * d),
            "reward_gold": d * (0.8 - 0.12 * d) if gold else np.nan,
            "reward_proxy_se": 0.03,
            "reward_gold_se": 0.05,
        }
    )
    keys = ["run_id", "arm", "seed", *[c for c in frame if "." in c]]
    return frame[keys].drop_duplicates().merge(rows, how="cross")


def with_best_of_n(frame, gold=True):
    return pd.concat([frame, best_of_n_rows(frame, gold)], ignore_index=True)


def beta_sweep(seeds=(0, 1, 2), gold=True):
    """3 values of β × seeds, and best-of-n, as a table of steps joined with its axis."""
    parts = [
        run_rows(i, "base", seed, kl, axis={"rl.kl.beta": beta}, gold=gold)
        for i, (beta, kl) in enumerate([(1.0, 0.5), (0.2, 5.0), (0.02, 35.0)])
        for seed in seeds
    ]
    return with_best_of_n(pd.concat(parts, ignore_index=True), gold)


def arm_sweep(arms=8, seeds=(0, 1, 2)):
    names = ["gae", "monte_carlo", "rloo", "grpo", "adaptive_kl", "pid_kl", "ppo_ptx", "no_critic"][:arms]
    parts = [run_rows(100 + i, arm, seed, 4.0 + 4 * i) for i, arm in enumerate(names) for seed in seeds]
    return with_best_of_n(pd.concat(parts, ignore_index=True))


def single():
    return run_rows(7, "base", 0, 12.0)


@pytest.fixture
def sweep():
    return beta_sweep()


@pytest.fixture
def eight_arms():
    return arm_sweep()


@pytest.fixture
def one_run():
    return single()


@pytest.fixture
def without_gold():
    return beta_sweep(gold=False)


GOLD = {  # arm → seed → gold at steps 0, 10, 20
    "gae": {0: [0.0, 1.0, 0.5], 1: [0.0, 2.0, 0.7], 2: [0.0, 0.0, 2.4]},
    "rloo": {0: [0.0, 0.4, 0.6], 1: [0.0, 0.9, 1.0], 2: [0.0, 1.1, 2.2]},
}


@pytest.fixture
def arms():
    return pd.DataFrame(
        [
            {
                "run_id": f"{arm}{seed}",
                "arm": arm,
                "seed": seed,
                "stage": "rl",
                "split": "validation",
                "step": step,
                "kl": 0.1 * step + seed,
                "reward_proxy": 0.2 * step,
                "reward_gold": gold,
            }
            for arm, seeds in GOLD.items()
            for seed, curve in seeds.items()
            for step, gold in zip([0, 10, 20], curve, strict=True)
        ]
    )
