"""Finished stages whose plugins were edited since, under the same version: the hash is still theirs, the numbers may not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lab.errors import SpecError
from rlhf_lab.running.plan import Plan, PlannedStage, source_reader, stages_of
from rlhf_lab.store.files import is_committed, read_json


@dataclass(frozen=True)
class Change:
    """A stage, and of each component whose source changed: hash then, hash now."""

    stage: PlannedStage
    parts: dict[str, tuple[str, str]]

    def as_json(self) -> dict[str, Any]:
        parts = {part: {"computed_with": then, "now": now} for part, (then, now) in self.parts.items()}
        return {"stage": self.stage.name, "sources": parts}


def changes(plan: Plan, store: Path) -> list[Change]:
    """Of the finished stages of a plan."""
    sources, found = source_reader(plan.registry), []
    for hash, (run, stage) in stages_of(plan.runs).items():
        if is_committed(store / hash) and (store / hash / "stage.json").is_file():
            then = read_json(store / hash / "stage.json").get("plugin_sources", {})
            now = sources(run.config, [stage])
            parts = {part: (then[part], now[part]) for part in now if part in then and then[part] != now[part]}
            found += [Change(stage, parts)] if parts else []
    return found


def refuse(found: Sequence[Change]) -> None:
    """Raises SpecError if there are any."""
    if found:
        part, (then, now) = next(iter(found[0].parts.items()))
        others = f" (and {len(found) - 1} more stages)" if len(found) > 1 else ""
        raise SpecError(
            f"stage {found[0].stage.name} {found[0].stage.hash}{others} was computed with another source of {part} under the "
            f"same version (then {then[:8]}, now {now[:8]}); raise the component's `version` to compute it again, or keep "
            "what is there with --allow-changed"
        )


def lineage(found: Sequence[Change]) -> dict[str, Any]:
    """For plan.json: which stages of the sweep are from other code than that of now."""
    return {change.stage.hash: change.as_json() for change in found}
