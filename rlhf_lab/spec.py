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
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from rlhf_lab.contracts import Preset, SlotMarker, slot
from rlhf_lab.errors import SpecError
from rlhf_lab.lm.precision import has_bf16_units
from rlhf_lab.overrides import (
    Override,
    apply_override,
    as_mapping,
    expand_dotted,
    has_path,
    locate,
    merge,
    split_path,
    with_delta,
)
from rlhf_lab.registry import Registry
from rlhf_lab.yaml_lines import Document, describe, load, spec_error, suggest


class RunConfig(BaseModel):
    """One fully resolved run. Every key that is not listed here is a stage."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)
    __pydantic_extra__: dict[str, slot("stage")]

    data: slot("data")
    model: slot("model")
    template: slot("template") = "none"
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16 is autocast of matrix products, trained weights stay fp32; 'auto': bf16 where this machine is faster",
    )

    @property
    def stages(self) -> Mapping[str, Any]:
        return self.__pydantic_extra__

    @model_validator(mode="before")
    @classmethod
    def _stages_are_named_by_their_key(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        if raw.get("precision") == "auto":
            raw = {**raw, "precision": "bf16" if has_bf16_units() else "fp32"}
        return {key: value if key in cls.model_fields else _with_stage_name(key, value) for key, value in raw.items()}


def _with_stage_name(key: str, value: Any) -> Any:
    return {"name": key, **(value or {})} if value is None or isinstance(value, dict) else value


class Resources(BaseModel):
    """Where and how wide a sweep runs; changes no number but the clock, so it is not part of a run's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    workers: int | None = Field(None, ge=1, description="runs at a time; default: the number of cores, or of runs")
    threads: int | None = Field(None, ge=1, description="threads per run; default: cores divided by workers")
    checkpoint_every: float = Field(300.0, gt=0, description="seconds between checkpoints inside a stage")


class SweepFile(BaseModel):
    """The keys of a spec file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="names the results folder")
    description: str = ""
    base: dict[str, Any]
    arms: dict[str, dict[str, Any] | None] = Field(default={"base": None}, min_length=1)
    axes: dict[str, list[Any]] = {}
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
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
    """What is needed to say where a wrong value stands, and what the command line says."""

    document: Document
    registry: Registry
    overridden: Mapping[tuple, str] = field(default_factory=dict)
    overrides: Sequence[Override] = ()

    def where(self, *loc: str | int) -> str:
        return self.document.where(loc)


def load_sweep(path: Path, overrides: Sequence[Override], registry: Registry) -> Sweep:
    """Reads, expands and validates a spec. Raises SpecError with file, line and column; nothing is created."""
    document = load(path)
    own = [override for override in overrides if override.path[0] in SweepFile.model_fields]
    inner = [override for override in overrides if override.path[0] not in SweepFile.model_fields]
    source = _Source(document, registry, {override.path: override.origin for override in inner}, inner)
    file = _validated_file(with_overrides(document, own, inner), source, {o.path: o.origin for o in own})
    return Sweep(file, Path(path).resolve().parent, list(_points(file, source)))


def with_overrides(document: Document, own: Sequence[Override], inner: Sequence[Override]) -> dict[str, Any]:
    """The file's data with those overrides applied that are about the file.

    `own` are about its own keys (`seeds`, `experiment`, …), `inner` about what stands in `base`: several values make an
    axis, one value removes the axis of that name and is applied later, to each arm.
    """
    data = dict(document.data)
    for override in own:
        data = apply_override(data, _as_seeds(override))
    if not all(isinstance(data.get(key) or {}, dict) for key in ("base", "axes")):
        return data  # which is refused
    data["base"] = _placed(document.where(("base",)), expand_dotted, data.get("base") or {})
    data["axes"] = dict(data.get("axes") or {})
    for override in inner:
        data["axes"].pop(override.key, None)
        if len(override.values) > 1:
            data["axes"][override.key] = list(override.values)
        elif override.path == ("preset",):
            data = apply_override(data, replace(override, path=("base", "preset")))
    return data


def _as_seeds(override: Override) -> Override:
    """`seeds=0,1` and `seeds=3` mean the lists that they look like."""
    if override.path != ("seeds",) or override.operation == "delete" or isinstance(override.values[0], list):
        return override
    return replace(override, values=(list(override.values),))


def _placed(where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result; what is wrong with the arguments is said with the place where they stand."""
    try:
        return function(*arguments)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def _validated_file(data: Mapping[str, Any], source: _Source, origins: Mapping[tuple, str]) -> SweepFile:
    def known(loc: tuple) -> list[str]:
        return list((Resources if loc[:1] == ("resources",) else SweepFile).model_fields)

    try:
        return SweepFile.model_validate(data)
    except ValidationError as error:
        raise spec_error(source.document, (), error, fields_at=known, origins=origins) from None


