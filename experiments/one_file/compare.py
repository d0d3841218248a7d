"""Rows of rlhf.py beside those of the framework: how far they differ, per stage, split and column.

python experiments/one_file/compare.py RESULTS ROWS.jsonl [TOLERANCE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from rlhf_lab import load
from rlhf_lab.errors import DataError

KEYS = ["stage", "step", "split"]


def differences(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """A row per stage, split and column of `theirs`: rows compared, and the greatest |a − b| / max(1, |b|) among them.

    Raises DataError for a row or a column of `theirs` that `ours` lacks.
    """
    both = theirs.merge(ours, on=KEYS, how="left", suffixes=("", "_ours"), indicator=True)
    if (both["_merge"] != "both").any() or len(both) != len(theirs):
        raise DataError("the framework has not each of these rows once: were the settings the same?")
    found = []
    for (stage, split), rows in both.groupby(["stage", "split"], sort=False):
        for column in (c for c in theirs.columns if c not in KEYS and rows[c].notna().any()):
            if rows[f"{column}_ours"].isna().any():
                raise DataError(f"the framework's rows of {stage}, {split} lack {column}")
            error = (rows[column] - rows[f"{column}_ours"]).abs() / rows[column].abs().clip(lower=1.0)
            found.append({"stage": stage, "split": split, "column": column, "rows": len(rows), "difference": error.max()})
    return pd.DataFrame(found)


def rows_of(path: Path) -> pd.DataFrame:
    return pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def main(results: str, rows: str, tolerance: str = "1e-6") -> int:
    table = differences(load(results), rows_of(Path(rows)))
    print(table.to_string(index=False, float_format=lambda x: f"{x:.1e}"))
    return int((table["difference"] > float(tolerance)).any())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
