"""What has to be computed: each run as a chain of stages, each stage named by the hash of everything it depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lab.contracts import Component, stage_and_copy
from rlhf_lab.declaration.run_config import RunConfig
from rlhf_lab.declaration.stage_graph import components, in_order, references, with_copies
from rlhf_lab.declaration.sweep import Point, Sweep
from rlhf_lab.registry import Registry
from rlhf_lab.store.files import canonical, digest


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
    """`duplicates` points came out equal to an earlier one; `dropped` says how many of what sort."""

    runs: tuple[PlannedRun, ...]
    duplicates: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    registry: Registry = field(default_factory=Registry, repr=False)

    @property
    def stage_hashes(self) -> dict[str, PlannedStage]:
        """Each distinct stage once: what the sweep costs."""
        return {stage.hash: stage for run in self.runs for stage in run.stages}


def plan_sweep(sweep: Sweep, registry: Registry) -> Plan:
    """Pure but for reading the data files whose content enters the hash.

    A data or model component may offer `check(spec_folder)`, which raises DataError or ModelError for files that are
    missing or broken; so these are said before anything is created.
    """
    plan = planner(registry, fingerprint_reader(sweep.folder))
    check = once_per_component(lambda component: component.check(sweep.folder) if hasattr(component, "check") else None)
    runs: dict[str, PlannedRun] = {}
    dropped: Counter[str] = Counter()
    for point in sweep.points:
        check(point.config.data)
        check(point.config.model)
        stages = plan(point.config, point.seed)
        run_id = digest({stage.name: stage.hash for stage in stages})
        if run_id in runs:
            dropped[repetition(point, runs[run_id])] += 1
        else:
            runs[run_id] = PlannedRun(run_id, point.arm, point.axes, point.seed, point.config, point.raw, stages)
    return Plan(tuple(runs.values()), dropped.total(), dict(dropped), registry)


def repetition(point: Point, kept: PlannedRun) -> str:
    """In which respect a point repeats a run."""
    if point.arm != kept.arm:
        return f"arm {point.arm!r} is arm {kept.arm!r} again"
    return "no stage follows the seed of the run" if point.seed != kept.seed else "the same values again"


def plan_stages(
    config: RunConfig, seed: int, registry: Registry, fingerprints: Callable[[Component], Any]
) -> tuple[PlannedStage, ...]:
    """The stages of one run in an order in which each comes after its inputs."""
    return planner(registry, fingerprints)(config, seed)


def planner(
    registry: Registry, fingerprints: Callable[[Component], Any]
) -> Callable[[RunConfig, int], tuple[PlannedStage, ...]]:
    """`plan_stages` for many runs: what they have in common is described and hashed once."""
    described = once_per_object(lambda component: digest(description(component, registry, fingerprints)))
    read_by = once_per_object(lambda component: sorted(references(component)))
    known: dict[Any, PlannedStage] = {}

    def plan(config: RunConfig, seed: int) -> tuple[PlannedStage, ...]:
        world = [described(part) for part in (config.data, config.model, config.template)]
        planned: dict[str, PlannedStage] = {}
        stages = with_copies(config.stages, read_by)
        for name in in_order({name: read_by(component) for name, component in stages.items()}):
            component = stages[name]
            own_seed = getattr(component, "seed", "run")
            identity = {
                "stage": described(component),
                "inputs": {str(ref): planned[ref].hash for ref in read_by(component)},
                "world": [*world, config.precision],
                "seed": (seed if own_seed == "run" else own_seed) + stage_and_copy(name)[1],
            }
            key = name, canonical(identity)
            if key not in known:
                known[key] = PlannedStage(name, component, identity["seed"], digest(identity), identity["inputs"])
            planned[name] = known[key]
        return tuple(planned.values())

    return plan


def description(component: Component, registry: Registry, fingerprints: Callable[[Component], Any]) -> dict[str, Any]:
    """Parameters with defaults, and the identity of each component inside: name, versions, and a fingerprint of the files
    that it reads, if it reads any. The seed of a stage is told apart, for 'run' may stand for it.
    """
    identities = []
    for part in components(component):
        registration = registry.registration_of(part)
        identity = [part.kind, part.name, type(part).version, registration.distribution, registration.version]
        identities.append([*identity, *filter(None, [fingerprints(part)])])
    parameters = component.model_dump(mode="json")
    if component.kind == "stage":
        parameters.pop("seed", None)
    return {"parameters": parameters, "components": identities}


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

    return once_per_object(cached)


def once_per_object(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, called once for the same object, which is kept, so that no other can take its id."""
    found: dict[int, tuple[Any, Any]] = {}

    def cached(thing: Any) -> Any:
        if id(thing) not in found:
            found[id(thing)] = thing, function(thing)
        return found[id(thing)][1]

    return cached


def source_reader(registry: Registry) -> Callable[[RunConfig, Iterable[PlannedStage]], dict[str, str]]:
    """Of each component that stages are computed with, a hash of its source."""

    def hashes(root: Component) -> dict[str, str]:
        return {f"{part.kind}/{part.name}": registry.registration_of(part).source_hash() for part in components(root)}

    known = once_per_object(hashes)

    def sources(config: RunConfig, stages: Iterable[PlannedStage]) -> dict[str, str]:
        roots = (config.data, config.model, config.template, *(stage.component for stage in stages))
        return {part: hash for root in roots for part, hash in known(root).items()}

    return sources


def stages_of(runs: Sequence[PlannedRun]) -> dict[str, tuple[PlannedRun, PlannedStage]]:
    """Each distinct stage once, with the first run that has it."""
    found: dict[str, tuple[PlannedRun, PlannedStage]] = {}
    for run in runs:
        for stage in run.stages:
            found.setdefault(stage.hash, (run, stage))
    return found
