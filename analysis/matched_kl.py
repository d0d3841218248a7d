"""Rewards at equal distance from the SFT policy: the fair way to compare arms that went different ways.

python analysis/matched_kl.py RESULTS [--at 2 5 10]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rlhf_lab.errors import LabError
from rlhf_lab_analysis.frames import REWARDS, best_of_n_curves, groups, has_values, optimum_curve, select
from rlhf_lab_analysis.markdown import markdown
from rlhf_lab_analysis.seed_statistics import mean_interval

LEVELS = (2.0, 5.0, 10.0)  # nats per sequence


def first_crossing(run: pd.DataFrame, column: str, level: float) -> float:
    """The column where the run's KL first reaches `level`, on the line between two evaluations; NaN if it never does."""
    kl, values = run["kl"].to_numpy(float), run[column].to_numpy(float)
    reached = np.flatnonzero(kl >= level)
    if not reached.size:
        return np.nan
    after = reached[0]
    if after == 0 or kl[after] == level:
        return float(values[after])
    share = (level - kl[after - 1]) / (kl[after] - kl[after - 1])
    return float(values[after - 1] + share * (values[after] - values[after - 1]))


def at_kl(
    frame: pd.DataFrame, levels: Sequence[float] = LEVELS, *, hue: str | Sequence[str] | None = None, stage: str = "rl"
) -> pd.DataFrame:
    """A row per arm or axis value: n, and each reward at each KL, mean over the seeds that reached it ± 95 % t-interval.

    `reached` counts those seeds per level. Best-of-n from SFT, and the highest proxy that is possible, stand below where
    the table has them.
    """
    rows = select(frame, stage)
    cut = groups(rows, hue)
    rewards = [reward for reward in REWARDS if has_values(rows, reward)]
    table = [{"group": group.label, **_of_runs([r for _, r in group.rows.groupby("run_id")], rewards, levels)} for group in cut]
    for number, curve in best_of_n_curves(frame, cut):
        name = "best of n (SFT)" if number is None else f"best of n, {cut[number].label}"
        table.append({"group": name, **_of_runs([curve], rewards, levels)})
    if (optimum := optimum_curve(frame)) is not None:
        table.append({"group": "highest possible (estimate)", **_of_runs([optimum], ["reward_proxy"], levels)})
    return pd.DataFrame(table)


def _of_runs(runs: Sequence[pd.DataFrame], rewards: Sequence[str], levels: Sequence[float]) -> dict[str, object]:
    reached = [sum(run["kl"].max() >= level for run in runs) for level in levels]
    row: dict[str, object] = {"reached": "/".join(map(str, reached)) + f" of {len(runs)}"}
    for reward in rewards:
        for level in levels:
            interval = mean_interval([first_crossing(run, reward, level) for run in runs])
            name = f"{reward.removeprefix('reward_')} at {level:g} nats"
            row |= {name: interval.mean, f"{name}_half_width": interval.half_width}
    return row


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print rewards at equal KL from a results folder.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--at", type=float, nargs="+", default=LEVELS, metavar="NATS")
    options = parser.parse_args(argv)
    import rlhf_lab

    try:
        print(markdown(at_kl(rlhf_lab.load(options.results), options.at)))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
