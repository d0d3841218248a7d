"""Frames as Markdown tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

HALF_WIDTH = "_half_width"
HEADINGS = {
    "n": "n",
    "unfinished": "unfinished",
    "kl_final": "final KL (nats)",
    "proxy_final": "final proxy",
    "gold_start": "gold at start",
    "gold_peak": "gold at peak",
    "kl_at_peak": "KL at peak (nats)",
    "gold_final": "final gold",
}


def plus_minus(mean: float, half_width: float) -> str:
    """`0.75 ± 0.19`: two significant digits of the half-width; an en dash for no number."""
    if not math.isfinite(mean):
        return "–"
    if not math.isfinite(half_width):
        return f"{mean:.3g}"
    digits = min(6, max(0, 1 - math.floor(math.log10(half_width)))) if half_width > 0 else 2
    return f"{mean:.{digits}f} ± {half_width:.{digits}f}"


def markdown(table: pd.DataFrame) -> str:
    """A table for RESULTS.md: each pair of a column and its half-width in one cell."""
    folded = {}
    for column in table:
        if f"{column}{HALF_WIDTH}" in table:
            folded[column] = [plus_minus(m, h) for m, h in zip(table[column], table[f"{column}{HALF_WIDTH}"], strict=True)]
        elif not str(column).endswith(HALF_WIDTH):
            folded[column] = [_cell(value) for value in table[column]]
    lines = [[HEADINGS.get(column, column) for column in folded], ["---"] * len(folded), *zip(*folded.values(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    if isinstance(value, tuple):
        return " … ".join(_cell(v) for v in value)
    return str(value).replace("|", "\\|")