def _points(file: SweepFile, source: _Source) -> Iterator[Point]:
    n_runs = len(file.arms) * len(file.seeds)
    for axis, values in file.axes.items():
        if not values:
            raise SpecError(f"{source.where('axes', axis)}: axis {axis!r} has no values, so there is nothing to run")
        n_runs *= len(values)
    if n_runs > file.max_runs:
        raise SpecError(f"{source.where('axes')}: the sweep has {n_runs} runs, more than max_runs: {file.max_runs}")
    if len(set(file.seeds)) < len(file.seeds):
        raise SpecError(f"{source.where('seeds')}: a seed is listed twice")
    base = with_command_line(with_presets({}, file.base, source, ("base",)), source)
    for arm, delta in file.arms.items():
        raw = with_last_word(with_presets(base, delta or {}, source, ("arms", arm)), source)
        for values in itertools.product(*file.axes.values()):
            axes = dict(zip(file.axes, values, strict=True))
            point = _assign(raw, axes, source)
            config = _validated_point(point, arm, axes, source)
            if not config.stages:
                raise SpecError(f"{source.where('base')}: base has no stage, such as sft or rl, so there is nothing to run")
            for seed in file.seeds:
                yield Point(arm, axes, seed, config, point)


def with_command_line(raw: dict[str, Any], source: _Source) -> dict[str, Any]:
    """The overrides of one value applied."""
    for override in source.overrides:
        if len(override.values) < 2 and override.path != ("preset",):
            raw = apply_override(raw, override)
    return raw


def with_last_word(raw: dict[str, Any], source: _Source, below: Sequence[str] = ("",)) -> dict[str, Any]:
    """The same once more over what an arm, or an axis among `below`, has said since."""
    for override in source.overrides:
        if len(override.values) > 1 or override.path == ("preset",) or not any(f"{override.key}.".startswith(b) for b in below):
            continue
        if override.operation != "delete" or has_path(raw, override.path):
            again = replace(override, operation="set") if override.operation == "add" else override
            raw = apply_override(raw, again)
    return raw


def with_presets(raw: Mapping[str, Any], delta: Mapping[str, Any], source: _Source, loc: tuple) -> dict[str, Any]:
    """`raw`, overlaid with the presets that `delta` (which stands at `loc`) names, overlaid with `delta`."""
    delta = _placed(source.where(*loc), expand_dotted, dict(delta))
    names = delta.pop("preset", None) or []
    for name in [names] if isinstance(names, str) else names if isinstance(names, list) else [names]:
        where = source.overridden.get(("preset",)) or source.where(*loc, "preset")
        try:
            preset = source.registry.get("preset", name if isinstance(name, str) else describe(name)).component
        except ValueError as error:
            raise SpecError(f"{where}: {error}") from None
        raw = merge(raw, preset_values(preset))
    return with_default_components(_placed(source.where(*loc), merge, dict(raw), delta), source)


def with_default_components(raw: dict[str, Any], source: _Source) -> dict[str, Any]:
    """`raw` with the default written out where a stage leaves out a component, or names parameters of it only.

    So `rl.critic.learning_rate: 1e-4` and `rl.objective.ppo_clip.eps: 0.1` mean the default critic and the term of the
    default list, as they mean those that the spec writes out.
    """
    filled = dict(raw)
    for key, given in raw.items():
        owner = (
            None if key in RunConfig.model_fields else _component_class(source.registry, "stage", _with_stage_name(key, given))
        )
        if owner is not None:
            where = source.where("base", key)
            filled[key] = _placed(where, _filled, source.registry, owner, as_mapping(given) or {})
    return filled


