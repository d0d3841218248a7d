"""The figure of the laboratory: proxy and gold reward against the distance from the SFT policy (Gao et al. 2022, figure 1).

python analysis/reward_vs_kl.py RESULTS [--x kl] [--out DIR]
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlhf_lab.errors import DataError, in_one_sentence
from rlhf_lab_analysis import style
from rlhf_lab_analysis.frames import REWARDS, Group, best_of_n_curves, groups, has_values, optimum_curve, select
from rlhf_lab_analysis.seed_statistics import mean_by_step
from rlhf_lab_analysis.style import Style

X_LABELS = {
    "sqrt_kl": r"$\sqrt{\mathrm{KL}(\pi\,\Vert\,\pi_{\mathrm{SFT}})}$  (nats$^{1/2}$)",
    "kl": r"$\mathrm{KL}(\pi\,\Vert\,\pi_{\mathrm{SFT}})$  (nats per sequence)",
}
TITLES = {"reward_proxy": "proxy: what RL maximises", "reward_gold": "gold: what we care about"}
Y_LABELS = {"reward_proxy": "proxy reward", "reward_gold": "gold reward"}
OPTIMUM = {"color": "black", "linestyle": "-", "linewidth": 0.8}
BLACK = Style((0.0, 0.0, 0.0), (0, (1, 2.5)), "x")


def reward_vs_kl(
    frame: pd.DataFrame,
    x: str = "sqrt_kl",
    hue: str | Sequence[str] | None = None,
    *,
    stage: str = "rl",
    unit: str = "score",
    width: float = style.TEXT_WIDTH,
) -> Figure:
    """Proxy and gold against √KL or KL, on validation prompts.

    A thin line per seed; a mean curve with a 95 % t-interval per arm or axis value (`hue` chooses the columns). The mean
    is taken over seeds at equal step, of KL and of the reward, and √ is of the mean KL; the band is of the reward alone.
    The highest proxy that any policy can have at a KL is drawn as far as it can be estimated (`rlhf_lab.frontier`).
    Best-of-n from the SFT policy stands on the same axes where the table has it, with bars of 1.96 standard errors over
    prompts. Negative estimates of KL are drawn at 0. Where a run went three times as far as best-of-n, a second row of
    panels shows the start close up.
    A reward without any number gets no panel. `unit` is the unit of both rewards, `width` in inches (under 4.5 the
    panels are stacked).
    """
    if x not in X_LABELS:
        raise DataError(f"x must be one of {', '.join(X_LABELS)}, not '{x}'")
    rows = select(frame, stage)
    rewards = [reward for reward in REWARDS if has_values(rows, reward)]
    if not rewards or not has_values(rows, "kl"):
        raise DataError(f"the validation rows of stage '{stage}' hold no finite kl with a reward, so there is nothing to draw")
    cut = groups(rows, hue)
    with style.look():
        return _figure(frame, cut, rewards, x, unit, width)


def _figure(frame: pd.DataFrame, cut: list[Group], rewards: list[str], x: str, unit: str, width: float) -> Figure:
    chosen = style.styles(len(cut))
    best_of_n, optimum = best_of_n_curves(frame, cut), optimum_curve(frame)
    near = close_up(cut, best_of_n, x)
    ranges, stacked = [None] if near is None else [None, near], width < 4.5
    shape = (len(rewards) * len(ranges), 1) if stacked else (len(ranges), len(rewards))
    height = 2.35 if stacked else 0.44 * width if near is None else 0.38 * width
    figure = style.new_figure(width, height * shape[0] + 0.6 + (0 if stacked else 0.06 * len(cut)))
    panels = figure.subplots(*shape, squeeze=False).flat
    for panel, (limit, reward) in zip(panels, itertools.product(ranges, rewards), strict=True):
        for group, look in zip(cut, chosen, strict=True):
            _draw_group(panel, group.rows, x, reward, look, len(cut))
        if optimum is not None and reward == "reward_proxy":
            panel.plot(distance(optimum["kl"], x), optimum[reward], **OPTIMUM, zorder=3)
        draw_best_of_n(panel, best_of_n, x, reward, chosen)
        panel.set(title=TITLES[reward] if limit is None else "the same, close up", ylabel=f"{Y_LABELS[reward]} ({unit})")
        if limit is not None:
            style.zoom(panel, limit)
        if panel.get_subplotspec().is_last_row():
            panel.set_xlabel(X_LABELS[x])
    caption, labels = style.seeds_caption(cut)
    handles = [style.handle(look, text) for look, text in zip(chosen, labels, strict=True)]
    handles += best_of_n_handles(best_of_n)
    if optimum is not None:
        handles.append(Line2D([], [], **OPTIMUM, label="highest possible proxy (estimate)"))
    style.legend_below(figure, handles, caption)
    return figure


def close_up(cut: list[Group], best_of_n: list[tuple[int | None, pd.DataFrame]], x: str) -> float | None:
    """Up to where a second row of panels looks: a little beyond best-of-n, if some run went three times as far; else None."""
    if not best_of_n:
        return None
    near = 1.25 * max(distance(curve["kl"], x).max() for _, curve in best_of_n)
    return near if max(distance(group.rows["kl"], x).max() for group in cut) > 3 * near / 1.25 else None


def distance(kl: pd.Series, x: str) -> pd.Series:
    """KL or its root, nats or nats^½; an estimate below 0 counts as 0."""
    kl = kl.clip(lower=0)
    return np.sqrt(kl) if x == "sqrt_kl" else kl


def _draw_group(panel: Axes, rows: pd.DataFrame, x: str, reward: str, look: Style, n_groups: int) -> None:
    seeds = [(distance(run["kl"], x), run[reward]) for _, run in rows.groupby("run_id", sort=False)]
    where, mean = distance(mean_by_step(rows, "kl")["mean"], x), mean_by_step(rows, reward)
    style.draw_group(panel, seeds, where, mean, look, n_groups)


def draw_best_of_n(
    panel: Axes, curves: Sequence[tuple[int | None, pd.DataFrame]], x: str, reward: str, chosen: Sequence[Style]
) -> None:
    """Each curve in the colour of its group, or in black where all groups share it."""
    for number, curve in curves:
        if has_values(curve, reward):
            look = BLACK if number is None else Style(chosen[number].color, BLACK.linestyle, BLACK.marker)
            _draw_one_best_of_n(panel, curve, x, reward, look)


def _draw_one_best_of_n(panel: Axes, curve: pd.DataFrame, x: str, reward: str, look: Style) -> None:
    where, error = distance(curve["kl"], x), f"{reward}_se"
    line = {"color": look.color, "linestyle": look.linestyle, "linewidth": 1.1}
    known = has_values(curve, error) and (curve["curves"] == 1).all()
    bars = {"yerr": 1.96 * curve[error], "elinewidth": 0.6} if known else {}
    panel.errorbar(where, curve[reward], **line, marker=look.marker, markersize=3.6, zorder=4, **bars)


def best_of_n_handles(curves: list[tuple[int | None, pd.DataFrame]]) -> list:
    if not curves:
        return []
    largest = max(curve["n"].max() for _, curve in curves)
    return [style.handle(BLACK, f"best of n ≤ {largest:.0f} (SFT)")]


# ---------------------------------------------------------------------------------------------------------------


def draw(results: Path, out: Path | None = None, **options) -> list[Path]:
    """Write reward_vs_kl.png and .svg of a results folder to `out` (default RESULTS/figures); options as above."""
    import rlhf_lab

    figure = reward_vs_kl(rlhf_lab.load(results), **options)
    return style.save(figure, out or Path(results) / "figures", "reward_vs_kl")


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw proxy and gold reward against KL from a results folder.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the figure (default: RESULTS/figures)")
    parser.add_argument("--x", choices=list(X_LABELS), default="sqrt_kl")
    parser.add_argument("--hue", action="append", metavar="COLUMN", help="colour by this column (default: what varies)")
    parser.add_argument("--stage", default="rl", help="name of the stage to draw (default: rl)")
    parser.add_argument("--unit", default="score", help="unit of the rewards, for the axis labels")
    parser.add_argument("--width", type=float, default=style.TEXT_WIDTH, help="width in inches (under 4.5: stacked panels)")
    paths = draw(**vars(parser.parse_args(argv)))
    print(*paths, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
