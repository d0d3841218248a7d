"""One run again, from what was recorded of it, in a store of its own; and what came out held against the record, byte by byte.

The answers that a stage had from outside (journal.py) are replayed, so that a reward server that is gone, or has changed,
stands in nobody's way.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.declaration.consent import Consent
from rlhf_lab.errors import DataError
from rlhf_lab.registry import discover
from rlhf_lab.results.folder import read, stage_folders
from rlhf_lab.results.recorded import record_of, recorded_config, refuse_unnamed_plugins
from rlhf_lab.running.plan import fingerprint_reader, plan_stages
from rlhf_lab.store.files import COMMIT, is_committed, read_json, verify, write_json
from rlhf_lab.store.journal import PREFIX

DESCRIPTIONS = ("stage.json",)
"""Files that say when and where something was computed; they are compared by what they say, not byte by byte."""


class FileComparison(NamedTuple):
    """`difference` says how two versions of a file differ; empty where they are the same bytes."""

    stage: str
    file: str
    difference: str


@dataclass(frozen=True)
class Reproduction:
    """What came of it. `conditions` names, for each stage, what was different in how it was computed."""

    run_id: str
    folder: Path
    files: Sequence[FileComparison]
    conditions: Mapping[str, Mapping[str, tuple[Any, Any]]]

    @property
    def same(self) -> bool:
        return not any(file.difference for file in self.files)


def finished_run(results: Path, run_id: str) -> dict[str, Any]:
    """The record of a run whose stages are all there, unharmed. Raises DataError."""
    run = record_of(results, run_id)
    for name, folder in stage_folders(results, run).items():
        if not is_committed(folder):
            raise DataError(f"stage {name} of run {run_id} is not finished in {folder}, so there is nothing to compare with")
        if broken := verify(folder):
            raise DataError(f"{folder / broken[0]} is not the file that was written, so there is nothing to compare with")
    return run


def reproduce(
    results: Path, run_id: str, out: Path, plugin_files: Sequence[Path], consent: Consent, say: Callable[[str], None]
) -> Reproduction:
    """Computes the run in `out`, with as many threads as it had, and compares."""
    run = finished_run(results, run_id)
    refuse_unnamed_plugins(run, plugin_files)
    old = stage_folders(results, run)
    new = planned_again(run, out, plugin_files, consent)
    for name, folder in new.items():
        replay(old[name], folder)
    compute(out / "runs" / run_id, threads(results, run_id), say)
    files = [file for name in old for file in compared(name, old[name], new[name])]
    return Reproduction(run_id, out, files, {name: changed_conditions(old[name], new[name]) for name in old})


def planned_again(run: Mapping[str, Any], out: Path, plugin_files: Sequence[Path], consent: Consent) -> dict[str, Path]:
    """Writes a run.json in `out`; the folders of its stages, which have other names where code or data changed."""
    registry = discover(plugin_files)
    config = recorded_config(run, registry, consent)
    stages = plan_stages(config, run["seed"], registry, fingerprint_reader(Path(run["spec_folder"])))
    record = {
        **run,
        "stages": {stage.name: stage.hash for stage in stages},
        "store": str(out / "stages"),
        "plugin_files": [str(path) for path in plugin_files],
        "consent": sorted(map(list, consent)),
        "sources": {},
    }
    write_json(out / "runs" / run["run_id"] / "run.json", record)
    write_json(out / "plan.json", {"experiment": "reproduction", "runs": [run["run_id"]]})
    return {stage.name: out / "stages" / stage.hash for stage in stages}


def replay(old: Path, new: Path) -> None:
    """Gives a stage the answers that were given then."""
    for journal in old.glob(f"{PREFIX}*"):
        new.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(journal, new / journal.name)


def threads(results: Path, run_id: str) -> int | None:
    return read(results / "runs" / run_id / "status.json").get("threads")


def compute(run_dir: Path, n_threads: int | None, say: Callable[[str], None]) -> None:
    """In a worker process, as any run is. Raises DataError with what it says where it fails."""
    variables = {name: str(n_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if n_threads}
    command = [sys.executable, "-P", "-m", "rlhf_lab.worker", str(run_dir)]
    with (
        open(run_dir / "log.txt", "ab") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **variables}) as process,
    ):
        for line in process.stdout:
            event = parsed(line)
            if event.get("event") == "progress":
                say(f"{event['stage']} {event['done']}/{event['total']}  {event['text']}")
    status = read(run_dir / "status.json")
    if status.get("status") != "done":
        raise DataError(f"the run could not be computed again: {status.get('error') or 'see ' + str(run_dir / 'log.txt')}")


def parsed(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


# ---------------------------------------------------------------------------------------------------------------
# Comparison


def compared(stage: str, old: Path, new: Path) -> list[FileComparison]:
    """Every file of a stage, from the checksums of both."""
    before, after = read_json(old / COMMIT), read_json(new / COMMIT)
    names = [name for name in sorted({*before, *after}) if name not in DESCRIPTIONS]
    return [FileComparison(stage, name, difference(name, old, new, before.get(name), after.get(name))) for name in names]


def difference(name: str, old: Path, new: Path, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    if before == after:
        return ""
    if before is None or after is None:
        return "is only in the reproduction" if before is None else "is missing in the reproduction"
    if name.endswith(".jsonl"):
        return first_different_row((old / name).read_bytes().split(b"\n"), (new / name).read_bytes().split(b"\n"))
    return largest_gap(old / name, new / name) if name.endswith(".safetensors") else "other bytes"


def first_different_row(before: Sequence[bytes], after: Sequence[bytes]) -> str:
    """`row 12: kl 0.25 became 0.26`."""
    for number, (old, new) in enumerate(zip(before, after, strict=False), 1):
        if old != new:
            was, now = parsed(old), parsed(new)
            changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
            said = ", ".join(f"{key} {was.get(key)!r} became {now.get(key)!r}" for key in changed[:3])
            return f"row {number}: {said or 'other bytes'}{', …' if len(changed) > 3 else ''}"
    return f"{len(before) - 1} rows became {len(after) - 1}"


def largest_gap(old: Path, new: Path) -> str:
    """The largest absolute difference between two files of weights."""
    from safetensors.torch import load_file

    before, after = load_file(old), load_file(new)
    if {name: tensor.shape for name, tensor in before.items()} != {name: tensor.shape for name, tensor in after.items()}:
        return "other tensors"
    gaps = {name: (before[name].double() - after[name].double()).abs().max().item() for name in before if before[name].numel()}
    worst = max(gaps, key=lambda name: gaps[name], default="")
    return (
        f"weights differ by at most {gaps[worst]:.3g} ({worst})" if worst and gaps[worst] > 0 else "other bytes, equal weights"
    )


def changed_conditions(old: Path, new: Path) -> dict[str, tuple[Any, Any]]:
    """What is recorded of how a stage was computed, where it is not the same: name → (then, now)."""
    then, now = flat(read(old / "stage.json")), flat(read(new / "stage.json"))
    return {name: (then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)}


def flat(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Device, threads, versions and code, each under a name of its own."""
    conditions = (stage.get("conditions") or [{}])[-1]
    code = {
        f"code of {name}": hash[:8] for name, hash in {**stage.get("plugin_sources", {}), **conditions.get("code", {})}.items()
    }
    plain = {name: stage[name] for name in ("device", "threads", "python", "deterministic") if name in stage}
    plain |= {name: value for name, value in conditions.items() if name != "code"}
    return {**plain, **{f"version of {name}": value for name, value in stage.get("packages", {}).items()}, **code}
