"""Where each run ended, on the plane of KL and reward: one point per run, as Rafailov et al. 2023 compare methods (figure 2).

python analysis/endpoints.py RESULTS [--out DIR]
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlhf_lab.errors import DataError, in_one_sentence
from rlhf_lab_analysis import style
from rlhf_lab_analysis.frames import REWARDS, best_of_n_curves, groups, has_values, select
from rlhf_lab_analysis.reward_vs_kl import X_LABELS, Y_LABELS, best_of_n_handles, distance, draw_best_of_n


def endpoints(
    frame: pd.DataFrame,
    x: str = "sqrt_kl",
    hue: str | Sequence[str] | None = ("arm",),
    *,
    stage: str = "rl",
    unit: str = "score",
    width: float = style.TEXT_WIDTH,
    near: float = 10.0,
) -> Figure:
    """Proxy and gold at the last step of each run, on validation prompts, against √KL or KL.

    Runs of a group that differ in an axis (its β) spread along the frontier that it reaches. The second row shows the runs
    that ended within `near` nats, where others ended beyond. Best-of-n from SFT is drawn as in the frontier.
    """
    rows = select(frame, stage)
    rewards = [reward for reward in REWARDS if has_values(rows, reward)]
    if not rewards:
        raise DataError(f"the validation rows of stage '{stage}' hold no reward, so there is nothing to draw")
    last = rows[rows["step"] == rows.groupby("run_id")["step"].transform("max")]
    cut = groups(last, hue)
    best_of_n = best_of_n_curves(frame, cut)
    ranges = [False, True] if last["kl"].min() <= near < last["kl"].max() else [False]
    with style.look():
        figure = style.new_figure(width, 0.4 * width * len(ranges) + 0.9)
        panels = figure.subplots(len(ranges), len(rewards), squeeze=False).flat
        chosen = style.styles(len(cut))
        for panel, (close, reward) in zip(panels, itertools.product(ranges, rewards), strict=True):
            for group, look in zip(cut, chosen, strict=True):
                ends = group.rows[group.rows["kl"] <= near] if close else group.rows
                panel.scatter(distance(ends["kl"], x), ends[reward], color=look.color, marker=look.marker, s=14, linewidths=0.4)
            draw_best_of_n(panel, best_of_n, x, reward, chosen)
            panel.set(ylabel=f"{Y_LABELS[reward]} ({unit})", title=f"runs that ended within {near:g} nats" if close else "")
            if panel.get_subplotspec().is_last_row():
                panel.set_xlabel(X_LABELS[x])
        handles = [
            Line2D([], [], color=look.color, marker=look.marker, linestyle="", markersize=4, label=group.label)
            for group, look in zip(cut, chosen, strict=True)
        ]
        style.legend_below(figure, handles + best_of_n_handles(best_of_n), "one point per run, at its last step")
    return figure


def draw(results: Path, out: Path | None = None, **options) -> list[Path]:
    """Write endpoints.png and .svg of a results folder to `out` (default RESULTS/figures); options as above."""
    import rlhf_lab

    return style.save(endpoints(rlhf_lab.load(results), **options), out or Path(results) / "figures", "endpoints")


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw where each run of a results folder ended.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the figure (default: RESULTS/figures)")
    parser.add_argument("--x", choices=list(X_LABELS), default="sqrt_kl")
    parser.add_argument("--unit", default="score", help="unit of the rewards, for the axis labels")
    print(*draw(**vars(parser.parse_args(argv))), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
