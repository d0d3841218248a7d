"""Training curves: small multiples over the step, a thin line per seed and a mean with its interval.

python analysis/curves.py RESULTS [--column kl …] [--out DIR]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.errors import DataError, in_one_sentence
from rlhf_lab_analysis import style
from rlhf_lab_analysis.frames import groups, has_values, select
from rlhf_lab_analysis.seed_statistics import mean_by_step
from rlhf_lab_analysis.style import Style

COLUMNS = ("kl", "reward_proxy", "reward_gold", "entropy", "response_length", "beta")
NAMES = {
    "kl": ("KL to the SFT policy", "nats per sequence"),
    "reward_proxy": ("proxy reward", "score"),
    "reward_gold": ("gold reward", "score"),
    "entropy": ("entropy", "nats per token"),
    "response_length": ("response length", "tokens"),
    "beta": ("KL coefficient β", "reward per nat"),
    "eos_rate": ("responses that end", "fraction"),
    "win_rate": ("win rate against SFT", "fraction"),
}


def curves(
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    *,
    hue: str | Sequence[str] | None = None,
    stage: str = "rl",
    width: float = 1.25 * style.TEXT_WIDTH,
) -> Figure:
    """One panel per column over the step: validation prompts, or training rollouts where validation has no such number.

    Without `columns`: those of COLUMNS that hold a number. The mean is over seeds at equal step, the band its 95 %
    t-interval. `hue` chooses the columns that tell groups apart; `width` is in inches.
    """
    rows = select(frame, stage, split=None)
    columns = _drawable(rows, columns, stage)
    panels_wide = max(1, min(len(columns), round(width / 2.2)))
    height = math.ceil(len(columns) / panels_wide)
    with style.look():
        figure = style.new_figure(width, 1.75 * height + 0.75)
        panels = figure.subplots(height, panels_wide, squeeze=False, sharex=True).flatten()
        cut = groups(rows, hue)
        chosen = style.styles(len(cut))
        for panel, column in zip(panels, columns, strict=False):
            _draw_panel(panel, rows, column, [group.rows for group in cut], chosen)
        _label_steps(panels, len(columns), panels_wide)
        caption, labels = style.seeds_caption(cut)
        handles = [style.handle(look, text) for look, text in zip(chosen, labels, strict=True)]
        style.legend_below(figure, handles, f"validation prompts unless marked; {caption}")
    return figure


def _drawable(rows: pd.DataFrame, columns: Sequence[str] | None, stage: str) -> list[str]:
    found = [column for column in columns or COLUMNS if has_values(rows, column)]
    if columns and (missing := [column for column in columns if column not in found]):
        raise DataError(f"stage '{stage}' has no number in a column '{missing[0]}'; choose among: {', '.join(_numeric(rows))}")
    if not found:
        raise DataError(f"stage '{stage}' holds none of the columns {', '.join(COLUMNS)}, so there is nothing to draw")
    return found


def _numeric(rows: pd.DataFrame) -> list[str]:
    names = rows.select_dtypes("number").columns.difference(["seed", "step"], sort=False)
    return [column for column in names if has_values(rows, column)]


def _draw_panel(panel: Axes, rows: pd.DataFrame, column: str, parts: list[pd.DataFrame], chosen: list[Style]) -> None:
    split = "validation" if has_values(rows[rows["split"] == "validation"], column) else "train"
    for part, look in zip(parts, chosen, strict=True):
        _draw_group(panel, part[part["split"] == split], column, look, len(parts))
    name, unit = NAMES.get(column, (column, ""))
    panel.set(title=name if split == "validation" else f"{name} (training)", ylabel=unit)


def _draw_group(panel: Axes, rows: pd.DataFrame, column: str, look: Style, n_groups: int) -> None:
    seeds = [(run["step"], run[column]) for _, run in rows.groupby("run_id", sort=False)]
    mean = mean_by_step(rows, column)
    style.draw_group(panel, seeds, mean.index, mean, look, n_groups)


def _label_steps(panels: Sequence[Axes], used: int, panels_wide: int) -> None:
    """The lowest panel of each column carries the step; places without a panel are empty."""
    for i, panel in enumerate(panels):
        if i >= used:
            panel.set_visible(False)
        elif i + panels_wide >= used:
            panel.set_xlabel("step")
            panel.tick_params(labelbottom=True)


# ---------------------------------------------------------------------------------------------------------------


def draw(results: Path, out: Path | None = None, **options) -> list[Path]:
    """Write curves.png and .svg of a results folder to `out` (default RESULTS/figures); options as above."""
    import rlhf_lab

    return style.save(curves(rlhf_lab.load(results), **options), out or Path(results) / "figures", "curves")


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw training curves from a results folder.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the figure (default: RESULTS/figures)")
    parser.add_argument("--column", action="append", dest="columns", help=f"a panel (repeatable; default: {' '.join(COLUMNS)})")
    parser.add_argument("--hue", action="append", metavar="COLUMN", help="colour by this column (default: what varies)")
    parser.add_argument("--stage", default="rl", help="name of the stage to draw (default: rl)")
    parser.add_argument("--width", type=float, default=1.25 * style.TEXT_WIDTH, help="width in inches")
    paths = draw(**vars(parser.parse_args(argv)))
    print(*paths, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
