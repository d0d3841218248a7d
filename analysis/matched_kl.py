"""Rewards at equal distance from the SFT policy: the fair way to compare arms that went different ways.

python analysis/matched_kl.py RESULTS [--at 2 5 10] [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlhf_lab.errors import in_one_sentence
from rlhf_lab_analysis import style
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
            name = f"{_short(reward)} at {level:g} nats"
            row |= {name: interval.mean, f"{name}_half_width": interval.half_width}
    return row


def dots(
    frame: pd.DataFrame,
    levels: Sequence[float] = LEVELS,
    *,
    hue: str | Sequence[str] | None = None,
    stage: str = "rl",
    width: float = 1.25 * style.TEXT_WIDTH,
) -> Figure:
    """A row per arm or axis value, a panel per reward, and in it a point per KL with its 95 % t-interval over seeds.

    For more arms than lines can tell apart. A point is left out where no seed reached that KL.
    """
    table = at_kl(frame, levels, hue=hue, stage=stage)
    rewards = [reward for reward in REWARDS if f"{_short(reward)} at {levels[0]:g} nats" in table]
    table = table[table[[f"{_short(r)} at {level:g} nats" for r in rewards for level in levels]].notna().any(axis=1)]
    with style.look():
        figure = style.new_figure(width, 0.17 * len(table) + 1.1)
        panels = figure.subplots(1, len(rewards), sharey=True, squeeze=False)[0]
        chosen = style.styles(len(levels))
        for panel, reward in zip(panels, rewards, strict=True):
            for offset, level, look in zip(np.linspace(-0.2, 0.2, len(levels)), levels, chosen, strict=True):
                _draw_level(panel, table, f"{_short(reward)} at {level:g} nats", offset, look)
            panel.set(title=f"{_short(reward)} reward", xlabel="score")
            panel.set_yticks(range(len(table)), table["group"])
        panels[0].invert_yaxis()
        handles = [
            Line2D([], [], color=look.color, marker=look.marker, linestyle="", markersize=4, label=f"{level:g} nats")
            for level, look in zip(levels, chosen, strict=True)
        ]
        caption = "where a run first reaches a KL to SFT of …; mean over seeds, 95 % t-interval"
        style.legend_below(figure, handles, caption)
    return figure


def _short(reward: str) -> str:
    return reward.removeprefix("reward_")


def _draw_level(panel: Axes, table: pd.DataFrame, column: str, offset: float, look: style.Style) -> None:
    where = np.arange(len(table)) + offset
    half = table[f"{column}_half_width"].fillna(0.0)
    panel.errorbar(
        table[column], where, xerr=half, fmt=look.marker, color=look.color, markersize=3.5, elinewidth=0.8, capsize=0
    )


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print rewards at equal KL from a results folder.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--at", type=float, nargs="+", default=LEVELS, metavar="NATS")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also draw the table, into this folder")
    options = parser.parse_args(argv)
    import rlhf_lab

    frame = rlhf_lab.load(options.results)
    print(markdown(at_kl(frame, options.at)))
    if options.out:
        print(*style.save(dots(frame, options.at), options.out, "matched_kl"), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
