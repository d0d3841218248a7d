"""How well a KL controller holds its target, and what that costs.

python analysis/kl_tracking.py RESULTS --target 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rlhf_lab.errors import in_one_sentence
from rlhf_lab_analysis.frames import REWARDS, groups, has_values, select
from rlhf_lab_analysis.markdown import markdown
from rlhf_lab_analysis.seed_statistics import mean_interval


def settling_step(kl: np.ndarray, target: float, tolerance: float) -> float:
    """The first step from which |KL − target| stays within `tolerance` × target to the end; NaN if it never does."""
    outside = np.flatnonzero(np.abs(kl - target) > tolerance * target)
    first = outside[-1] + 1 if outside.size else 0
    return float(first) if first < len(kl) else np.nan


def tracking(
    frame: pd.DataFrame, target: float, *, window: int = 5, tolerance: float = 0.25, hue: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """A row per arm, mean over seeds ± 95 % t-interval; KL in nats per sequence of the rollouts, mean over `window` steps.

    `held` is the mean KL of the second half of training, `error` the root mean square of KL − target there, `highest` the
    largest KL at any time, `settled` the step from which the KL stays within `tolerance` of the target (n of the seeds that
    do). Then the rewards of the second half, on validation prompts.
    """
    train, held_out = select(frame, split="train"), select(frame)
    table = []
    for group, evaluated in zip(groups(train, hue), groups(held_out, hue), strict=True):
        runs = [run["kl"].rolling(window, min_periods=1).mean().to_numpy() for _, run in group.rows.groupby("run_id")]
        halves = [kl[len(kl) // 2 :] for kl in runs]
        settled = [settling_step(kl, target, tolerance) for kl in runs]
        columns = {
            "held": [half.mean() for half in halves],
            "error": [np.sqrt(np.mean((half - target) ** 2)) for half in halves],
            "highest": [kl.max() for kl in runs],
            "settled": settled,
        }
        late = evaluated.rows[evaluated.rows["step"] > evaluated.rows["step"].max() / 2].groupby("run_id")
        columns |= {r.removeprefix("reward_"): late[r].mean() for r in REWARDS if has_values(evaluated.rows, r)}
        row: dict[str, object] = {"group": group.label, "n": len(runs), "did settle": int(np.isfinite(settled).sum())}
        for name, values in columns.items():
            interval = mean_interval(values)
            row |= {name: interval.mean, f"{name}_half_width": interval.half_width}
        table.append(row)
    return pd.DataFrame(table)


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print how well each arm held a KL target.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--target", type=float, required=True, metavar="NATS")
    options = parser.parse_args(argv)
    import rlhf_lab

    print(markdown(tracking(rlhf_lab.load(options.results), options.target)))


if __name__ == "__main__":
    sys.exit(main())
