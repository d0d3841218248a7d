"""Tables in words and numbers: a summary per arm, paired differences, fits, and the check of an experiment's expected.json.

    python analysis/report.py RESULTS [--expected expected.json]

The format of expected.json:

    {"checks": [
      {"name": "gold falls at small beta", "min": 1.0,
       "what": {"statistic": "peak_minus_final", "column": "reward_gold", "where": {"rl.kl.beta": 0.02}}},
      {"name": "KL falls with beta", "what": {"statistic": "final", "column": "kl", "decreasing_in": "rl.kl.beta"}}
    ]}

`statistic` is one of STATISTICS, taken of the mean curve over the runs that `where` leaves; `min` and `max` are inclusive.
Rows are those of stage `rl` and split `validation`, unless `what` has `stage` or `split`. `minus` is a second `where`, whose
value is subtracted. `decreasing_in` and `increasing_in` ask for strict order over the values of a column, instead of a bound.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rlhf_lab_analysis.frames import REWARDS, axes, best_of_n_curves, grouping, groups, has_values, in_order, select
from rlhf_lab_analysis.seed_statistics import GaoFit, fit_gao, mean_by_step, mean_interval

from rlhf_lab.errors import DataError, LabError, SpecError

COMPLETE = "complete"
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


def value_at(rows: pd.DataFrame, column: str, step: int | None) -> pd.Series:
    """One value per run (indexed by seed) at one step; empty where there is no step or no such column."""
    if step is None or column not in rows:
        return pd.Series(dtype=float)
    return rows[rows["step"] == step].set_index("seed")[column]


def peak_step(rows: pd.DataFrame, column: str) -> int | None:
    """The step at which the mean curve over seeds is highest: less lucky than each seed's own best step."""
    if not has_values(rows, column):
        return None
    return mean_by_step(rows, column)["mean"].idxmax()


def summary(frame: pd.DataFrame, runs: pd.DataFrame | None = None, *, hue: str | Sequence[str] | None = None,
            stage: str = "rl") -> pd.DataFrame:
    """A row per arm or axis value: mean over seeds and half-width of the 95 % t-interval, on validation prompts.

    "final" is the last step of the group, "peak" the step where the mean gold curve is highest (chosen on the same
    data: slightly optimistic). n counts runs with a finite KL at the last step; `runs` adds how many did not complete.
    """
    rows = select(frame, stage)
    columns = grouping(rows, hue)
    table = [dict(zip(columns, group.key, strict=True)) | _summarise(group.rows) for group in groups(rows, hue)]
    result = pd.DataFrame(table)
    if runs is None or not set(columns) <= set(runs):
        return result
    incomplete = runs[runs["status"] != COMPLETE].groupby(columns, dropna=False).size().rename("unfinished").reset_index()
    merged = result.merge(incomplete, on=columns, how="left")
    result.insert(len(columns) + 1, "unfinished", merged["unfinished"].fillna(0).astype(int))
    return result


def _summarise(rows: pd.DataFrame) -> dict[str, float]:
    first, last, peak = rows["step"].min(), rows["step"].max(), peak_step(rows, "reward_gold")
    quantities = {
        "kl_final": value_at(rows, "kl", last),
        "proxy_final": value_at(rows, "reward_proxy", last),
        "gold_start": value_at(rows, "reward_gold", first),
        "gold_peak": value_at(rows, "reward_gold", peak),
        "kl_at_peak": value_at(rows, "kl", peak),
        "gold_final": value_at(rows, "reward_gold", last),
    }
    numbers: dict[str, float] = {"n": mean_interval(quantities["kl_final"]).n}
    for name, values in quantities.items():
        interval = mean_interval(values)
        numbers |= {name: interval.mean, name + HALF_WIDTH: interval.half_width}
    return numbers


# ---------------------------------------------------------------------------------------------------------------
# Paired differences


def paired(frame: pd.DataFrame, columns: Sequence[str] = ("kl", "reward_proxy", "reward_gold"), *, by: str = "arm",
           baseline: Hashable | None = None, stage: str = "rl") -> pd.DataFrame:
    """Final values minus those of the baseline (default: the first arm), paired by seed, with a 95 % t-interval.

    Seeds share prompts and sampling noise across arms, so the difference per seed is less noisy than the means. Where
    other axes vary, pairs agree in them too and there is a row per value. n counts the pairs.
    """
    rows = select(frame, stage)
    values = in_order(rows[by])
    baseline = values[0] if baseline is None else baseline
    if baseline not in values:
        raise DataError(f"the baseline {by} = {baseline} is not in the table; choose among: {', '.join(map(str, values))}")
    others = [column for column in grouping(rows) if column != by] if len(values) > 1 else []
    table = [
        {by: value, **dict(zip(others, key, strict=True)), "column": column, **_difference(part, column, by, value, baseline)}
        for value in values if value != baseline
        for key, part in _parts(rows, others)
        for column in columns if has_values(part, column)
    ]
    return pd.DataFrame(table, columns=[by, *others, "column", "n", "difference", "half_width", "low", "high"])


