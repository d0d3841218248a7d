"""Executes runs: `python -m rlhf_lab.worker RUN_DIR`, or `--serve` for one run after another from standard input.

All that a run needs stands in RUN_DIR/run.json, and all that it makes goes to RUN_DIR and the stage store; so whoever
starts workers only has to start them. With `--serve` torch is imported once for many runs; with `--attached` a run ends
when its standard input does. What the worker says about its progress goes to standard output as JSON lines, and the last
of it to RUN_DIR/progress.json; what the code of a run prints goes to RUN_DIR/log.txt.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lab import processes
from rlhf_lab.context import StageContext
from rlhf_lab.declaration.consent import require
from rlhf_lab.declaration.sweep import validate_run
from rlhf_lab.errors import Interrupted, LabError, LeaseLost, SpecError
from rlhf_lab.registry import discover
from rlhf_lab.running import memory_limit
from rlhf_lab.running.forecast import world_of
from rlhf_lab.running.plan import PlannedStage, fingerprint_reader, plan_stages, source_reader
from rlhf_lab.store.cadence import NEVER, cadence
from rlhf_lab.store.checkpoint import keep_only_resumable, remove_checkpoints
from rlhf_lab.store.conditions import bitwise, threads
from rlhf_lab.store.faults import fault
from rlhf_lab.store.files import SCHEMA, compute_once, overwrite, read_json, trouble, write_atomically, write_json
from rlhf_lab.store.leases import Lease
from rlhf_lab.store.provenance import provenance

Say = Callable[..., None]
LAST_CHANCE = 60.0  # seconds to finish a step and save, once whoever started this process is gone


class StopFlag:
    """Turns true at the first SIGTERM or SIGINT: the stage then saves a checkpoint and ends. A second one kills at once,
    and so does the first one between two runs.
    """

    def __init__(self) -> None:
        self.signal, self.busy = 0, True

    def __call__(self) -> bool:
        return self.signal != 0

    def install(self) -> StopFlag:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):  # the last: a cluster's word that time is nearly over
            signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: Any) -> None:
        if self.signal or not self.busy:
            os._exit(128 + number)
        self.signal = number


def execute(run_dir: Path, say: Say = lambda **event: None, stop: Callable[[], bool] = lambda: False) -> str:
    """Computes what is missing of one run. Returns its status, which is also in status.json:

    `done`, `interrupted`, `failed`, or, where the disk is to blame, `failed:disk_full` or `failed:io_error`.
    """
    if processes.rank():
        return accompany(run_dir, stop)
    started = time.monotonic()
    try:
        fault("run.begin", run_dir)
        write_status(run_dir, {"status": "running", "pid": os.getpid()})
        with memory_limit.kept(read_json(run_dir / "run.json").get("memory_limit"), lambda why: write_status(run_dir, why)):
            compute_run(run_dir, noting(run_dir, say), stop)
        outcome: dict[str, Any] = {"status": "done"}
        (run_dir / "traceback.txt").unlink(missing_ok=True)
    except (Interrupted, LeaseLost) as error:
        outcome = {"status": "interrupted", "error": str(error)}
    except Exception as error:
        outcome = failure(error, run_dir)
    fault("run.end", run_dir)
    write_status(run_dir, {**outcome, "seconds": time.monotonic() - started, **provenance()})
    return outcome["status"]


def accompany(run_dir: Path, stop: Callable[[], bool]) -> str:
    """As one of several processes at a run, not the first: the first one writes what becomes of it."""
    try:
        compute_run(run_dir, lambda **event: None, stop)
    except Interrupted:
        return "interrupted"
    return "done"


def noting(run_dir: Path, say: Say) -> Say:
    """How far the run is also stands in RUN_DIR/progress.json, for whoever started it, on whatever machine."""

    def both(**event: Any) -> None:
        with contextlib.suppress(OSError):
            (run_dir / ".progress.json").write_text(json.dumps(event))
            os.replace(run_dir / ".progress.json", run_dir / "progress.json")
        say(**event)

    return both


def failure(error: Exception, run_dir: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        (run_dir / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
    disk = trouble(error)
    message = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
    said = {"status": "failed", "error": " ".join(message.split())}
    return {**said, "status": f"failed:{disk}", "cause": disk} if disk else said


def write_status(run_dir: Path, status: Mapping[str, Any]) -> None:
    """With room to spare, so that a last word can stand in the same place when the disk is full."""
    text = json.dumps(status, indent=1, ensure_ascii=False) + "\n"
    path = run_dir / "status.json"
    try:
        write_atomically(path, text.ljust(2048))
    except OSError as error:
        if trouble(error) is None:
            raise
        with contextlib.suppress(OSError):
            overwrite(path, text)


def compute_run(run_dir: Path, say: Say, stop: Callable[[], bool]) -> None:
    run = read_json(run_dir / "run.json")
    registry = discover([Path(path) for path in run["plugin_files"]])
    config = validate_run(run["config"], registry)
    spec_folder, store = Path(run["spec_folder"]), Path(run["store"])
    require([config], spec_folder, frozenset(map(tuple, run.get("consent", []))))
    if hasattr(config.model, "prepare"):
        config.model.prepare()
    stages = plan_stages(config, run["seed"], registry, fingerprint_reader(spec_folder))
    if (now := {stage.name: stage.hash for stage in stages}) != run["stages"]:
        changed = sorted(name for name in now if now[name] != run["stages"].get(name))
        raise SpecError(
            f"data, plugins or versions changed since the sweep was planned (stages {', '.join(changed)}); plan it again"
        )
    sources = source_reader(registry)
    refuse_other_code(run.get("sources", {}), sources(config, stages))
    processes.connect()
    for stage in stages:
        folder, report = store / stage.hash, reporter(say, stage.name)
        ctx = StageContext(
            config,
            stage.name,
            stage.seed,
            folder,
            {name: store / hash for name, hash in stage.inputs.items()},
            spec_folder,
            report=report,
            checkpoint_every=cadence(run["checkpoint_every"]) if "checkpoint_every" in run else NEVER,
            stop_requested=lambda: any(processes.everybodys(stop())),
            sources=sources(config, [stage]),
            allow_changed=run.get("allow_changed", False),
        )
        if processes.rank():
            compute_alike(stage, ctx)
            continue
        compute_once(
            folder,
            lambda folder, lease, stage=stage, ctx=ctx: compute_stage(stage, ctx, lease),
            stop,
            lambda owner, report=report: report(0, 1, f"{owner} computes it"),
        )
        remove_checkpoints(folder)
        fault("stage.committed", folder)
        processes.firsts("over")


def refuse_other_code(planned: Mapping[str, str], now: Mapping[str, str]) -> None:
    """What was planned with one source is not computed with another."""
    changed = sorted(part for part in planned if now.get(part) != planned[part])
    if changed:
        raise SpecError(f"the code of {', '.join(changed)} changed since the sweep was planned; plan it again")


def compute_stage(stage: PlannedStage, ctx: StageContext, lease: Lease) -> None:
    """One stage, from its last checkpoint if an earlier process left one."""
    started, ctx.still_mine = time.monotonic(), lease.check
    fault("stage.begin", ctx.folder)
    with threads(keep_only_resumable(ctx.folder)):
        processes.firsts("begin")
        processes.firsts("go on")
        stage.component.run(ctx)
        conditions = list(ctx.conditions) or [ctx.conditions_now()]
        measured = {"seconds": time.monotonic() - started, **provenance()}
    write_json(
        ctx.folder / "stage.json",
        {
            "schema": SCHEMA,
            "kind": stage.component.name,
            "parameters": stage.component.model_dump(mode="json"),
            "world": world_of(ctx.config),
            "seed": stage.seed,
            "inputs": dict(stage.inputs),
            "plugin_sources": ctx.sources,
            "bitwise": bitwise(conditions),
            "conditions": conditions,
            **measured,
        },
    )
    fault("stage.computed", ctx.folder)


def compute_alike(stage: PlannedStage, ctx: StageContext) -> None:
    """What the first of several processes computes, from the same checkpoint, in a folder that is thrown away."""
    original = ctx.folder
    while processes.firsts("") == "begin":
        with tempfile.TemporaryDirectory() as own:
            ctx.folder, ctx.checkpoint_every = Path(own), NEVER
            shutil.copytree(original, own, dirs_exist_ok=True)
            processes.firsts("")  # now the first may write
            with threads(keep_only_resumable(ctx.folder)):
                stage.component.run(ctx)


def reporter(say: Say, stage: str, interval: float = 0.3) -> Callable[[int, int, str], None]:
    """Progress at most every `interval` seconds, and at the end."""
    last = [0.0]

    def report(done: int, total: int, text: str) -> None:
        if done == total or time.monotonic() - last[0] >= interval:
            last[0] = time.monotonic()
            say(event="progress", stage=stage, done=done, total=total, text=text)

    return report


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """File descriptors 1 and 2 go to a file inside, those of libraries included."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, saved in zip((1, 2), kept, strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)


