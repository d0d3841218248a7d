"""Files that survive: atomic writes, and stage folders that count only once their commit marker is there.

stages/<hash>/            what the stage wrote
stages/<hash>/COMMIT      written last: name, size and blake2b of every file
stages/<hash>.lease.<n>   who computes the stage
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_lab.store.faults import fault
from rlhf_lab.store.leases import Lease, Owner, lease

COMMIT = "COMMIT"
SCHEMA = 1
TEMPORARY = ".tmp"
PASSING = ("checkpoint-", "torn-", ".")
"""What the names of files and folders begin with that are of use only until a stage is finished."""

log = logging.getLogger("rlhf_lab")


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
    fault("write.open", path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            fault("write.data", path, lambda: half(file, data))
            file.write(data)
            file.flush()
            fault("write.fsync", path)
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        fault("write.rename", path)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fault("write.folder", path)
    sync_folder(path.parent)
    fault("write.done", path)


def half(file: BinaryIO, data: bytes) -> None:
    file.write(data[: len(data) // 2])
    file.flush()


def append_line(path: Path, line: str) -> None:
    """One more whole line, by the one process that writes the file; what a crash left of a line is cut off first."""
    data = line.encode()
    fault("append.open", path)
    with open(path, "ab+") as file:
        mend(file, path)
        fault("append.data", path, lambda: half(file, data))
        file.write(data)
    fault("append.done", path)


def mend(file: BinaryIO, path: Path) -> None:
    """Cuts off what stands after the last line end, and says so: a torn line, or the zeros that a power cut leaves."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size and file.read(1) != b"\n":
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        log.warning("%s: the last %d bytes are no whole line (a write was cut off); truncated", path, size - whole)


def overwrite(path: Path, content: str) -> None:
    """Into the place that the file has on the disk: for a few words on a disk that is full. Blanks fill the rest."""
    with open(path, "r+b") as file:
        file.write(content.encode().ljust(path.stat().st_size))


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
    for name, path in sorted(lasting(folder).items()):
        fault("commit.fsync", path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        entries[name] = {"size": path.stat().st_size, "blake2b": file_digest(path)}
    for inner in {path.parent for path in map(folder.joinpath, entries)}:
        sync_folder(inner)
    fault("commit.marker", folder)
    write_json(folder / COMMIT, entries)
    sync_folder(folder.parent)


def lasting(folder: Path) -> dict[str, Path]:
    """The files of a folder by name, but for checkpoints and what a crash left of a write."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in names.items() if name != COMMIT and not name.startswith(PASSING)}


def trouble(error: BaseException) -> str | None:
    """`disk_full` or `io_error` where the disk is to blame; what Rust libraries raise says so in words only."""
    numbers = {
        errno.ENOSPC: "disk_full",
        errno.EDQUOT: "disk_full",
        errno.EFBIG: "disk_full",
        errno.EIO: "io_error",
        errno.EROFS: "io_error",
    }
    number = error.errno if isinstance(error, OSError) else None
    said = re.search(r"os error (\d+)", str(error))
    found = numbers.get(number or 0) or (numbers.get(int(said[1])) if said else None)
    before = error.__cause__ or error.__context__
    return found or (trouble(before) if before is not None else None)


def verify(folder: Path) -> list[str]:
    """The files of a committed folder that are not what its marker says; empty if all is well."""
    return [
        name
        for name, entry in read_json(folder / COMMIT).items()
        if not (folder / name).is_file() or file_digest(folder / name) != entry["blake2b"]
    ]


def compute_once(
    folder: Path,
    compute: Callable[[Path, Lease], None],
    stop: Callable[[], bool] = lambda: False,
    waiting: Callable[[Owner], None] = lambda owner: None,
) -> bool:
    """Runs `compute(folder, lease)` unless the folder is committed already; one process at a time. True if it computed.

    A folder without marker is work that was cut off: `compute` goes on from what it holds, or removes it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lease(folder, lambda: is_committed(folder), stop, waiting) as held:
        if held is None or is_committed(folder):
            return False
        folder.mkdir(exist_ok=True)
        compute(folder, held)
        held.check()
        commit(folder)
    return True
