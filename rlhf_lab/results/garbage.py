"""Stages in a store that no run needs any more, and how much room they take."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.errors import Interrupted
from rlhf_lab.results.folder import planned_ids, read, results_folders, run_folders
from rlhf_lab.store.files import COMMIT
from rlhf_lab.store.leases import acquired, forget, holder


class Garbage(NamedTuple):
    path: Path
    bytes: int
    why: str


def garbage(results: Path, unplanned: bool = False) -> list[Garbage]:
    """Stage folders that no run needs; with `unplanned` also runs that the plan no longer lists, and what only they need.

    Sweeps beside this one that share its store count as users. What somebody is computing is left alone.
    """
    planned = set(planned_ids(results))
    dropped = [folder for folder in run_folders(results) if unplanned and folder.name not in planned]
    needed = {stage for folder in results_folders(results.parent) for stage in needs(folder, set(dropped))}
    stages = sorted(path for path in (results / "stages").glob("*") if path.is_dir())
    found = [Garbage(path, size(path), "no run needs it") for path in stages if path not in needed and holder(path) is None]
    return [*found, *(Garbage(path, size(path), "the plan no longer lists it") for path in dropped)]


def needs(results: Path, dropped: set[Path]) -> Iterator[Path]:
    """The stage folders of all runs of a results folder but `dropped`; of a moved folder those in its own store too."""
    for folder in run_folders(results):
        if folder not in dropped:
            run = read(folder / "run.json")
            for hash in run.get("stages", {}).values():
                yield Path(run["store"]) / hash
                yield results / "stages" / hash


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(found: Garbage) -> bool:
    """False where somebody has begun to compute it. The marker goes first: what is half removed does not count."""
    try:
        held = acquired(found.path, lambda: False, lambda: True, lambda owner: None)
    except Interrupted:
        return False
    (found.path / COMMIT).unlink(missing_ok=True)
    shutil.rmtree(found.path)
    if held is not None:
        forget(found.path)
    return True
