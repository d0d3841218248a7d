"""The short report of a results folder: a summary per arm, paired differences to the first arm, fits of Gao's forms.

python analysis/report.py RESULTS [--expected expected.json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rlhf_lab.errors import DataError, in_one_sentence
from rlhf_lab_analysis.expected import check
from rlhf_lab_analysis.expected import check_expected as check_expected
from rlhf_lab_analysis.frames import DONE, REWARDS, best_of_n_curves, grouping, groups, has_values, in_order, select
from rlhf_lab_analysis.markdown import HALF_WIDTH, markdown
from rlhf_lab_analysis.matched_kl import LEVELS, at_kl
from rlhf_lab_analysis.seed_statistics import GaoFit, fit_gao, mean_by_step, mean_interval


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


def summary(
    frame: pd.DataFrame, runs: pd.DataFrame | None = None, *, hue: str | Sequence[str] | None = None, stage: str = "rl"
) -> pd.DataFrame:
    """A row per arm or axis value: mean over seeds and half-width of the 95 % t-interval, on validation prompts.

    "final" is the last step of the group, "peak" the step where the mean gold curve is highest (chosen on the same
    data: slightly optimistic). n counts runs with a finite KL at the last step; `runs` adds how many are not done.
    """
    rows = select(frame, stage)
    columns = grouping(rows, hue)
    table = [dict(zip(columns, group.key, strict=True)) | _summarise(group.rows) for group in groups(rows, hue)]
    result = pd.DataFrame(table)
    if runs is None or not set(columns) <= set(runs):
        return result
    return _with_unfinished(result, runs, columns)


def _with_unfinished(table: pd.DataFrame, runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Counts the runs that are not done; an arm without any finished run gets a row with n = 0."""
    counts = runs.assign(unfinished=runs["status"] != DONE).groupby(columns, dropna=False, sort=False)["unfinished"].sum()
    merged = table.merge(counts.reset_index(), on=columns, how="left")
    missing = counts.reset_index().merge(table[columns], on=columns, how="left", indicator=True)
    missing = missing[missing["_merge"] == "left_only"].drop(columns="_merge").assign(n=0)
    merged = pd.concat([merged, missing], ignore_index=True) if len(missing) else merged
    merged.insert(len(columns) + 1, "unfinished", merged.pop("unfinished").fillna(0).astype(int))
    return merged


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


def paired(
    frame: pd.DataFrame,
    columns: Sequence[str] = ("kl", "reward_proxy", "reward_gold"),
    *,
    by: str = "arm",
    baseline: Hashable | None = None,
    stage: str = "rl",
) -> pd.DataFrame:
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
        for value in values
        if value != baseline
        for key, part in _parts(rows, others)
        for column in columns
        if has_values(part, column)
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

    R is the reward above its own value at step 0 (at n = 1 for best-of-n, so a curve that does not start there is left
    out). Intervals resample seeds.
    """
    rows = select(frame, stage)
    cut = groups(rows, hue)
    labelled = [(group.label, "rl", [run for _, run in group.rows.groupby("run_id")]) for group in cut]
    for number, curve in best_of_n_curves(frame, cut):
        if curve["n"].iloc[0] == 1:
            labelled.append(("all" if number is None else cut[number].label, "best_of_n", [curve]))
    return pd.DataFrame(
        [
            {"group": label, "reward": reward, **_fit(curves, reward, form)._asdict()}
            for label, form, curves in labelled
            for reward in REWARDS
            if all(has_values(curve, reward) for curve in curves)
        ],
        columns=["group", "reward", *GaoFit._fields],
    )


def _fit(curves: Sequence[pd.DataFrame], reward: str, form: str) -> GaoFit:
    distances = [np.sqrt(curve["kl"].clip(lower=0)).to_numpy() for curve in curves]
    gains = [(curve[reward] - curve[reward].iloc[0]).to_numpy() for curve in curves]
    return fit_gao(list(zip(distances, gains, strict=True)), form)


# ---------------------------------------------------------------------------------------------------------------


def text(frame: pd.DataFrame, runs: pd.DataFrame | None = None) -> str:
    """The short report: summary, paired differences where there are several arms, and fits, as Markdown."""
    differences = paired(frame).query("n > 0")  # arms with axes of their own have no pairs
    parts = [("Summary (mean ± half-width of the 95 % t-interval over seeds)", summary(frame, runs))]
    if len(differences):
        parts.append(
            (
                "Final differences to the first arm, paired by seed",
                differences.drop(columns=["low", "high"]).rename(columns={"half_width": f"difference{HALF_WIDTH}"}),
            )
        )
    parts.append((f"Where a run first reaches a KL of {', '.join(f'{level:g}' for level in LEVELS)} nats", at_kl(frame)))
    parts.append(("Fits: RL R = d (α − β log d), best-of-n R = d (α − β d), d = √KL; 95 % bootstrap over seeds", fits(frame)))
    return "\n".join(f"### {title}\n\n{markdown(table)}" for title, table in parts)


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print the tables of a results folder and check its expected numbers.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--expected", type=Path, help="a file of expectations; exit code 1 if one fails")
    options = parser.parse_args(argv)
    import rlhf_lab

    print(text(rlhf_lab.load(options.results), rlhf_lab.load(options.results, table="runs")))
    checks = check(options.results, options.expected) if options.expected else []
    print(*(f"{'ok  ' if result.ok else 'FAIL'}  {result.text}" for result in checks), sep="\n")
    return 0 if all(result.ok for result in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
