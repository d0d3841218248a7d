"""Tables for others: parquet without loss, CSV that no spreadsheet executes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lab.store.files import write_atomically

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")
CONTENTS = ("spec.yaml", "plan.json")


def guarded(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets a `'` in front (CWE-1236; OWASP ASVS 1.2.10)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def csv_text(frame: Any) -> str:
    """CSV (RFC 4180) of a frame: texts guarded, headings too; numbers as they are, all digits; NaN empty; NUL removed."""
    safe = frame.rename(columns=guarded)
    for column in safe.columns:
        if not is_numeric(safe[column]):
            safe[column] = safe[column].map(lambda value: guarded(value).replace("\0", "") if isinstance(value, str) else value)
    return safe.to_csv(index=False, lineterminator="\r\n")


def is_numeric(column: Any) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) or is_bool_dtype(column)


def export(results: Path, tables: Mapping[str, Any], out: Path, formats: tuple[str, ...] = ("csv", "parquet")) -> list[Path]:
    """Writes the tables, the spec, the plan and a list of checksums for `sha256sum -c`; returns the files."""
    from rlhf_lab.results.tables import write_parquet

    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, frame in tables.items():
        if "parquet" in formats:
            write_parquet(frame, out / f"{name}.parquet")
            written.append(out / f"{name}.parquet")
        if "csv" in formats:
            write_atomically(out / f"{name}.csv", csv_text(frame))
            written.append(out / f"{name}.csv")
    for name in CONTENTS:
        if (results / name).is_file():
            shutil.copyfile(results / name, out / name)
            written.append(out / name)
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in written)
    write_atomically(out / "SHA256SUMS", sums)
    return [*written, out / "SHA256SUMS"]