def _filled(registry: Registry, owner: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a component of class `owner`, with the names of its default components."""
    filled = dict(parameters)
    for key, info in owner.model_fields.items():
        kind = slot_kind(info)
        if kind and isinstance(info.default, str | list):
            given = filled.get(key, {})
            bare = isinstance(given, dict) and "name" not in given
            filled[key] = merge({key: info.default}, {key: given})[key] if bare else given
        inner = _component_class(registry, kind, filled.get(key))
        if inner is not None and isinstance(filled[key], dict):
            filled[key] = _filled(registry, inner, filled[key])
    return filled


def preset_values(preset: Preset) -> dict[str, Any]:
    """The nested mapping that a preset stands for, without the sources."""
    return expand_dotted({path: value for path, (value, _) in preset.values.items()})


def _assign(raw: Mapping[str, Any], axes: Mapping[str, Any], source: _Source) -> dict[str, Any]:
    """The axes' values, each a delta of one path like any override: a component before its parameters."""
    for axis, value in sorted(axes.items(), key=lambda item: item[0].count(".")):
        where = source.overridden.get(tuple(axis.split("."))) or source.where("axes", axis)
        raw = _placed(where, lambda axis=axis, value=value, raw=raw: with_delta(raw, split_path(axis), value))
    return with_last_word(dict(raw), source, below=[f"{axis}." for axis in axes])


def _validated_point(raw: dict[str, Any], arm: str, axes: Mapping[str, Any], source: _Source) -> RunConfig:
    try:
        return validate_run(raw, source.registry)
    except ValidationError as error:
        origins = {locate(raw, axis): _place_of_axis(axis, value, source) for axis, value in axes.items()}
        origins |= {locate(raw, path): origin for path, origin in source.overridden.items()}
        raise spec_error(
            source.document,
            ("base",),
            error,
            fields_at=lambda loc: fields_at(source.registry, raw, loc),
            unit_at=lambda loc: unit_at(source.registry, raw, loc),
            origins=origins,
            overlays=[("arms", arm)],
        ) from None


def _place_of_axis(axis: str, value: Any, source: _Source) -> str:
    values = (source.document.data.get("axes") or {}).get(axis, [])
    return source.document.where(("axes", axis, values.index(value)) if value in values else ("axes", axis))


def validate_run(raw: Mapping[str, Any], registry: Registry) -> RunConfig:
    """Raises pydantic's ValidationError; PluginError where a broken plugin is asked for."""
    infinite = [
        InitErrorDetails(type="finite_number", loc=loc, input=value) for loc, value in leaves(raw) if not is_finite(value)
    ]
    if infinite:  # which has no place in JSON, so neither in a hash
        raise ValidationError.from_exception_data("RunConfig", infinite)
    stages = [key for key in raw if key not in RunConfig.model_fields]
    return RunConfig.model_validate(dict(raw), context={"registry": registry, "stages": stages})


def leaves(value: Any, loc: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Everything in nested mappings and lists that is neither, with its path."""
    if isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(inner, (*loc, key))
    else:
        yield loc, value


def is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def fields_at(registry: Registry, raw: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys of what stands at `loc` (a place inside a run's configuration), for suggestions."""
    owner = _owner_at(registry, raw, loc)
    fields = getattr(owner, "model_fields", {})
    return [*fields, *registry.names("stage")] if owner is RunConfig else list(fields)


def unit_at(registry: Registry, raw: Any, loc: Sequence[str | int]) -> str | None:
    """The unit of the parameter at `loc`."""
    info = getattr(_owner_at(registry, raw, loc[:-1]), "model_fields", {}).get(loc[-1]) if loc else None
    return (getattr(info, "json_schema_extra", None) or {}).get("unit")


def _owner_at(registry: Registry, raw: Any, loc: Sequence[str | int]) -> Any:
    """The model class of what stands at `loc`; None where there is none."""
    owner: Any = RunConfig
    for part in loc:
        raw = raw[part] if isinstance(raw, (Mapping, list)) and (isinstance(part, int) or part in raw) else None
        if isinstance(part, str):
            owner = _owner_below(registry, owner, part, raw)
        elif isinstance(raw, (Mapping, str)):
            owner = _component_class(registry, getattr(owner, "_kind", None), raw) or owner
    return owner


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
