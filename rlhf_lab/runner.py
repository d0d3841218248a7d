"""Runs a sweep: writes what each run needs, keeps warm workers busy, and puts the tables together.

The same command resumes, extends or does nothing: a stage that is in the store is never computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lab.plan import Plan, PlannedRun
from rlhf_lab.provenance import git_state, package_versions
from rlhf_lab.records import compact
from rlhf_lab.spec import Resources, Sweep
from rlhf_lab.store import is_committed, read_json, write_atomically, write_json

Listen = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to. `failed` maps a run to its error."""

    results: Path
    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def results_folder(experiment: str, root: Path | None) -> Path:
    """<root>/<experiment>, root being --out, RLHF_LAB_RUNS_DIR or ./results."""
    return (root or Path(os.environ.get("RLHF_LAB_RUNS_DIR") or "results")).resolve() / experiment


def prepare(sweep: Sweep, plan: Plan, results: Path, plugin_files: Sequence[Path]) -> None:
    """Writes the plan and a run.json for each run; a run that is finished keeps the revision that it was computed with."""
    git = git_state(sweep.folder)
    for run in plan.runs:
        file = results / "runs" / run.run_id / "run.json"
        computed_with = read_json(file).get("git", {}) if is_finished(results, run) else git
        write_json(
            file,
            {
                "run_id": run.run_id,
                "arm": run.arm,
                "axes": dict(run.axes),
                "seed": run.seed,
                "config": run.raw,
                "stages": {stage.name: stage.hash for stage in run.stages},
                "spec_folder": str(sweep.folder),
                "store": str(results / "stages"),
                "plugin_files": [str(path) for path in plugin_files],
                "git": computed_with,
                "checkpoint_every": sweep.file.resources.checkpoint_every,
            },
        )
    write_json(
        results / "plan.json",
        {
            "experiment": sweep.file.experiment,
            "runs": [run.run_id for run in plan.runs],
            "packages": package_versions(),
            **git,
            "resolved": {run.run_id: run.config.model_dump(mode="json") for run in plan.runs},
        },
    )


def is_finished(results: Path, run: PlannedRun) -> bool:
    folder = results / "runs" / run.run_id
    status = folder / "status.json"
    return (
        status.is_file()
        and (folder / "run.json").is_file()
        and read_json(status)["status"] == "done"
        and all(is_committed(results / "stages" / stage.hash) for stage in run.stages)
    )


def width(resources: Resources, n_runs: int) -> tuple[int, int]:
    """(workers, threads per worker): all cores used, none twice."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(resources.workers or cores, max(1, n_runs))
    return workers, resources.threads or max(1, cores // workers)


def run_sweep(sweep: Sweep, plan: Plan, results: Path, plugin_files: Sequence[Path], spec_text: str, listen: Listen) -> Outcome:
    """Computes every run of the plan that is not finished. One run that fails does not stop the others."""
    write_atomically(results / "spec.yaml", spec_text)
    prepare(sweep, plan, results, plugin_files)
    reused = [run.run_id for run in plan.runs if is_finished(results, run)]
    outcome = Outcome(results, reused=reused)
    pending: queue.SimpleQueue[str] = queue.SimpleQueue()
    todo = [run.run_id for run in plan.runs if run.run_id not in reused]
    for run_id in todo:
        pending.put(run_id)
    workers, threads = width(sweep.file.resources, len(todo))
    pool = [Worker(threads) for _ in range(workers if todo else 0)]
    slots = [threading.Thread(target=work, args=(worker, pending, results, outcome, listen), daemon=True) for worker in pool]
    try:
        for slot in slots:
            slot.start()
        for slot in slots:
            while slot.is_alive():
                slot.join(0.2)  # with a timeout, so that Ctrl-C is noticed
    finally:
        end_of_work(pool, slots)
        compact(results)
    return outcome


def end_of_work(pool: Sequence[Worker], slots: Sequence[threading.Thread], grace: float = 20.0) -> None:
    """All processes ended: asked first, so that a stage can save where it is, and after `grace` seconds killed."""
    for worker in pool:
        worker.ask_to_stop()
    deadline = time.monotonic() + grace
    for worker in pool:
        worker.stop(max(0.1, deadline - time.monotonic()))
    for slot in slots:
        if slot.ident is not None:
            slot.join(10)
    for worker in pool:
        worker.close()


def work(worker: Worker, pending: queue.SimpleQueue[str], results: Path, outcome: Outcome, listen: Listen) -> None:
    """One slot of the pool: takes runs until there are none, or it is stopped."""
    while not worker.stopped:
        try:
            run_id = pending.get_nowait()
        except queue.Empty:
            return
        listen(run_id, {"event": "started"})
        try:
            end = worker.run(results / "runs" / run_id, lambda event, run_id=run_id: listen(run_id, event))
        except Exception as error:  # a full disk, no more processes: the other runs may still have luck
            end = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        if end["status"] == "done":
            outcome.done.append(run_id)
        else:
            outcome.failed[run_id] = end.get("error", "")
        listen(run_id, {"event": "finished", **end})


class Worker:
    """A process that imports torch once and then executes runs. If it dies, only its run fails; a fresh one takes the next."""

    def __init__(self, threads: int) -> None:
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False
        self.lock = threading.Lock()

    def run(self, run_dir: Path, listen: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Executes one run and waits for it; returns its status and error."""
        process = self._started()
        if process is None:
            return {"status": "interrupted", "error": "the sweep was stopped"}
        try:
            process.stdin.write(f"{run_dir}\n")
            process.stdin.flush()
            for event in map(parsed, process.stdout):
                if event.get("event") == "finished":
                    return read_json(run_dir / "status.json")
                if event:
                    listen(event)
        except BrokenPipeError:
            pass
        return self._died(run_dir)

    def _started(self) -> subprocess.Popen[str] | None:
        """The process; None once the sweep is stopped. -P: nothing is imported from the working directory."""
        with self.lock:
            if self.stopped:
                return None
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "rlhf_lab.worker", "--serve"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=self.environment,
                    start_new_session=True,
                )
            return self.process

    def _died(self, run_dir: Path) -> dict[str, Any]:
        code = self.process.wait()
        self.close()
        if self.stopped:
            status = {"status": "interrupted", "error": "the sweep was stopped"}
        else:
            status = {"status": "failed", "error": f"the worker process ended: {cause_of_death(code)}"}
        write_json(run_dir / "status.json", status)
        return status

    def ask_to_stop(self) -> None:
        """No further run is started; the process, and whatever it started, is told to end."""
        with self.lock:
            self.stopped = True
        self._signal(signal.SIGTERM)

    def stop(self, grace: float) -> None:
        """Waits for the end of the process, `grace` seconds at most."""
        if self.process is not None:
            try:
                self.process.wait(timeout=grace)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self.process.wait()

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Lets go of the pipes of a process that has ended."""
        if self.process is not None and self.process.poll() is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def cause_of_death(code: int) -> str:
    """What a return code says; the kernel kills with SIGKILL what needs more memory than there is."""
    if code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}{' (out of memory?)' if -code == signal.SIGKILL else ''}"


def parsed(line: str) -> dict[str, Any]:
    """An event; empty for a line that is none, such as one that was cut off or what a library printed."""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return event if isinstance(event, dict) else {}
