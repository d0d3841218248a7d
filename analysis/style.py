"""One look for all figures: told apart by lightness, line style and marker, so that they survive greyscale."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlhf_lab_analysis.frames import Group

TEXT_WIDTH = 5.5  # inches: the text width of a one-column conference page
LINESTYLES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
RAMP = ("#1b1464", "#8c1c13", "#00664f", "#7b4fb5", "#c8550b", "#2b8cbe", "#5aae3c", "#e0a000")  # CIE lightness 12 … 71
MOST_BANDS = 8  # groups; of more the bands hide each other
FONTS = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7,
}
LOOK = {
    **FONTS,
    "grid.linewidth": 0.5,
    "grid.color": "0.9",
    "axes.edgecolor": "0.4",
    "axes.linewidth": 0.6,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "rlhf_lab",  # the same figure is the same bytes
}


class Style(NamedTuple):
    color: tuple[float, float, float]
    linestyle: str | tuple
    marker: str


@contextmanager
def look() -> Iterator[None]:
    """The look, for the time of a `with` block; global settings are untouched after it."""
    settings = {**sns.axes_style("whitegrid"), **sns.plotting_context("paper"), **LOOK}
    settings.pop("font.sans-serif", None)  # fonts that a machine lacks would be warned about
    with mpl.rc_context(settings):
        yield


def colours(n: int) -> list[tuple[float, float, float]]:
    """n colours, ever lighter: spread over RAMP up to eight, beyond that from matplotlib's `plasma` without its palest part."""
    if n > len(RAMP):
        return [tuple(float(c) for c in mpl.colormaps["plasma"](where)[:3]) for where in np.linspace(0.05, 0.78, n)]
    last = {1: 0, 2: 4}.get(n, len(RAMP) - 1)
    return [mpl.colors.to_rgb(RAMP[round(i)]) for i in np.linspace(0, last, n)]


def styles(n: int) -> list[Style]:
    """One style per group; line styles and markers repeat for many groups, colours do not."""
    return [Style(colour, LINESTYLES[i % len(LINESTYLES)], MARKERS[i % len(MARKERS)]) for i, colour in enumerate(colours(n))]


def zoom(panel: Axes, limit: float) -> None:
    """Only what lies between 0 and `limit`, with the height that this part of the lines needs."""
    ys = [line.get_ydata()[np.asarray(line.get_xdata()) <= limit] for line in panel.get_lines()]
    low, high = np.nanmin(np.concatenate(ys)), np.nanmax(np.concatenate(ys))
    margin = 0.08 * (high - low or 1.0)
    panel.set(xlim=(-0.04 * limit, limit), ylim=(low - margin, high + margin))


def new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know, so nobody has to close it; its layout keeps parts from overlapping."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_mean(axes: Axes, x: Sequence[float], y: Sequence[float], style: Style) -> None:
    """The thick line of a group, with about eight markers."""
    line = {"color": style.color, "linestyle": style.linestyle, "linewidth": 1.5, "zorder": 3}
    point = {"marker": style.marker, "markersize": 3.8, "markeredgecolor": "white", "markeredgewidth": 0.4}
    axes.plot(x, y, **line, **point, markevery=max(1, math.ceil(len(x) / 8)))


def draw_band(axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], style: Style) -> None:
    if np.isfinite(np.asarray(low, dtype=float)).any():
        axes.fill_between(x, low, high, color=style.color, alpha=0.13, linewidth=0, zorder=1)


def draw_seed(axes: Axes, x: Sequence[float], y: Sequence[float], style: Style) -> None:
    axes.plot(x, y, color=style.color, linewidth=0.5, alpha=0.55, zorder=2)


def draw_group(
    axes: Axes,
    seeds: Sequence[tuple[pd.Series, pd.Series]],
    x: Sequence[float],
    mean: pd.DataFrame,
    style: Style,
    n_groups: int,
) -> None:
    """The seeds of a group, each (x, y), if there are several; its band; its mean. Among too many groups its mean alone."""
    if n_groups <= MOST_BANDS:
        for seed in seeds if len(seeds) > 1 else []:
            draw_seed(axes, *seed, style)
        draw_band(axes, x, mean["low"], mean["high"], style)
    draw_mean(axes, x, mean["mean"], style)


def handle(style: Style, label: str) -> Line2D:
    """A legend entry."""
    return Line2D([], [], **style._asdict(), linewidth=1.5, markersize=4, label=label)


def legend_below(figure: Figure, handles: Sequence[Line2D], caption: str) -> None:
    """Legend and caption under the panels, as many columns as fit the width of the figure."""
    width = figure.get_figwidth()
    column = 0.62 + 0.052 * max(len(h.get_label()) for h in handles)
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(len(handles), int(width / column))),
        title=textwrap.fill(caption, int(width * 19)),
        frameon=False,
        handlelength=3,
        columnspacing=1.5,
    )
    legend.get_title().set_multialignment("center")


def seeds_caption(cut: Sequence[Group]) -> tuple[str, list[str]]:
    """What the lines are, with n; and the labels, which carry n themselves where the groups differ in it."""
    sizes = [group.rows["run_id"].nunique() for group in cut]
    what = "seeds" if all(n == group.rows["seed"].nunique() for n, group in zip(sizes, cut, strict=True)) else "runs"
    if len(cut) > MOST_BANDS and max(sizes) > 1:
        over = f"{sizes[0]} {what}" if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)} {what}"
        return f"mean over {over} at equal step; too many lines for seeds and bands", [group.label for group in cut]
    if set(sizes) == {1}:
        return "n = 1 seed per line, no band", [group.label for group in cut]
    if len(set(sizes)) == 1:
        return _caption(what, f"n = {sizes[0]} {what}"), [group.label for group in cut]
    return _caption(what, f"n {what}"), [f"{group.label} (n = {size})" for group, size in zip(cut, sizes, strict=True)]


def _caption(what: str, over: str) -> str:
    return f"thin: one {what.removesuffix('s')}; thick: mean over {over} at equal step; band: 95 % t-interval"


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.png (200 dpi) and `name`.svg into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with look():
        figure.savefig(paths[0], dpi=200)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
