"""Files that survive: atomic writes, and stage folders that count only once their commit marker is there.

stages/<hash>/            what the stage wrote
stages/<hash>/COMMIT      written last: name, size and blake2b of every file
stages/<hash>.lock        held while somebody computes the stage
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

COMMIT = "COMMIT"


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that name a JSON value."""
    return hashlib.blake2b(canonical(value).encode(), digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Old content or new, never a part: temporary file beside it, fsync, rename, fsync of the folder."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def json_row(row: Mapping[str, Any]) -> str:
    """One line of JSON: NaN becomes null, infinity 1e999 (which every JSON reader takes for infinity)."""

    def text(value: Any) -> str:
        if isinstance(value, float) and math.isnan(value):
            return "null"
        if isinstance(value, float) and math.isinf(value):
            return "1e999" if value > 0 else "-1e999"
        return json.dumps(value, ensure_ascii=False)

    return "{" + ", ".join(f"{json.dumps(key)}: {text(value)}" for key, value in row.items()) + "}\n"


def is_committed(folder: Path) -> bool:
    return (folder / COMMIT).is_file()


def commit(folder: Path) -> None:
    """Flushes every file of the folder to disk, then writes the marker that makes it count."""
    entries = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "blake2b": file_digest(path)}
    write_json(folder / COMMIT, entries)


def verify(folder: Path) -> list[str]:
    """The files of a committed folder that are not what its marker says; empty if all is well."""
    return [
        name
        for name, entry in read_json(folder / COMMIT).items()
        if not (folder / name).is_file() or file_digest(folder / name) != entry["blake2b"]
    ]


def compute_once(folder: Path, compute: Callable[[Path], None]) -> bool:
    """Runs `compute(folder)` unless the folder is committed already; one process at a time. True if it computed.

    A folder without marker is work that was cut off: `compute` goes on from what it holds, or removes it.
    """
    if is_committed(folder):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if is_committed(folder):
            return False
        folder.mkdir(exist_ok=True)
        compute(folder)
        commit(folder)
    return True
