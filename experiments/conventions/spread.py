"""How far conventions move the curves, in units of what another seed moves them.

python experiments/conventions/spread.py RESULTS [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rlhf_lab import load
from rlhf_lab.errors import DataError, in_one_sentence
from rlhf_lab_analysis.frames import has_values

COLUMNS = ("kl", "reward_proxy", "frontier_gap", "reward_gold", "response_length", "eos_rate")


def validation(steps: pd.DataFrame) -> pd.DataFrame:
    """The rows that are compared: held-out prompts of the rl stage."""
    return steps[(steps["stage"] == "rl") & (steps["split"] == "validation")]


def distances(steps: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """A row per arm but the first, and column: how its curve lies from the first arm's.

    final      mean over seeds of (this arm − first arm) at the last step, both with the same seed
    error      standard error of that mean
    apart      mean over steps of |mean over seeds of the difference|
    seed       mean over steps of the standard deviation over seeds, of both arms together
    in_seeds   apart / seed: 1 is a convention that moves the curve as much as another seed does
    """
    rows = validation(steps)
    first, *others = rows["arm"].drop_duplicates()
    if not others:
        raise DataError("there is one arm only; a comparison of conventions needs two")
    tables = {arm: part.pivot(index="step", columns="seed", values=list(columns)) for arm, part in rows.groupby("arm")}
    return pd.DataFrame([_distance(tables[first][c], tables[arm][c], arm, c) for arm in others for c in columns])


def _distance(first: pd.DataFrame, other: pd.DataFrame, arm: str, column: str) -> dict[str, float | str]:
    """`first` and `other` have a row per step and a column per seed; a step at which a number is blank is left out."""
    shared = (other - first).dropna(axis=1, how="all")
    if shared.shape[1] < 2:
        raise DataError(f"arm {arm} has fewer than 2 seeds in common with the first arm; run more seeds")
    last, difference = shared.iloc[-1], shared.dropna(axis=0)
    apart = difference.mean(axis=1).abs().mean()
    variances = [side.loc[difference.index, difference.columns].var(axis=1, ddof=1) for side in (first, other)]
    seed = np.sqrt(sum(variances) / 2).mean()
    return {
        "arm": arm,
        "column": column,
        "final": last.mean(skipna=False),
        "error": last.std(ddof=1, skipna=False) / np.sqrt(len(last)),
        "apart": apart,
        "seed": seed,
        "in_seeds": apart / seed if seed > 0 else np.nan,
    }


def finals(steps: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Mean and standard deviation over seeds of each arm at the last step; arms in the order of the spec."""
    rows = validation(steps)
    last = rows[rows["step"] == rows["step"].max()]
    table = last.groupby("arm", sort=False)[list(columns)].agg(["mean", "std"])
    return table.loc[list(rows["arm"].drop_duplicates())]


def markdown(steps: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> str:
    """Two tables: where each arm ends, and how far from the first it lies in units of the seed.

    `frontier_gap` is what the policy lacks of the highest proxy at its KL, so that arms that end at different KLs compare.
    """
    columns = [column for column in columns if has_values(validation(steps), column)]
    ends = finals(steps, columns)
    columns = [column for column in columns if ends[column, "mean"].notna().all()]  # no gap is known far from SFT
    apart = distances(steps, columns)
    lines = [["arm, at the last step", *columns]]
    lines += [[arm, *(f"{row[c, 'mean']:.2f} ± {row[c, 'std']:.2f}" for c in columns)] for arm, row in ends.iterrows()]
    wide = apart.pivot(index="arm", columns="column", values=["final", "error", "in_seeds"]).loc[apart["arm"].unique()]
    other = [[f"minus {ends.index[0]}; in seeds", *columns]]
    for arm, row in wide.iterrows():
        cells = [f"{row['final', c]:+.2f} ± {row['error', c]:.2f}; {row['in_seeds', c]:.1f}" for c in columns]
        other.append([arm, *cells])
    return _lines(lines) + "\n" + _lines(other)


def _lines(lines: list[list[str]]) -> str:
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in ruled)


def draw(results: Path, out: Path | None = None) -> list[Path]:
    """conventions.md and the curves of every arm, in RESULTS/figures or `out`."""
    from rlhf_lab_analysis.curves import curves

    steps, folder = load(results), out or results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conventions.md").write_text(markdown(steps), encoding="utf-8")
    figure = curves(steps, ["kl", "reward_proxy", "reward_gold"], hue="arm", stage="rl")
    figure.savefig(folder / "conventions.png", dpi=200)
    return [folder / "conventions.md", folder / "conventions.png"]


@in_one_sentence
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the files (default RESULTS/figures)")
    given = parser.parse_args(arguments)
    table, figure = draw(given.results, given.out)
    print(table.read_text(encoding="utf-8") + f"\n{figure}")


if __name__ == "__main__":
    sys.exit(main())
