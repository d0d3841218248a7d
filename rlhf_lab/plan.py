"""What has to be computed: each run as a chain of stages, each stage named by the hash of everything it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlhf_lab.contracts import Component, StageName
from rlhf_lab.errors import SpecError
from rlhf_lab.registry import Registry
from rlhf_lab.spec import RunConfig, Sweep
from rlhf_lab.store import digest


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a run: its name in the spec, its component, and the hash that names its folder."""

    name: str
    component: Component
    seed: int
    hash: str
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class PlannedRun:
    run_id: str
    arm: str
    axes: Mapping[str, Any]
    seed: int
    config: RunConfig
    raw: Mapping[str, Any]
    stages: tuple[PlannedStage, ...]


@dataclass(frozen=True)
class Plan:
    runs: tuple[PlannedRun, ...]
    duplicates: int

    @property
    def stage_hashes(self) -> dict[str, PlannedStage]:
        """Each distinct stage once: what the sweep costs."""
        return {stage.hash: stage for run in self.runs for stage in run.stages}


def plan_sweep(sweep: Sweep, registry: Registry) -> Plan:
    """Pure but for reading the data files whose content enters the hash.

    A data or model component may offer `check(spec_folder)`, which raises DataError or ModelError for files that are
    missing or broken; so these are said before anything is created.
    """
    fingerprints = fingerprint_reader(sweep.folder)
    check = once_per_component(lambda component: component.check(sweep.folder) if hasattr(component, "check") else None)
    runs: dict[str, PlannedRun] = {}
    for point in sweep.points:
        check(point.config.data)
        check(point.config.model)
        stages = plan_stages(point.config, point.seed, registry, fingerprints)
        run_id = digest({stage.name: stage.hash for stage in stages})
        runs.setdefault(run_id, PlannedRun(run_id, point.arm, point.axes, point.seed, point.config, point.raw, stages))
    return Plan(tuple(runs.values()), len(sweep.points) - len(runs))


def plan_stages(
    config: RunConfig, seed: int, registry: Registry, fingerprints: Callable[[Component], Any]
) -> tuple[PlannedStage, ...]:
    """The stages of a run in an order in which each comes after its inputs."""
    world = [resolved(component, registry, {}) for component in (config.data, config.model, config.template)]
    world += [fingerprints(config.data), fingerprints(config.model), config.precision]
    planned: dict[str, PlannedStage] = {}
    reads = {name: sorted(references(component)) for name, component in config.stages.items()}
    for name in in_order(reads):
        component = config.stages[name]
        inputs = {str(ref): planned[ref].hash for ref in reads[name]}
        own_seed = getattr(component, "seed", "run")
        stage_seed = seed if own_seed == "run" else own_seed
        identity = {"stage": resolved(component, registry, inputs, fingerprints), "world": world, "seed": stage_seed}
        planned[name] = PlannedStage(name, component, stage_seed, digest(identity), inputs)
    return tuple(planned.values())


def fingerprint_reader(folder: Path) -> Callable[[Component], Any]:
    """What a component says of the files it reads, in JSON; None where it reads none."""
    return once_per_component(lambda component: component.fingerprint(folder) if hasattr(component, "fingerprint") else None)


def once_per_component(function: Callable[[Component], Any]) -> Callable[[Component], Any]:
    """The function, called once for equal components."""
    found: dict[tuple[type, str], Any] = {}

    def cached(component: Component) -> Any:
        key = type(component), component.model_dump_json()
        if key not in found:
            found[key] = function(component)
        return found[key]

    return cached


def in_order(reads: Mapping[str, Sequence[str]]) -> list[str]:
    """Stage names, those that a stage reads before it, otherwise as the spec lists them. Raises SpecError on a cycle."""
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise SpecError(f"stages read each other in a circle: {' → '.join([*path[path.index(name) :], name])}")
        if name not in order:
            for ref in reads[name]:
                visit(ref, (*path, name))
            order.append(name)

    for name in reads:
        visit(name, ())
    return order


def references(value: Any) -> set[StageName]:
    """Every stage name inside a component, however deep."""
    if isinstance(value, StageName):
        return {value}
    return set().union(*(references(part) for part in parts(value)))


def components(value: Any) -> Iterator[Component]:
    """A component and all components inside it."""
    if isinstance(value, Component):
        yield value
    for part in parts(value):
        yield from components(part)


def parts(value: Any) -> list[Any]:
    if value is None or isinstance(value, str | int | float):
        return []
    if isinstance(value, BaseModel):
        return [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def resolved(
    component: Component,
    registry: Registry,
    inputs: Mapping[str, str],
    fingerprints: Callable[[Component], Any] = lambda component: None,
) -> dict[str, Any]:
    """Parameters with defaults and the hashes of the stages they name, and the identity of each component inside: name,
    versions, and a fingerprint of the files that it reads, if it reads any.
    """
    identities = []
    for part in components(component):
        registration = registry.registration_of(part)
        identity = [part.kind, part.name, type(part).version, registration.distribution, registration.version]
        identities.append([*identity, *filter(None, [fingerprints(part)])])
    return {"parameters": component.model_dump(mode="json"), "inputs": dict(inputs), "components": identities}
