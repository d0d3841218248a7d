"""Faults on purpose: named points in everything that writes, where a test kills the process or breaks the disk.

    RLHF_LAB_FAULT=write.fsync:kill@3                 the third time that this process passes the point
    RLHF_LAB_FAULT=write.rename[state.json]:enospc    only where a file of that name (a pattern) is concerned
    RLHF_LAB_FAULT=trace:FILE                         appends every point that is passed to FILE, for enumeration

Unset, a point costs one comparison.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rlhf_lab.errors import SpecError

POINTS: Mapping[str, str] = {
    "write.open": "before the temporary file of an atomic write is made",
    "write.data": "before its content is written; torn: half of it is",
    "write.fsync": "before the temporary file is flushed to the disk",
    "write.rename": "before it takes the place of the old file",
    "write.folder": "before the folder that names it is flushed",
    "write.done": "after all that",
    "append.open": "before a table is opened for one more row",
    "append.data": "before the row is written; torn: half of it is",
    "append.done": "after the row is written",
    "commit.fsync": "before a file of a finished folder is flushed",
    "commit.marker": "before the marker that makes a folder count",
    "checkpoint.tables": "before the tables are flushed, ahead of a checkpoint",
    "checkpoint.begin": "before the folder of a checkpoint is made",
    "checkpoint.remove": "before an older checkpoint is removed",
    "checkpoint.cut": "on resuming, before a table is cut back to what the checkpoint knows",
    "lease.claim": "before the file that says who computes a stage gets its name",
    "lease.held": "after that",
    "lease.release": "before a lease is let go",
    "stage.begin": "before a stage is computed, or goes on",
    "stage.step": "after each step of a stage, before a checkpoint that may be due",
    "stage.computed": "after a stage's last file, before the stage is committed",
    "stage.committed": "after the stage counts, before any table or status knows of it",
    "run.begin": "before a run's status says that it runs",
    "run.end": "before a run's last status is written",
}

ERRORS = {"enospc": errno.ENOSPC, "edquot": errno.EDQUOT, "eio": errno.EIO}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "segv": signal.SIGSEGV}
ACTIONS = (*ERRORS, *SIGNALS, "torn", "hang", "oom")


@dataclass
class Armed:
    """One fault that waits for its point; `left` counts the passes until then."""

    point: str
    pattern: str
    action: str
    left: int
    trace: Path | None = None

    def passes(self, point: str, name: str, partial: Callable[[], object] | None) -> None:
        if self.trace is not None:
            with open(self.trace, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {point} {name}\n")
        elif point == self.point and fnmatchcase(name, self.pattern):
            self.left -= 1
            if self.left == 0:
                strike(self.action, name, partial)


def armed_by(text: str | None) -> Armed | None:
    """What RLHF_LAB_FAULT asks for. Raises SpecError for a point or an action that there is not."""
    if not text:
        return None
    if text.startswith("trace:"):
        return Armed("", "", "", 0, Path(text.removeprefix("trace:")))
    match = re.fullmatch(r"([a-z.]+)(?:\[(.+)\])?:([a-z]+)(?:@([1-9]\d*))?", text)
    if match is None or match[1] not in POINTS or match[3] not in ACTIONS:
        raise SpecError(
            f"RLHF_LAB_FAULT={text!r} is not POINT[FILE]:ACTION@N with a point of {', '.join(POINTS)} "
            f"and an action of {', '.join(ACTIONS)}"
        )
    return Armed(match[1], match[2] or "*", match[3], int(match[4] or 1))


armed = armed_by(os.environ.get("RLHF_LAB_FAULT"))


def fault(point: str, path: Path | str = "", partial: Callable[[], object] | None = None) -> None:
    """A point. `partial` does a part of what comes next, for the action `torn`."""
    if armed is not None:
        armed.passes(point, os.path.basename(path), partial)


def strike(action: str, name: str, partial: Callable[[], object] | None) -> None:
    if action in ERRORS:
        raise OSError(ERRORS[action], os.strerror(ERRORS[action]), name)
    if action == "torn" and partial is not None:
        partial()
    if action == "hang":
        while True:
            time.sleep(3600)
    if action == "oom":
        eaten = [bytearray(os.urandom(1) * 2**26) for _ in range(32)]  # 2 GiB at most, then as the kernel does
        del eaten
    os.kill(os.getpid(), SIGNALS.get(action, signal.SIGKILL))
