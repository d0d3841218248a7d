"""From a spec file to validated points: base, arms, axes and seeds become run configurations.

experiment: kl
base:                       # one run: data, model, template, precision, and stages
  data: micro
  sft: {epochs: 2}          # a stage; its kind is its name unless it says `name: …`
  rl: {kl: {name: fixed, beta: 0.02}}
arms:                       # named deltas; the first is the baseline
  fixed: {}
  adaptive: {rl.kl: {name: adaptive, target: 6}}
axes:                       # grid: every combination
  rl.kl.beta: [0.02, 0.2]
seeds: [0, 1, 2]            # shared by all arms
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_lab.contracts import Preset, SlotMarker, slot
from rlhf_lab.errors import LabError, SpecError
from rlhf_lab.overrides import Override, apply_override, expand_dotted, locate, merge, set_path
from rlhf_lab.registry import Registry
from rlhf_lab.yaml_lines import Document, load, spec_error, suggest


class RunConfig(BaseModel):
    """One fully resolved run. Every key that is not listed here is a stage."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)
    __pydantic_extra__: dict[str, slot("stage")]

    data: slot("data")
    model: slot("model")
    template: slot("template") = "none"
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 is autocast of matrix products; weights stay fp32")

    @property
    def stages(self) -> Mapping[str, Any]:
        return self.__pydantic_extra__

    @model_validator(mode="before")
    @classmethod
    def _stages_are_named_by_their_key(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return {key: value if key in cls.model_fields else _with_stage_name(key, value) for key, value in raw.items()}


def _with_stage_name(key: str, value: Any) -> Any:
    return {"name": key, **(value or {})} if value is None or isinstance(value, dict) else value


class Resources(BaseModel):
    """Where and how wide a sweep runs; changes no number but the clock, so it is not part of a run's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    workers: int | None = Field(None, ge=1, description="runs at a time; default: the number of cores, or of runs")
    threads: int | None = Field(None, ge=1, description="threads per run; default: cores divided by workers")


class SweepFile(BaseModel):
    """The keys of a spec file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="names the results folder")
    description: str = ""
    base: dict[str, Any]
    arms: dict[str, dict[str, Any] | None] = Field(default={"base": None}, min_length=1)
    axes: dict[str, list[Any]] = {}
    seeds: list[int] = Field(default=[0], min_length=1)
    resources: Resources = Resources()
    max_runs: int = Field(10_000, ge=1, description="a sweep with more runs is refused")