def _parts(rows: pd.DataFrame, others: list[str]) -> list[tuple[tuple, pd.DataFrame]]:
    return list(rows.groupby(others, dropna=False)) if others else [((), rows)]


def _difference(rows: pd.DataFrame, column: str, by: str, value: Hashable, baseline: Hashable) -> dict[str, float]:
    mine, base = (rows[rows[by] == v] for v in (value, baseline))
    gaps = value_at(mine, column, mine["step"].max()) - value_at(base, column, base["step"].max())
    interval = mean_interval(gaps)
    bounds = {"half_width": interval.half_width, "low": interval.low, "high": interval.high}
    return {"n": interval.n, "difference": interval.mean, **bounds}


# ---------------------------------------------------------------------------------------------------------------
# Fits of Gao et al. 2022


def fits(frame: pd.DataFrame, *, hue: str | Sequence[str] | None = None, stage: str = "rl") -> pd.DataFrame:
    """α and β of R(√KL) for each reward: the RL form per arm or axis value, the best-of-n form where there is one.

    R is the reward above its own value at step 0 (n = 1 for best-of-n). Intervals resample seeds.
    """
    rows = select(frame, stage)
    cut = groups(rows, hue)
    labelled = [(group.label, "rl", [run for _, run in group.rows.groupby("run_id")]) for group in cut]
    for number, curve in best_of_n_curves(frame, cut):
        labelled.append(("all" if number is None else cut[number].label, "best_of_n", [curve]))
    return pd.DataFrame([
        {"group": label, "reward": reward, **_fit(curves, reward, form)._asdict()}
        for label, form, curves in labelled for reward in REWARDS if all(has_values(curve, reward) for curve in curves)
    ], columns=["group", "reward", *GaoFit._fields])


def _fit(curves: Sequence[pd.DataFrame], reward: str, form: str) -> GaoFit:
    distances = [np.sqrt(curve["kl"].clip(lower=0)).to_numpy() for curve in curves]
    gains = [(curve[reward] - curve[reward].iloc[0]).to_numpy() for curve in curves]
    return fit_gao(list(zip(distances, gains, strict=True)), form)


# ---------------------------------------------------------------------------------------------------------------
# Markdown


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


# ---------------------------------------------------------------------------------------------------------------
# The check of expected numbers


STATISTICS: Mapping[str, Callable[[pd.Series], float]] = {
    "start": lambda curve: curve.iloc[0],
    "final": lambda curve: curve.iloc[-1],
    "peak": lambda curve: curve.max(),
    "lowest": lambda curve: curve.min(),
    "peak_minus_final": lambda curve: curve.max() - curve.iloc[-1],
    "peak_minus_start": lambda curve: curve.max() - curve.iloc[0],
    "final_minus_start": lambda curve: curve.iloc[-1] - curve.iloc[0],
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class What(Strict):
    statistic: str
    column: str
    where: dict[str, Any] = {}
    minus: dict[str, Any] | None = None
    decreasing_in: str | None = None
    increasing_in: str | None = None
    stage: str = "rl"
    split: str = "validation"

    @model_validator(mode="after")
    def _known(self) -> What:
        if self.statistic not in STATISTICS:
            raise ValueError(f"unknown statistic '{self.statistic}'; choose among: {', '.join(STATISTICS)}")
        if sum(option is not None for option in (self.minus, self.decreasing_in, self.increasing_in)) > 1:
            raise ValueError("choose one of minus, decreasing_in, increasing_in")
        return self


class Expectation(Strict):
    name: str
    what: What
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _has_bound(self) -> Expectation:
        ordered = self.what.decreasing_in or self.what.increasing_in
        if bool(ordered) == (self.min is not None or self.max is not None):
            raise ValueError("give either min or max (or both), or one of decreasing_in and increasing_in")
        return self


class Expected(Strict):
    checks: tuple[Expectation, ...] = Field(min_length=1)


class Check(NamedTuple):
    """One expectation and what came out; `value` is a number, or a list of (axis value, number) for an order."""

    name: str
    value: Any
    bound: str
    ok: bool
    text: str


def check_expected(frame: pd.DataFrame, expected: Mapping[str, Any]) -> list[Check]:
    """Evaluate each expectation on the steps table. What cannot be evaluated (no rows, NaN) fails and says why."""
    try:
        checks = Expected.model_validate(expected).checks
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"expected.json is wrong at '{where}': {first['msg'].removeprefix('Value error, ')}") from None
    return [_check(frame, expectation) for expectation in checks]


