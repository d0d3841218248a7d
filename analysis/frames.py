"""Selections from the steps table: which rows, which axes of the sweep, which groups, which best-of-n curves."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from rlhf_lab.errors import DataError

DONE = "done"  # the status of a run that has everything
BEST_OF_N = "best_of_n"
REWARDS = ("reward_proxy", "reward_gold")


class Group(NamedTuple):
    """The rows of one arm or axis value: runs that differ in nothing but their seed."""

    key: tuple[Hashable, ...]
    label: str
    rows: pd.DataFrame


def select(frame: pd.DataFrame, stage: str = "rl", split: str | None = "validation") -> pd.DataFrame:
    """The rows of one stage and split (None: both), by step within runs in the order of the table; an error if none."""
    wanted = frame["stage"] == stage
    if split is not None:
        wanted &= frame["split"] == split
    if not wanted.any():
        stages = ", ".join(sorted(frame["stage"].dropna().astype(str).unique())) or "none"
        of_split = f" of split '{split}'" if split else ""
        raise DataError(f"there are no steps{of_split} of stage '{stage}'; finish the runs or name one of the stages: {stages}")
    rows = frame[wanted]
    return rows.iloc[np.lexsort((rows["step"], pd.factorize(rows["run_id"])[0]))]


def has_values(frame: pd.DataFrame, column: str) -> bool:
    """Is the column there, with at least one number in it?"""
    return column in frame and bool(np.isfinite(pd.to_numeric(frame[column], errors="coerce")).any())


def axes(frame: pd.DataFrame) -> list[str]:
    """The axis columns of a sweep: named by a dotted path, and constant within each run (metrics are not)."""
    dotted = [column for column in frame.columns if "." in column]
    if not dotted:
        return []
    constant = frame.groupby("run_id")[dotted].nunique(dropna=False).le(1).all()
    return [column for column in dotted if constant[column]]


def grouping(frame: pd.DataFrame, hue: str | Sequence[str] | None = None) -> list[str]:
    """The columns that tell the groups apart: `hue` if given, else the arm and the axes that vary.

    An axis that the arm already determines is left out.
    """
    if hue is not None:
        columns = [hue] if isinstance(hue, str) else list(hue)
        if missing := [column for column in columns if column not in frame]:
            raise DataError(f"there is no column '{missing[0]}' to group by; the sweep has: {', '.join(['arm', *axes(frame)])}")
        return columns
    varying = [column for column in ["arm", *axes(frame)] if frame[column].nunique(dropna=False) > 1]
    if "arm" in varying:
        per_arm = frame.groupby("arm")[varying].nunique(dropna=False).max()
        varying = [column for column in varying if column == "arm" or per_arm[column] > 1]
    return varying or ["arm"]


def short_names(columns: Iterable[str]) -> dict[str, str]:
    """The shortest ending of each dotted path that no other column of the list shares: rl.kl.beta → beta."""
    columns = list(columns)
    names = {}
    for column in columns:
        parts = column.split(".")
        endings = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
        others = [other for other in columns if other != column]
        names[column] = next((e for e in endings if not any(o == e or o.endswith("." + e) for o in others)), column)
    return names


def _text(value: Hashable) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def label(columns: Sequence[str], key: Sequence[Hashable]) -> str:
    """`beta = 0.02, lr = 1e-05`; an arm is its bare name. A column without a value here, as where `when` leaves an axis out,
    is not mentioned, unless there is nothing else to say.
    """
    short = short_names(columns)
    named = [(column, value) for column, value in zip(columns, key, strict=True) if not pd.isna(value)]
    said = [_text(value) if column == "arm" else f"{short[column]} = {_text(value)}" for column, value in named]
    return ", ".join(said) or f"no {', '.join(short[column] for column in columns)}"


def in_order(values: pd.Series) -> list[Hashable]:
    """Distinct values: numbers ascending, names as they first appear (so the first arm stays first)."""
    distinct = list(values.drop_duplicates())
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return sorted(distinct, key=lambda value: (pd.isna(value), value)) if numeric else distinct


def groups(frame: pd.DataFrame, hue: str | Sequence[str] | None = None) -> list[Group]:
    """The frame cut by `grouping(frame, hue)`, in order."""
    columns = grouping(frame, hue)
    rank = {column: {value: i for i, value in enumerate(in_order(frame[column]))} for column in columns}
    parts = [(key, rows) for key, rows in frame.groupby(columns, dropna=False, sort=False)]
    parts.sort(key=lambda part: [_rank(rank[column], value) for column, value in zip(columns, part[0], strict=True)])
    return [Group(key, label(columns, key), rows) for key, rows in parts]


def _rank(rank: dict[Hashable, int], value: Hashable) -> int:
    return rank.get(value, len(rank))  # NaN never equals itself: it goes last


def best_of_n_curves(frame: pd.DataFrame, cut: Sequence[Group]) -> list[tuple[int | None, pd.DataFrame]]:
    """(number of the group, its curve); one pair with None where all groups share one curve."""
    curves = [best_of_n_curve(frame[frame["run_id"].isin(group.rows["run_id"])]) for group in cut]
    found = [(i, curve) for i, curve in enumerate(curves) if curve is not None]
    if len(found) > 1 and all(curve.equals(found[0][1]) for _, curve in found):
        return [(None, found[0][1])]
    return found if len(cut) > 1 else [(None, curve) for _, curve in found]


def best_of_n_curve(frame: pd.DataFrame) -> pd.DataFrame | None:
    """One row per n: kl, rewards, standard errors, and how many curves they average; None if there is no such stage.

    A shared stage's rows stand under each run that used it, so equal rows are counted once. What is left may be several
    curves (a reward model per seed, say): these are averaged per n.
    """
    if "n" not in frame or not (frame["stage"] == BEST_OF_N).any():
        return None
    columns = [c for c in ["n", "kl", *REWARDS, *(f"{reward}_se" for reward in REWARDS)] if c in frame]
    unique = frame.loc[frame["stage"] == BEST_OF_N, columns].drop_duplicates()
    return unique.groupby("n").mean().assign(curves=unique.groupby("n").size()).reset_index()


def optimum_curve(frame: pd.DataFrame) -> pd.DataFrame | None:
    """kl and reward_proxy along the estimated frontier, KL ascending; None where there is none, or several differ."""
    rows = frame[(frame["stage"] == BEST_OF_N) & (frame["split"] == "frontier")]
    curve = rows[["kl", "reward_proxy"]].drop_duplicates().sort_values("kl") if len(rows) else rows
    one_curve = len(curve) and len(curve) == rows.groupby("run_id").size().iloc[0]
    return curve.reset_index(drop=True) if one_curve else None