def standard_input(stop: StopFlag) -> Iterator[str]:
    """Its lines. When it ends, whoever started this process is gone: the run at work saves and ends, soon or by force."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        rest = b""
        while more := os.read(0, 65536):
            *whole, rest = (rest + more).split(b"\n")
            for line in whole:
                lines.put(line.decode())
        lines.put(None)
        stop.signal = stop.signal or signal.SIGTERM
        time.sleep(LAST_CHANCE)
        os.killpg(0, signal.SIGKILL) if os.getpgrp() == os.getpid() else os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    return iter(lines.get, None)


def speaker() -> Say:
    """Says events on what is standard output now, as JSON lines, as long as somebody listens."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)

    def say(**event: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            channel.write(json.dumps(event) + "\n")

    return say


def serve() -> None:
    """Runs named on standard input, one per line, until it ends."""
    say, stop = speaker(), StopFlag().install()
    stop.busy = False
    for run_dir in map(Path, standard_input(stop)):
        stop.busy = True
        with output_to(run_dir / "log.txt"):
            status = execute(run_dir, say, stop)
        give_memory_back()
        say(event="finished", status=status)
        if stop():
            return
        stop.busy = False


def give_memory_back() -> None:
    """What a run held goes to the system before the next one comes: the allocator keeps it (see `pool.ALLOCATOR`)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # where there is no glibc
        ctypes.CDLL(None).malloc_trim(0)


def log_level(environ: Mapping[str, str] = os.environ) -> int:
    """What RLHF_LAB_LOG_LEVEL says; WARNING where it says nothing, or no level."""
    level = logging.getLevelNamesMapping().get(environ.get("RLHF_LAB_LOG_LEVEL", "").upper(), 0)
    return level or logging.WARNING


def main() -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=log_level())
    if sys.argv[1:] == ["--serve"]:
        serve()
        return 0
    run_dir, *options = map(Path, sys.argv[1:] or [""])
    if options not in ([], [Path("--attached")]) or not (run_dir / "run.json").is_file():
        print("usage: python -m rlhf_lab.worker RUN_DIR [--attached]   (a folder with run.json in it)", file=sys.stderr)
        return 2
    say, stop = speaker(), StopFlag().install()
    if options:
        standard_input(stop)
    with output_to(run_dir / "log.txt"):
        status = execute(run_dir, say, stop)
    later = {"interrupted": 128 + stop.signal if stop.signal else 75, "failed:disk_full": 75, "failed:io_error": 75}
    return 0 if status == "done" else later.get(status, 1)


if __name__ == "__main__":
    sys.exit(main())
