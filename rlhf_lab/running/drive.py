"""Keeps a fleet busy: which run is next, what its end means, and whether it is started again."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_lab.contracts import Fleet
from rlhf_lab.running.claims import Claims
from rlhf_lab.store.files import is_committed, read_json, write_json

Listen = Callable[[str, dict[str, Any]], None]
OF_THE_DISK = ("disk_full", "io_error")  # the next runs would fail of the same
POLL = 0.2  # seconds; a run that ends is noticed at once, a signal or a time limit within this


@dataclass(frozen=True)
class Task:
    """A run that is not finished: its folder, and those of its stages."""

    run_id: str
    folder: Path
    stages: tuple[Path, ...]

    @property
    def driver(self) -> Path:
        """What a driver claims that has the run in flight."""
        return self.folder / "driver"

    def status(self) -> dict[str, Any]:
        """What status.json says; empty where there is none yet."""
        try:
            return read_json(self.folder / "status.json")
        except FileNotFoundError:
            return {}


@dataclass
class Flight:
    """A run in flight. `computes`: the stages that it is computing, or will."""

    task: Task
    computes: set[Path]
    signs: tuple[int, int]
    running_since: float | None = None
    timed_out: bool = False


@dataclass
class Halt:
    """Why the sweep is to stop: the first SIGTERM or SIGINT, a failed run while `fail_fast` is on, a disk that is full."""

    signal: int = 0
    failed: bool = False
    paused: str = ""

    def __bool__(self) -> bool:
        return bool(self.signal or self.failed or self.paused)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[Halt]:
        """Inside, the first signal makes runs stop at the end of their step, and a second one ends everything at once."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number
        os.write(2, b"stopping: each run saves at the end of its step (a second time: at once)\n")


@dataclass
class Ends:
    """How runs ended: those `done`, and for the others their status."""

    done: list[str] = field(default_factory=list)
    found_done: list[str] = field(default_factory=list)
    others: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def drive(fleet: Fleet, tasks: Sequence[Task], rules: Any, halt: Halt, claims: Claims, listen: Listen) -> Ends:
    """Every task started, at most `fleet.slots` at a time, until all have ended; with `halt`, until none is in flight."""
    waiting, flights, ends, asked = list(tasks), {}, Ends(), False
    tries: Counter[tuple[str, str]] = Counter()
    while waiting or flights:
        if halt and not asked:
            asked = True
            waiting.clear()
            fleet.stop(list(flights))
        take_off(fleet, waiting, flights, claims, ends, listen)
        if not flights and waiting:
            time.sleep(POLL)  # another driver is at all that is left
            continue
        for folder, how in fleet.ended(POLL).items():
            flight = flights.pop(folder)
            run_id, status = flight.task.run_id, judged(flight, how, rules, stopping=bool(halt))
            cause = status.get("cause", "")
            if cause and not halt and tries[run_id, cause] < getattr(rules.retries, cause):
                tries[run_id, cause] += 1
                waiting.insert(0, flight.task)
                listen(run_id, {**status, "event": "retry"})
            else:
                settle(flight.task, status, ends, listen)
                halt.failed |= rules.fail_fast and status["status"] not in ("done", "interrupted")
                halt.paused = halt.paused or (status["error"] if cause in OF_THE_DISK else "")
            claims.release(flight.task.driver, finished=status["status"] == "done")
        for flight in flights.values():
            look_after(flight, fleet, rules, listen)
    return ends


def take_off(
    fleet: Fleet, waiting: list[Task], flights: dict[Path, Flight], claims: Claims, ends: Ends, listen: Listen
) -> None:
    """Starts what there is room for, but no run whose next stage another one in flight will compute.

    So no slot is taken by a run that only waits. A run that another driver has in flight is passed over.
    """
    is_there, starting = cache(is_committed), []
    busy = set().union(*(flight.computes for flight in flights.values()))
    for task in list(waiting):
        if len(flights) + len(starting) >= fleet.slots:
            break
        next_stage = next((stage for stage in task.stages if not is_there(stage)), None)
        if next_stage in busy or not claims.take(task.driver):
            continue
        waiting.remove(task)
        missing = {stage for stage in task.stages if not is_committed(stage)}
        status = task.status().get("status")
        if status == "done" and not missing:  # another driver did it
            ends.found_done.append(task.run_id)
            listen(task.run_id, {"event": "finished", "status": "done"})
            claims.release(task.driver, finished=True)
            continue
        if status != "running":  # which it may be, on another machine, since an earlier driver started it
            (task.folder / "status.json").unlink(missing_ok=True)
        starting.append(Flight(task, missing, signs_of_life(task)))
        busy |= missing
        listen(task.run_id, {"event": "started"})
    flights |= {flight.task.folder: flight for flight in starting}
    if starting:
        fleet.start([flight.task.folder for flight in starting])


def judged(flight: Flight, how: str, rules: Any, stopping: bool) -> dict[str, Any]:
    """The run's own status, or, if its process ended without one, what is known. `cause`: what may be worth another try."""
    status = flight.task.status()
    if status.get("status", "").startswith(("done", "failed", "interrupted")):
        return {"cause": cause_of(status["status"]), **status}
    if flight.timed_out:
        status = {"status": "timeout", "error": f"it took longer than time_limit: {rules.time_limit:g} s", "cause": "timeout"}
    elif stopping:
        status = {"status": "interrupted", "error": "the sweep was stopped", "cause": "interrupted"}
    else:
        status = {"status": "failed", "error": f"the worker process ended: {how or 'without a word'}", "cause": "died"}
    write_json(flight.task.folder / "status.json", status)
    return status


def cause_of(status: str) -> str:
    """The name that resources.retries has for it: `failed:disk_full` is disk_full, `failed` an exception."""
    return {"done": "", "interrupted": "interrupted", "failed": "exception"}.get(status, status.partition(":")[2])


def settle(task: Task, status: Mapping[str, Any], ends: Ends, listen: Listen) -> None:
    if status["status"] == "done":
        ends.done.append(task.run_id)
    else:
        ends.others[task.run_id] = status
    listen(task.run_id, {**status, "event": "finished"})


def look_after(flight: Flight, fleet: Fleet, rules: Any, listen: Listen) -> None:
    """Passes on its progress, and ends it when its time is over. Time in a queue does not count."""
    flight.computes = {stage for stage in flight.computes if not is_committed(stage)}
    before, flight.signs = flight.signs, signs_of_life(flight.task)
    if flight.signs == before and flight.running_since is None:
        return
    flight.running_since = flight.running_since or time.monotonic()
    if flight.signs[1] != before[1]:
        listen(flight.task.run_id, read_json(flight.task.folder / "progress.json"))
    if rules.time_limit and not flight.timed_out and time.monotonic() - flight.running_since > rules.time_limit:
        flight.timed_out = True
        fleet.kill([flight.task.folder])


def signs_of_life(task: Task) -> tuple[int, int]:
    """When the run wrote its status, and how far it is; 0 where it has not."""

    def written(name: str) -> int:
        try:
            return (task.folder / name).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    return written("status.json"), written("progress.json")