@dataclass(frozen=True)
class Point:
    """One run of a sweep, validated."""

    arm: str
    axes: Mapping[str, Any]
    seed: int
    config: RunConfig
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A spec file with all its points."""

    file: SweepFile
    folder: Path
    points: Sequence[Point]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Source:
    """What is needed to say where a wrong value stands."""

    document: Document
    registry: Registry
    overridden: Mapping[tuple, str] = field(default_factory=dict)


def load_sweep(path: Path, overrides: Sequence[Override], registry: Registry) -> Sweep:
    """Reads, expands and validates a spec. Raises SpecError with file, line and column; nothing is created."""
    document = load(path)
    data, origins = with_overrides(document.data, overrides)
    source = _Source(document, registry, origins)
    file = _validated_file(data, source)
    return Sweep(file, Path(path).resolve().parent, list(_points(file, source)))


def with_overrides(data: Mapping[str, Any], overrides: Sequence[Override]) -> tuple[dict[str, Any], dict[tuple, str]]:
    """The file's data with the overrides applied, and by place in it the origin of each value that came from one.

    A key that is none of the file's own (`seeds`, `experiment`, …) is meant inside `base`. One value replaces what the
    file says, also an axis of that name; several values make an axis.
    """
    data = {**data, "base": expand_dotted(data.get("base") or {}), "axes": dict(data.get("axes") or {})}
    origins: dict[tuple, str] = {}
    for override in overrides:
        if override.path[0] in SweepFile.model_fields:
            data = apply_override(data, _as_list(override, data.get(override.path[0])))
            origins[(override.path[0],)] = override.origin
        elif len(override.values) > 1:
            data["axes"][override.key] = list(override.values)
            origins["axes", override.key] = override.origin
        else:
            data["axes"].pop(override.key, None)
            data = apply_override(data, replace(override, path=("base", *override.path)))
            origins["base", *locate(data["base"], override.path)] = override.origin
    return data, origins


def _as_list(override: Override, old: Any) -> Override:
    """`seeds=0,1` and `seeds=0` both give the list that the file has there."""
    single = len(override.values) == 1 and (isinstance(override.values[0], list) or not isinstance(old, list))
    return override if single or not override.values else replace(override, values=(list(override.values),))


def _validated_file(data: Mapping[str, Any], source: _Source) -> SweepFile:
    try:
        return SweepFile.model_validate(data)
    except ValidationError as error:
        known = list(SweepFile.model_fields)
        raise spec_error(source.document, (), error, fields_at=lambda loc: known, origins=source.overridden) from None


def _points(file: SweepFile, source: _Source) -> Iterator[Point]:
    n_runs = len(file.arms) * len(file.seeds)
    for axis, values in file.axes.items():
        if not values:
            raise SpecError(f"{source.document.where(('axes', axis))}: axis {axis!r} has no values, so there is nothing to run")
        n_runs *= len(values)
    if n_runs > file.max_runs:
        raise SpecError(f"{source.document.where(('axes',))}: the sweep has {n_runs} runs, more than max_runs: {file.max_runs}")
    if len(set(file.seeds)) < len(file.seeds):
        raise SpecError(f"{source.document.where(('seeds',))}: a seed is listed twice")
    base = with_presets({}, file.base, source.registry, source.document.where(("base", "preset")))
    for arm, delta in file.arms.items():
        raw = with_presets(base, delta or {}, source.registry, source.document.where(("arms", arm)))
        for values in itertools.product(*file.axes.values()):
            axes = dict(zip(file.axes, values, strict=True))
            point = _assign(raw, axes, arm, source)
            config = _validated_point(point, arm, axes, source)
            for seed in file.seeds:
                yield Point(arm, axes, seed, config, point)


def with_presets(raw: Mapping[str, Any], delta: Mapping[str, Any], registry: Registry, where: str) -> dict[str, Any]:
    """`raw`, overlaid with the presets that `delta` names, overlaid with `delta`."""
    delta = expand_dotted(dict(delta))
    names = delta.pop("preset", None) or []
    for name in [names] if isinstance(names, str) else names:
        try:
            preset = registry.get("preset", name).component
        except ValueError as error:
            raise SpecError(f"{where}: {error}") from None
        raw = merge(raw, preset_values(preset))
    return merge(dict(raw), delta)


def preset_values(preset: Preset) -> dict[str, Any]:
    """The nested mapping that a preset stands for, without the sources."""
    return expand_dotted({path: value for path, (value, _) in preset.values.items()})


def _assign(raw: Mapping[str, Any], axes: Mapping[str, Any], arm: str, source: _Source) -> dict[str, Any]:
    for axis, value in axes.items():
        try:
            raw = set_path(raw, axis, value)
        except LabError as error:
            raise SpecError(f"{source.document.where(('axes', axis))}: {error}") from None
    return dict(raw)


def _validated_point(raw: dict[str, Any], arm: str, axes: Mapping[str, Any], source: _Source) -> RunConfig:
    try:
        return validate_run(raw, source.registry)
    except ValidationError as error:
        origins = {loc[1:]: origin for loc, origin in source.overridden.items() if loc[0] == "base" and len(loc) > 1}
        origins |= {locate(raw, axis): _place_of_axis(axis, value, source) for axis, value in axes.items()}
        raise spec_error(
            source.document,
            ("base",),
            error,
            fields_at=lambda loc: fields_at(source.registry, raw, (*loc, "")),
            origins=origins,
            overlays=[("arms", arm)],
        ) from None


def _place_of_axis(axis: str, value: Any, source: _Source) -> str:
    if ("axes", axis) in source.overridden:
        return source.overridden["axes", axis]
    values = (source.document.data.get("axes") or {}).get(axis, [])
    return source.document.where(("axes", axis, values.index(value)) if value in values else ("axes", axis))


def validate_run(raw: Mapping[str, Any], registry: Registry) -> RunConfig:
    """Raises pydantic's ValidationError; PluginError where a broken plugin is asked for."""
    stages = [key for key in raw if key not in RunConfig.model_fields]
    return RunConfig.model_validate(dict(raw), context={"registry": registry, "stages": stages})


def fields_at(registry: Registry, raw: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys that would have been right at `loc` (a place inside a run's configuration), for suggestions."""
    owner: Any = RunConfig
    for part in loc[:-1]:
        raw = raw[part] if isinstance(raw, (Mapping, list)) and (isinstance(part, int) or part in raw) else None
        if isinstance(part, str):
            owner = _owner_below(registry, owner, part, raw)
        elif isinstance(raw, (Mapping, str)):
            owner = _component_class(registry, getattr(owner, "_kind", None), raw) or owner
    fields = getattr(owner, "model_fields", {})
    return [*fields, *registry.names("stage")] if owner is RunConfig else list(fields)


@dataclass(frozen=True)
class _ListOf:
    _kind: str


def _owner_below(registry: Registry, owner: Any, part: str, raw: Any) -> Any:
    field_info = getattr(owner, "model_fields", {}).get(part)
    if field_info is None:
        return _component_class(registry, "stage", _with_stage_name(part, raw)) if owner is RunConfig else None
    kind = slot_kind(field_info)
    if kind is None:
        return field_info.annotation
    return _ListOf(kind) if isinstance(raw, list) else _component_class(registry, kind, raw)


def _component_class(registry: Registry, kind: str | None, raw: Any) -> Any:
    name = raw.get("name") if isinstance(raw, Mapping) else raw
    try:
        return registry.get(kind, name).component if kind and isinstance(name, str) else None
    except Exception:
        return None


def slot_kind(field_info: Any) -> str | None:
    """The kind of component that a field holds, alone, optional or in a list; None for a plain parameter."""
    stack = [field_info.annotation, *field_info.metadata]
    while stack:
        item = stack.pop()
        if isinstance(item, SlotMarker):
            return item.kind
        stack += [*typing.get_args(item), *getattr(item, "__metadata__", ())]
    return None


__all__ = ["Point", "RunConfig", "Sweep", "SweepFile", "fields_at", "load_sweep", "slot_kind", "suggest", "validate_run"]
