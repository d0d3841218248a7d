"""Looks for what is wrong: with this machine's setup, and with a results folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.declaration.yaml_lines import suggest
from rlhf_lab.results.folder import INTERRUPTED, planned_ids, read, run_folders, view
from rlhf_lab.store.files import COMMIT, is_committed, verify
from rlhf_lab.store.leases import holder, look, newest, place

GOOD, ODD, BAD = "ok", "odd", "bad"
LITTLE_ROOM = 2**30  # bytes


class Finding(NamedTuple):
    """`level` is ok, odd (works, but look at it) or bad; `advice` says what to do."""

    level: str
    what: str
    advice: str = ""


# ---------------------------------------------------------------------------------------------------------------
# The machine


def setup(variables: Iterable[str], environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Versions, device, threads, plugins and variables. `variables`: the names that mean something."""
    yield from machine()
    yield from plugins()
    yield from misspelt(variables, environ)


def machine() -> Iterator[Finding]:
    import platform

    import torch

    from rlhf_lab.lm.precision import has_bf16_units
    from rlhf_lab.store.provenance import package_versions

    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    yield Finding(GOOD, f"python {platform.python_version()}, {versions}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    yield Finding(GOOD, f"device {device}; bf16 is {'fast' if has_bf16_units() else 'emulated'} here")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    level = ODD if threads > cores else GOOD
    advice = "set OMP_NUM_THREADS to at most the number of cores" if level == ODD else ""
    yield Finding(level, f"torch uses {threads} threads on {cores} cores (a sweep divides the cores among its workers)", advice)


def plugins() -> Iterator[Finding]:
    from rlhf_lab.registry import discover

    registry = discover()
    third = sorted({r.distribution for r in registry.registrations()} - {"rlhf-lab"})
    yield Finding(GOOD, f"{registry.count()} components{' with those of ' + ', '.join(third) if third else ''}")
    for broken in registry.broken:
        yield Finding(
            BAD,
            f"plugin {broken.plugin} of {broken.distribution} cannot be loaded: {broken.reason}",
            f"upgrade or remove {broken.distribution}, or leave it out with RLHF_LAB_LOAD_PLUGINS",
        )


def misspelt(variables: Iterable[str], environ: Mapping[str, str]) -> Iterator[Finding]:
    known = list(variables)
    for name in sorted(environ):
        if name.startswith("RLHF_LAB_") and name not in known and not name.startswith("RLHF_LAB_KEY_"):
            yield Finding(ODD, f"the variable {name} means nothing{suggest(name, known)}", "correct or unset it")


# ---------------------------------------------------------------------------------------------------------------
# A results folder


def examine(results: Path) -> Iterator[Finding]:
    """Every marker checked against sizes and hashes of its files, every lease against its process, runs against stages."""
    folders = sorted(path for path in (results / "stages").glob("*") if path.is_dir())
    whole = [folder for folder in folders if is_committed(folder)]
    harmed = [finding for folder in whole for finding in corruption(folder)]
    yield from harmed
    yield Finding(GOOD, f"{len(whole) - len(harmed)} stages hold what their {COMMIT} says, by size and blake2b")
    yield from (torn(folder) for folder in folders if not is_committed(folder))
    yield from stale_leases(results)
    yield from troubled_runs(results)
    yield from tables(results)
    yield from room(results)


def corruption(folder: Path) -> list[Finding]:
    marker = read(folder / COMMIT)
    wrong = [name for name, entry in marker.items() if size_of(folder / name) != entry["size"]] if marker else [COMMIT]
    wrong = wrong or verify(folder)
    advice = f"remove it (rm -r {folder}) and run the spec again; the runs that need it are computed anew"
    return [Finding(BAD, f"stage {folder.name}: {', '.join(wrong)} changed or missing", advice)] if wrong else []


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def torn(folder: Path) -> Finding:
    """A folder without marker: being computed, to be continued, or left over."""
    if owner := holder(folder):
        return Finding(GOOD, f"stage {folder.name} is being computed by {owner}")
    saved = sorted(path.name for path in folder.glob("checkpoint-*") if is_committed(path))
    how = f"goes on from {saved[-1]}" if saved else "begins anew"
    return Finding(ODD, f"stage {folder.name} was interrupted", f"the same run command {how}")


def stale_leases(results: Path) -> Iterator[Finding]:
    targets = {path.with_name(path.name.rpartition(".lease.")[0]) for path in results.rglob("*.lease.*") if path.name[0] != "."}
    for target in sorted(targets):
        found = look(place(target, newest(target))) if newest(target) else None
        if found and found[1] and holder(target) is None:
            yield Finding(
                ODD, f"{target.relative_to(results)} was held by {found[0]}, which is gone", "whoever needs it takes over"
            )


def troubled_runs(results: Path) -> Iterator[Finding]:
    ids = planned_ids(results)
    for folder in run_folders(results):
        if not read(folder / "run.json"):
            yield Finding(BAD, f"{folder / 'run.json'} cannot be read", "run the spec again, which writes it anew")
    for run in view(results):
        missing = [name for name, folder in run.stages.items() if not is_committed(folder)]
        if run.status == "done" and missing:
            advice = "run the spec again, which computes what is missing"
            yield Finding(BAD, f"run {run.run_id} is done, but its stages {', '.join(missing)} are not there", advice)
        elif run.status == INTERRUPTED:
            yield Finding(ODD, f"run {run.run_id} was interrupted in stage {run.stage}", "the same run command goes on")
        elif run.status.startswith("failed") or run.status == "timeout":
            yield Finding(ODD, f"run {run.run_id} has failed: {run.error}", f"rlhf-lab retry {results} --failed")
    unknown = [run_id for run_id in ids if not (results / "runs" / run_id / "run.json").is_file()]
    if unknown:
        yield Finding(BAD, f"{len(unknown)} planned runs have no run.json", "run the spec again, which writes it anew")


def tables(results: Path) -> Iterator[Finding]:
    """Whether runs.parquet says what the files say."""
    import pandas as pd

    try:
        frame = pd.read_parquet(results / "runs.parquet")
        listed = dict(zip(frame["run_id"], frame["status"], strict=True))
    except (OSError, ValueError, KeyError):
        yield Finding(BAD, "runs.parquet is missing or broken", f"rlhf-lab doctor {results} --rebuild")
        return
    files = {run.run_id: read(results / "runs" / run.run_id / "status.json").get("status", "pending") for run in view(results)}
    if listed == files:
        yield Finding(GOOD, f"the tables list the {len(files)} runs as they are")
    else:
        yield Finding(
            ODD, "the tables are older than the runs", f"rlhf-lab doctor {results} --rebuild, once no sweep is running"
        )


def room(results: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(results).free
    advice = "make room, or see rlhf-lab gc" if free < LITTLE_ROOM else ""
    yield Finding(ODD if advice else GOOD, f"{free / 2**30:.1f} GiB free on the disk of {results}", advice)
