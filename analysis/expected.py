"""The check of an experiment's expected.json against its steps table.

The format:

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

import json
import math
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_lab.errors import DataError, SpecError
from rlhf_lab_analysis.frames import DONE, axes, in_order, select
from rlhf_lab_analysis.seed_statistics import mean_by_step

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
    """One expectation and what came out.

    `value` is a number, a list of (axis value, number) for an order, or None where it could not be computed.
    """

    name: str
    value: Any
    bound: str
    ok: bool
    text: str


def check_expected(frames: Mapping[str, pd.DataFrame], expected: Mapping[str, Any]) -> list[Check]:
    """Evaluate each expectation on the tables `steps` and `runs` (joined with the axes, as `rlhf_lab.load` gives them).

    What cannot be evaluated (no rows, NaN) fails and says why. The first check is always that every run is done: numbers
    from the runs that survived would not be those of the experiment.
    """
    try:
        checks = Expected.model_validate(expected).checks
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"expected.json is wrong at '{where}': {first['msg'].removeprefix('Value error, ')}") from None
    return [_all_done(frames["runs"]), *(_check(frames["steps"], expectation) for expectation in checks)]


def _all_done(runs: pd.DataFrame) -> Check:
    done = int((runs["status"] == DONE).sum())
    return Check("runs", done, f"{len(runs)}", done == len(runs) > 0, f"runs: {done} of {len(runs)} are done")


def _check(frame: pd.DataFrame, expectation: Expectation) -> Check:
    what = expectation.what
    ordered = what.decreasing_in or what.increasing_in
    bound = f"{'decreasing' if what.decreasing_in else 'increasing'} in {ordered}" if ordered else _bound(expectation)
    try:
        rows = select(frame, what.stage, what.split)
        value, ok, shown = _in_order(rows, what, ordered) if ordered else _within(rows, expectation)
    except DataError as error:
        value, ok, shown = None, False, str(error)
    return Check(expectation.name, value, bound, ok, f"{expectation.name}: {shown}, expected {bound}")


def _bound(expectation: Expectation) -> str:
    low, high = expectation.min, expectation.max
    if low is None:
        return f"≤ {high:g}"
    return f"≥ {low:g}" if high is None else f"{low:g} … {high:g}"


def _within(rows: pd.DataFrame, expectation: Expectation) -> tuple[float | None, bool, str]:
    what = expectation.what
    value, n = _statistic(rows, what, what.where)
    if what.minus is not None:
        other, n_other = _statistic(rows, what, what.minus)
        value, n = value - other, min(n, n_other)
    low = -math.inf if expectation.min is None else expectation.min
    high = math.inf if expectation.max is None else expectation.max
    shown = f"{what.statistic} {what.column} = {value:.4g} (n = {n})"
    return None if math.isnan(value) else value, low <= value <= high, shown


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


def check(results: Path, expected: Path) -> list[Check]:
    """Evaluate a file of expectations on a results folder."""
    import rlhf_lab

    try:
        content = json.loads(Path(expected).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{expected} cannot be read as JSON: {error}") from None
    return check_expected({table: rlhf_lab.load(results, table) for table in ("steps", "runs")}, content)
