"""`cancel`, `retry` and `reproduce`: runs that are stopped, repeated, or held against their record."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from rlhf_lab.cli.conventions import (
    consent_options,
    given_consent,
    json_option,
    plugin_option,
    results_argument,
    results_option,
    speaks_plainly,
)
from rlhf_lab.errors import LabError, NothingToDo, SpecError
from rlhf_lab.terminal import json_text, one_line, printable


@click.command(
    epilog="""\b
Example:
  rlhf-lab cancel quickstart"""
)
@results_argument
@click.option("--wait", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to wait for the end of it.")
@json_option
@speaks_plainly
def cancel(results: str, wait: float, as_json: bool) -> int:
    """Stop a sweep that runs in another terminal: each run saves at the end of its step, and `run` goes on from there."""
    from rlhf_lab.results.folder import drivers, find_results

    folder = find_results(results)
    asked = drivers(folder)
    if not asked:
        raise NothingToDo(f"no process is running {folder}")
    for owner in asked:
        ask_to_stop(owner)
    deadline = time.monotonic() + wait
    while (left := drivers(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    said = {"results": str(folder), "asked": [owner._asdict() for owner in asked], "stopped": not left}
    click.echo(json_text(said) if as_json else f"{'stopped' if not left else 'asked to stop, still saving:'} {folder}")
    return 0 if not left else 1


def ask_to_stop(owner: Any) -> None:
    """SIGTERM. Raises LabError for a process of another machine, or of another person."""
    from rlhf_lab.store.leases import this_machine

    if owner.machine != this_machine():
        raise LabError(f"{owner} runs the sweep; give this command there")
    try:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(owner.pid, signal.SIGTERM)
    except PermissionError:
        raise LabError(f"{owner} runs the sweep, and it belongs to another user") from None


# ---------------------------------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Example:
  rlhf-lab retry quickstart --failed"""
)
@results_argument
@click.option("--failed", is_flag=True, required=True, help="The runs that failed or took too long. (Others go on by `run`.)")
@plugin_option
@consent_options
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@json_option
@speaks_plainly
def retry(results: str, failed: bool, plugin_files: tuple[Path, ...], quiet: bool, as_json: bool) -> int:
    """Compute the failed runs of a sweep once more, from their last checkpoints, and no others.

    What made them fail should be gone: a full disk, a server, a bug in a library. Plugin files that the sweep used have to
    be named again.
    """
    from rlhf_lab.cli.run import listener, report
    from rlhf_lab.results.folder import DONE, UNFINISHED, find_results, view
    from rlhf_lab.results.recorded import planned_before
    from rlhf_lab.running.drive import Halt
    from rlhf_lab.running.runner import run_sweep

    folder = find_results(results)
    chosen = {run.run_id for run in view(folder) if run.status not in (DONE, *UNFINISHED)}
    if not chosen:
        raise NothingToDo(f"no run of {folder} has failed")
    files = [file.resolve() for file in plugin_files]
    sweep, plan = planned_before(folder, files, given_consent())
    text = (folder / "spec.yaml").read_text(encoding="utf-8")
    with listener(plan, len(plan.runs) - len(chosen), quiet or as_json) as listen, Halt().on_signals() as halt:
        outcome = run_sweep(sweep, plan, folder, files, text, listen, halt, only=chosen)
    report(outcome, as_json, quiet)
    if halt.signal:
        return 128 + halt.signal
    return 1 if outcome.failed else 75 if outcome.interrupted else 0


# ---------------------------------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Example:
  rlhf-lab reproduce 3f2a --out again"""
)
@click.argument("run_id", metavar="RUN_ID")
@results_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep the new results in this folder.")
@plugin_option
@consent_options
@click.option("--quiet", is_flag=True, help="Say nothing but the result.")
@json_option
@speaks_plainly
def reproduce(
    run_id: str, results: str | None, out: Path | None, plugin_files: tuple[Path, ...], quiet: bool, as_json: bool
) -> int:
    """Compute a finished run again from its record, in a fresh store, and compare tables and weights byte for byte.

    Exit code 0 if they are the same bytes, 1 if not; then it says which rows and weights differ, and what was different in
    how they were computed (device, threads, versions, code).
    """
    from rlhf_lab.results.folder import find_results, find_run
    from rlhf_lab.results.reproduce import reproduce as computed_again

    folder, found = find_run(run_id, find_results(results) if results else None)
    if out is not None and out.exists() and any(out.iterdir()):
        raise SpecError(f"--out {out} is not empty; name a folder that is not there yet")
    files = [file.resolve() for file in plugin_files]
    say = (lambda text: None) if quiet or as_json else sparingly(lambda text: click.echo(one_line(text), err=True))
    with contextlib.nullcontext(out) if out else tempfile.TemporaryDirectory(prefix="rlhf-lab-") as place:
        made = computed_again(folder, found, Path(place).resolve(), files, given_consent(), say)
        result = {
            "run_id": found,
            "results": str(folder),
            "reproduction": str(made.folder) if out else None,
            "same": made.same,
            "files": [file._asdict() for file in made.files],
            "conditions": {
                name: {key: list(pair) for key, pair in changed.items()} for name, changed in made.conditions.items()
            },
        }
    click.echo(json_text(result) if as_json else printable(told(result)))
    return 0 if made.same else 1


def sparingly(say: Any, interval: float = 5.0) -> Any:
    """`say`, at most every `interval` seconds."""
    last = [float("-inf")]

    def told_now_and_then(text: str) -> None:
        if time.monotonic() - last[0] >= interval:
            last[0] = time.monotonic()
            say(text)

    return told_now_and_then


def told(result: dict[str, Any]) -> str:
    """The comparison in words."""
    files = result["files"]
    wrong = [file for file in files if file["difference"]]
    lines = [f"{file['stage']}/{file['file']}: {file['difference']}" for file in wrong]
    same = f"{len(files) - len(wrong)} of {len(files)} files of run {result['run_id']} are the same bytes"
    changes = [
        f"{name}: {', '.join(f'{key} {then} → {now}' for key, (then, now) in changed.items())}"
        for name, changed in result["conditions"].items()
        if changed
    ]
    if changes:
        lines.append("computed under other conditions, under which equal bytes are not promised: " + "; ".join(changes))
    elif wrong:
        lines.append("device, threads, versions and code were the same; is the device's arithmetic not deterministic?")
    return "\n".join([*lines, same])
