"""Executes runs: `python -m rlhf_lab.worker RUN_DIR`, or `--serve` for one run after another from standard input.

All that a run needs stands in RUN_DIR/run.json, and all that it makes goes to RUN_DIR and the stage store; so whoever
starts workers only has to start them. With `--serve` torch is imported once for many runs. What the worker says about
its progress goes to standard output as JSON lines; what the code of a run prints goes to RUN_DIR/log.txt.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf_lab.checkpoint import keep_only_resumable, remove_checkpoints
from rlhf_lab.context import StageContext
from rlhf_lab.errors import Interrupted, LabError, SpecError
from rlhf_lab.plan import PlannedStage, components, fingerprint_reader, plan_stages
from rlhf_lab.provenance import provenance
from rlhf_lab.registry import Registry, discover
from rlhf_lab.spec import RunConfig, validate_run
from rlhf_lab.store import compute_once, read_json, write_json

Say = Callable[..., None]


class StopFlag:
    """Turns true at the first SIGTERM or SIGINT: the stage then saves a checkpoint and ends. A second one kills at once,
    and so does the first one between two runs.
    """

    def __init__(self) -> None:
        self.signal, self.busy = 0, True

    def __call__(self) -> bool:
        return self.signal != 0

    def install(self) -> StopFlag:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: Any) -> None:
        if self.signal or not self.busy:
            os._exit(128 + number)
        self.signal = number


def execute(run_dir: Path, say: Say = lambda **event: None, stop: Callable[[], bool] = lambda: False) -> str:
    """Computes what is missing of one run. Returns its status, `done`, `failed` or `interrupted`; also in status.json."""
    started = time.monotonic()
    write_json(run_dir / "status.json", {"status": "running", "pid": os.getpid()})
    try:
        compute_run(run_dir, say, stop)
        outcome: dict[str, Any] = {"status": "done"}
        (run_dir / "traceback.txt").unlink(missing_ok=True)
    except Interrupted as error:
        outcome = {"status": "interrupted", "error": str(error)}
    except Exception as error:
        (run_dir / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        message = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        outcome = {"status": "failed", "error": " ".join(message.split())}
    write_json(run_dir / "status.json", {**outcome, "seconds": time.monotonic() - started, **provenance()})
    return outcome["status"]


def compute_run(run_dir: Path, say: Say, stop: Callable[[], bool]) -> None:
    run = read_json(run_dir / "run.json")
    registry = discover([Path(path) for path in run["plugin_files"]])
    config = validate_run(run["config"], registry)
    spec_folder, store = Path(run["spec_folder"]), Path(run["store"])
    stages = plan_stages(config, run["seed"], registry, fingerprint_reader(spec_folder))
    if (now := {stage.name: stage.hash for stage in stages}) != run["stages"]:
        changed = sorted(name for name in now if now[name] != run["stages"].get(name))
        raise SpecError(
            f"data, plugins or versions changed since the sweep was planned (stages {', '.join(changed)}); plan it again"
        )
    for stage in stages:
        folder = store / stage.hash
        inputs = {name: store / hash for name, hash in stage.inputs.items()}
        ctx = StageContext(
            config,
            stage.name,
            stage.seed,
            folder,
            inputs,
            spec_folder,
            report=reporter(say, stage.name),
            checkpoint_every=run.get("checkpoint_every", math.inf),
            stop_requested=stop,
        )
        compute_once(folder, lambda folder, stage=stage, ctx=ctx: compute_stage(stage, ctx, registry))


def compute_stage(stage: PlannedStage, ctx: StageContext, registry: Registry) -> None:
    """One stage, from its last checkpoint if an earlier process left one."""
    started = time.monotonic()
    keep_only_resumable(ctx.folder)
    stage.component.run(ctx)
    remove_checkpoints(ctx.folder)
    sources = {f"{r.kind}/{r.name}": r.source_hash() for r in used(ctx.config, stage, registry)}
    write_json(
        ctx.folder / "stage.json",
        {
            "kind": stage.component.name,
            "parameters": stage.component.model_dump(mode="json"),
            "seed": stage.seed,
            "inputs": dict(stage.inputs),
            "seconds": time.monotonic() - started,
            "plugin_sources": sources,
            **provenance(),
        },
    )


def used(config: RunConfig, stage: PlannedStage, registry: Registry) -> list[Any]:
    roots = (stage.component, config.data, config.model, config.template)
    return [registry.registration_of(part) for root in roots for part in components(root)]


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


def serve() -> None:
    """Runs named on standard input, one per line, until it ends.

    Where nobody listens any more the sweep was killed: then the process ends at once, so that the sweep that resumes
    does not meet it at the same stage.
    """
    channel = os.fdopen(os.dup(1), "w", buffering=1)

    def say(**event: Any) -> None:
        try:
            channel.write(json.dumps(event) + "\n")
        except BrokenPipeError:
            os._exit(1)

    stop = StopFlag().install()
    stop.busy = False
    for line in sys.stdin:
        run_dir, stop.busy = Path(line.rstrip("\n")), True
        with output_to(run_dir / "log.txt"):
            status = execute(run_dir, say, stop)
        say(event="finished", status=status)
        if stop():
            return
        stop.busy = False


def main() -> int:
    if sys.argv[1:] == ["--serve"]:
        serve()
        return 0
    if len(sys.argv) != 2 or not Path(sys.argv[1], "run.json").is_file():
        print("usage: python -m rlhf_lab.worker RUN_DIR   (a folder with run.json in it)", file=sys.stderr)
        return 2
    stop = StopFlag().install()
    status = execute(Path(sys.argv[1]), lambda **event: print(json.dumps(event), flush=True), stop)
    return {"done": 0, "interrupted": 128 + stop.signal}.get(status, 1)


if __name__ == "__main__":
    sys.exit(main())
