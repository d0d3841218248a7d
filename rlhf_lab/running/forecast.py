"""How long a sweep will take: the median time of finished stages of the same kind and size, laid out over the workers."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_lab.declaration.run_config import RunConfig
from rlhf_lab.running.plan import Plan, PlannedStage, stages_of
from rlhf_lab.store.files import digest, is_committed, read_json


@dataclass(frozen=True)
class Forecast:
    """`each` has the seconds of every stage that is still to do, None where none of its size was measured; `unknown` counts
    those by name. `seconds` is how long the known ones take.
    """

    each: Mapping[str, float | None]
    unknown: Mapping[str, int]
    seconds: float
    workers: int


def forecast(plan: Plan, store: Path, workers: int) -> Forecast:
    """Reads every stage.json of the store."""
    known = {size: median(seconds) for size, seconds in measured(store).items()}
    todo = {hash: found for hash, found in stages_of(plan.runs).items() if not is_committed(store / hash)}
    each = {hash: known.get(size_of(stage, run.config)) if known else None for hash, (run, stage) in todo.items()}
    unknown = Counter(todo[hash][1].name for hash, seconds in each.items() if seconds is None)
    return Forecast(each, dict(unknown), makespan([stage for _, stage in todo.values()], each, workers), workers)


def measured(store: Path) -> dict[str, list[float]]:
    """Seconds of the finished stages, by size."""
    found: dict[str, list[float]] = {}
    for file in store.glob("*/stage.json"):
        stage = read_json(file) if is_committed(file.parent) else {}
        if "world" in stage:
            found.setdefault(size(stage["kind"], stage["parameters"], stage["world"]), []).append(stage["seconds"])
    return found


def world_of(config: RunConfig) -> dict[str, Any]:
    """Of what the time of a stage depends besides its own parameters."""
    parts = {"data": config.data, "model": config.model, "template": config.template}
    return {**{key: part.model_dump(mode="json") for key, part in parts.items()}, "precision": config.precision}


def size_of(stage: PlannedStage, config: RunConfig) -> str:
    return size(stage.component.name, stage.component.model_dump(mode="json"), world_of(config))


def size(kind: str, parameters: Mapping[str, Any], world: Mapping[str, Any]) -> str:
    """The same for stages with the same counts (steps, batch sizes, epochs, …) in the same world."""
    return digest([kind, sorted(counts({key: value for key, value in parameters.items() if key != "seed"})), world])


def counts(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number inside, with its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from counts(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from counts(item, f"{path}[{index}]")
    elif type(value) is int:
        yield path, value


def makespan(stages: Sequence[PlannedStage], seconds: Mapping[str, float | None], workers: int) -> float:
    """When the last one ends, if each begins as soon as its inputs are there and a worker is free, in this order."""
    free, end = [0.0] * workers, {}
    for stage in stages:
        inputs_done = max((end.get(hash, 0.0) for hash in stage.inputs.values()), default=0.0)
        end[stage.hash] = max(heapq.heappop(free), inputs_done) + (seconds[stage.hash] or 0.0)
        heapq.heappush(free, end[stage.hash])
    return max(end.values(), default=0.0)
