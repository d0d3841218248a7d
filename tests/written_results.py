"""Results folders written by hand, file by file, as a sweep leaves them: for tests that only read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lab.store.files import commit
from rlhf_lab.store.leases import this_machine

GONE = {"machine": this_machine(), "pid": 2**22 + 1, "started": "1"}
"""An owner of a lease that is no more: no process has a pid above 2²²."""


class Written:
    """A results folder and what to put into it."""

    def __init__(self, folder: Path, name: str = "tiny") -> None:
        self.folder = folder / name
        self.ids: list[str] = []
        (self.folder / "stages").mkdir(parents=True)
        (self.folder / "spec.yaml").write_text("experiment: tiny\n")
        self.plan()

    def plan(self) -> None:
        (self.folder / "plan.json").write_text(json.dumps({"experiment": self.folder.name, "runs": self.ids}))

    def run(self, run_id: str, status: Mapping[str, Any] | str = "done", *, planned: bool = True, **record: Any) -> Path:
        """run.json, and status.json unless `status` is "pending"."""
        folder = self.folder / "runs" / run_id
        folder.mkdir(parents=True)
        told = {"status": status} if isinstance(status, str) else status
        run = {
            "run_id": run_id,
            "arm": "base",
            "axes": {},
            "seed": 0,
            "config": {"rl": {}},
            "stages": {},
            "spec_folder": str(self.folder.parent),
            "store": str(self.folder / "stages"),
            "plugin_files": [],
            "git": {},
            **record,
        }
        (folder / "run.json").write_text(json.dumps(run))
        if told["status"] != "pending":
            (folder / "status.json").write_text(json.dumps({"seconds": 2.0, **told}))
        if planned:
            self.ids.append(run_id)
            self.plan()
        return folder

    def stage(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]] = (),
        samples: Sequence[Mapping[str, Any]] = (),
        *,
        committed: bool = True,
        **files: str,
    ) -> Path:
        folder = self.folder / "stages" / name
        folder.mkdir()
        for file, lines in (("steps.jsonl", rows), ("samples.jsonl", samples)):
            (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        for file, text in files.items():
            (folder / file).write_text(text)
        if committed:
            commit(folder)
        return folder


def held_by(target: Path, owner: Mapping[str, Any] = GONE) -> Path:
    """A lease on a folder."""
    file = target.with_name(f"{target.name}.lease.1")
    file.write_text(json.dumps(owner))
    return file


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path with size and time, to see that nothing was touched."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]
    }
