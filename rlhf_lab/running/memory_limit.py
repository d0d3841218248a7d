"""A bound on the memory of a run, kept by the run itself: wherever it was started, it ends before the machine suffers.

RLIMIT_AS counts what is merely reserved, of which torch takes gigabytes; so resident memory is watched instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

GIB = 2**30
LOOK, LOOK_FOR_CHILDREN = 0.1, 1.0  # seconds; the second means reading all of /proc


@contextlib.contextmanager
def kept(gib: float | None, say_why: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Inside, this process and its children hold no more than that, or they are killed, after `say_why(status)`."""
    if gib is None:
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(gib, say_why, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def watch(gib: float, say_why: Callable[[dict[str, Any]], None], ended: threading.Event) -> None:
    me, others, next_look = first_of_the_run(), [], 0.0
    while not ended.wait(LOOK):
        if time.monotonic() >= next_look:
            others, next_look = me.children(recursive=True), time.monotonic() + LOOK_FOR_CHILDREN
        held = sum(map(resident, [me, *others]))
        if held > gib * GIB:
            error = f"it held {held / GIB:.2f} GiB of memory, more than memory_limit: {gib:g}"
            say_why({"status": "failed:memory", "error": error, "cause": "memory"})
            for process in me.children(recursive=True):
                end(process)
            os.kill(os.getpid(), signal.SIGKILL)


def first_of_the_run() -> psutil.Process:
    """This process, or, of several at one run, the one that started them."""
    return psutil.Process(os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid())


def resident(process: psutil.Process) -> int:
    """Bytes; what processes share counts in each of them. 0 of one that is gone."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def end(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