def _check(frame: pd.DataFrame, expectation: Expectation) -> Check:
    what = expectation.what
    ordered = what.decreasing_in or what.increasing_in
    bound = f"{'decreasing' if what.decreasing_in else 'increasing'} in {ordered}" if ordered else _bound(expectation)
    try:
        rows = select(frame, what.stage, what.split)
        value, ok, shown = _in_order(rows, what, ordered) if ordered else _within(rows, expectation)
    except DataError as error:
        value, ok, shown = math.nan, False, str(error)
    line = f"{'ok  ' if ok else 'FAIL'} {expectation.name}: {shown}, expected {bound}"
    return Check(expectation.name, value, bound, ok, line)


def _bound(expectation: Expectation) -> str:
    low, high = expectation.min, expectation.max
    if low is None:
        return f"≤ {high:g}"
    return f"≥ {low:g}" if high is None else f"{low:g} … {high:g}"


def _within(rows: pd.DataFrame, expectation: Expectation) -> tuple[float, bool, str]:
    what = expectation.what
    value, n = _statistic(rows, what, what.where)
    if what.minus is not None:
        other, n_other = _statistic(rows, what, what.minus)
        value, n = value - other, min(n, n_other)
    low = -math.inf if expectation.min is None else expectation.min
    high = math.inf if expectation.max is None else expectation.max
    return value, low <= value <= high, f"{what.statistic} {what.column} = {value:.4g} (n = {n})"


def _in_order(rows: pd.DataFrame, what: What, axis: str) -> tuple[list[tuple[Hashable, float]], bool, str]:
    rows = _matching(rows, what.where)
    if axis not in rows:
        raise DataError(f"there is no column '{axis}' (the sweep has: {', '.join(axes(rows)) or 'no axes'})")
    positions = sorted(rows[axis].dropna().unique().tolist())
    values = [(position, _statistic(rows, what, {axis: position})[0]) for position in positions]
    steps = np.diff([value for _, value in values])
    ok = len(values) > 1 and bool((steps < 0).all() if what.decreasing_in else (steps > 0).all())
    shown = ", ".join(f"{value:.4g} at {position}" for position, value in values)
    return values, ok, f"{what.statistic} {what.column} = {shown}"


def _statistic(rows: pd.DataFrame, what: What, where: Mapping[str, Any]) -> tuple[float, int]:
    """The statistic of the mean curve, and the number of runs with a finite value at its last step."""
    rows = _matching(rows, where)
    if what.column not in rows:
        raise DataError(f"there is no column '{what.column}'")
    curve = mean_by_step(rows, what.column)
    return float(STATISTICS[what.statistic](curve["mean"])), int(curve["n"].iloc[-1])


def _matching(rows: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    for column, wanted in where.items():
        if column not in rows:
            raise DataError(f"there is no column '{column}' (the sweep has: {', '.join(axes(rows)) or 'no axes'})")
        kept = np.isclose(rows[column].astype(float), wanted) if _numbers(rows[column], wanted) else rows[column] == wanted
        if not kept.any():
            raise DataError(f"no rows with {column} = {wanted} (there are: {', '.join(map(str, in_order(rows[column])))})")
        rows = rows[kept]
    return rows


def _numbers(values: pd.Series, wanted: Any) -> bool:
    return isinstance(wanted, (int, float)) and not isinstance(wanted, bool) and pd.api.types.is_numeric_dtype(values)


# ---------------------------------------------------------------------------------------------------------------


def check(results: Path, expected: Path) -> list[Check]:
    """Evaluate a file of expectations on a results folder."""
    import rlhf_lab

    try:
        content = json.loads(Path(expected).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{expected} cannot be read as JSON: {error}") from None
    return check_expected(rlhf_lab.load(results), content)


def text(frame: pd.DataFrame, runs: pd.DataFrame | None = None) -> str:
    """The short report: summary, paired differences where there are several arms, and fits, as Markdown."""
    several = select(frame)["arm"].nunique() > 1
    parts = [("Summary (mean ± half-width of the 95 % t-interval over seeds)", summary(frame, runs))]
    if several:
        parts.append(("Final differences to the first arm, paired by seed", paired(frame).drop(columns=["low", "high"]).rename(
            columns={"half_width": f"difference{HALF_WIDTH}"})))
    parts.append(("Fits: RL R = d (α − β log d), best-of-n R = d (α − β d), d = √KL; 95 % bootstrap over seeds", fits(frame)))
    return "\n".join(f"### {title}\n\n{markdown(table)}" for title, table in parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print the tables of a results folder and check its expected numbers.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--expected", type=Path, help="a file of expectations; exit code 1 if one fails")
    options = parser.parse_args(argv)
    import rlhf_lab

    try:
        print(text(rlhf_lab.load(options.results), rlhf_lab.load(options.results, table="runs")))
        checks = check(options.results, options.expected) if options.expected else []
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(*(result.text for result in checks), sep="\n")
    return 0 if all(result.ok for result in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
