"""One process at a time, on one machine or on several that share a file system, without flock and without clocks.

    <target>.lease.<n>    who works on `target`: machine, pid, start of the process. It gets its name by link(2), which is
                          atomic and fails where the name is taken. The highest n is the holder.

A holder that is dead, or that let go, is succeeded by n + 1, for which exactly one process can win. No number is used
twice before the work is finished, so what a slow process learned about n stays true. The holder touches its file every
HEARTBEAT seconds. It is dead if its machine is ours and has no process of that pid and start time (a reused pid has another),
or if its machine is another and the file was not touched for PATIENCE seconds, measured by who watches it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.errors import Interrupted, LeaseLost
from rlhf_lab.store.faults import fault

HEARTBEAT, PATIENCE, POLL = 5.0, 60.0, 0.1  # seconds
HIDDEN = "hidden"


class Owner(NamedTuple):
    machine: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.machine.split('/')[0]}"


class Lease(NamedTuple):
    """What its holder has: `check` raises LeaseLost once somebody else took over, thinking this process dead."""

    target: Path
    number: int

    def check(self) -> None:
        if place(self.target, self.number + 1).exists():
            raise LeaseLost(f"{self.target.name} was taken over by another process, since this one gave no sign of life")


@contextlib.contextmanager
def lease(
    target: Path,
    finished: Callable[[], bool],
    stop: Callable[[], bool] = lambda: False,
    waiting: Callable[[Owner], None] = lambda owner: None,
) -> Iterator[Lease | None]:
    """Inside, nobody else works on `target`, while a thread touches the lease."""
    held = acquired(target, finished, stop, waiting)
    if held is None:
        yield None
        return
    ended = threading.Event()
    pulse = threading.Thread(target=beat, args=(place(*held), ended), daemon=True)
    pulse.start()
    fault("lease.held", target)
    try:
        yield held
    finally:
        ended.set()
        pulse.join()
        fault("lease.release", target)
        forget(target) if finished() else let_go(place(*held))


def acquired(
    target: Path,
    finished: Callable[[], bool],
    stop: Callable[[], bool],
    waiting: Callable[[Owner], None] = lambda owner: None,
) -> Lease | None:
    """The lease without its heartbeat; None if `finished()` came true. Raises Interrupted if asked to stop."""
    watched: tuple[int, int, float] = (0, 0, 0.0)
    while not finished():
        number = newest(target)
        found = look(place(target, number)) if number else None
        if number and found is None:
            continue  # removed between two looks: the work is finished
        if found is not None:
            owner, touched = found
            if watched[:2] != (number, touched):
                watched = (number, touched, time.monotonic())
            if not is_dead(owner, touched, time.monotonic() - watched[2]):
                if stop():
                    raise Interrupted(f"stopped while waiting for {target.name}, which {owner} computes")
                waiting(owner)
                time.sleep(POLL)
                continue
        if claimed(target, number + 1):
            return Lease(target, number + 1)
    return None


def claimed(target: Path, number: int) -> bool:
    """True for one process only, however many try. A link that a server made but did not confirm shows in the count."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.lease.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(this_process()._asdict(), file)
        fault("lease.claim", target)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, place(target, number))
        return os.stat(temporary).st_nlink == 2
    except FileNotFoundError:  # cleared away: the work is finished
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)


def holder(target: Path) -> Owner | None:
    """Who works on it now, for those who only ask; None if nobody does, or nobody that is alive."""
    number = newest(target)
    found = look(place(target, number)) if number else None
    if found is None:
        return None
    age = time.time() - found[1] / 1e9  # of a file that another machine touches: only for display
    return None if is_dead(*found, age) else found[0]


def is_dead(owner: Owner, touched: int, silent: float) -> bool:
    """`touched` is the time of the file in ns, 0 if it was let go; `silent` the seconds since it last changed."""
    if touched == 0:
        return True
    if owner.machine == this_machine() and (started := process_start(owner.pid)) != HIDDEN:
        return started != owner.started
    return silent >= PATIENCE


def place(target: Path, number: int) -> Path:
    return target.with_name(f"{target.name}.lease.{number}")


def newest(target: Path) -> int:
    number = 0
    while place(target, number + 1).exists():
        number += 1
    return number


def look(path: Path) -> tuple[Owner, int] | None:
    """Owner and time of a lease; opened, so that a network file system asks its server."""
    try:
        with open(path, encoding="utf-8") as file:
            return Owner(**json.load(file)), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def let_go(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, (0, 0))


def forget(target: Path) -> None:
    """After the work is finished, when nobody needs a lease any more."""
    for path in [*target.parent.glob(f"{target.name}.lease.*"), *target.parent.glob(f".{target.name}.lease.*.tmp")]:
        path.unlink(missing_ok=True)


def beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def this_process() -> Owner:
    return Owner(this_machine(), os.getpid(), process_start(os.getpid()) or "")


@cache
def this_machine() -> str:
    """A pid means something within one boot of one machine, and within one namespace of pids (a container has its own)."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def exists(pid: int) -> bool:
    """Also of a process of another user, whom /proc may hide from us."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def process_start(pid: int) -> str | None:
    """When a process began, as its machine counts; None if there is none, or only what is left of one (a zombie)."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return HIDDEN if exists(pid) else None
        return None if fields[0] in "ZX" else fields[19]
    listed = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.split()
    return " ".join(listed[1:]) if listed and listed[0][0] not in "ZX" else None
