"""One run: its data, model, template, precision and stages, validated; and what kind of thing stands at each place of it."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from rlhf_lab.contracts import SlotMarker, slot, stage_and_copy
from rlhf_lab.declaration.axes import MISSING
from rlhf_lab.declaration.overrides import get_path, split_path
from rlhf_lab.declaration.stage_graph import Circle, in_order, located, references, with_copies
from rlhf_lab.errors import PluginError, SpecError
from rlhf_lab.lm.precision import has_bf16_units
from rlhf_lab.registry import Registry


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
        return {key: value if key in cls.model_fields else with_stage_name(key, value) for key, value in raw.items()}


def with_stage_name(key: str, value: Any) -> Any:
    return {"name": key, **(value or {})} if value is None or isinstance(value, dict) else value


# ---------------------------------------------------------------------------------------------------------------
# Validation


def validate_run(raw: Mapping[str, Any], registry: Registry, chosen: dict[Any, Any] | None = None) -> RunConfig:
    """Raises pydantic's ValidationError, also where a broken plugin is asked for (see `is_trouble_of_a_plugin`).

    `chosen` remembers components, so that one that many runs have in common is validated once.
    """
    stages = tuple(key for key in raw if key not in RunConfig.model_fields)
    context = {"registry": registry, "stages": stages, "chosen": {} if chosen is None else chosen}
    refuse(infinite_numbers(raw))
    config = RunConfig.model_validate(dict(raw), context=context)
    refuse(misfits(config))
    refuse(circles(config))
    return config


def refuse(details: Iterator[InitErrorDetails]) -> None:
    found = list(details)
    if found:
        raise ValidationError.from_exception_data("RunConfig", found)


def infinite_numbers(raw: Any) -> Iterator[InitErrorDetails]:
    """What has no place in JSON, so neither in a hash."""
    for loc, value in leaves(raw):
        if isinstance(value, float) and not math.isfinite(value):
            yield InitErrorDetails(type="finite_number", loc=loc, input=value)


def misfits(config: RunConfig) -> Iterator[InitErrorDetails]:
    """What components have to say against the stage and the run that they are a part of."""
    for name, stage in config.stages.items():
        for loc, component in located(stage, (name,)):
            try:
                component.fits(stage, config)
            except ValueError as error:
                yield InitErrorDetails(type="value_error", loc=loc, input=None, ctx={"error": error})


def circles(config: RunConfig) -> Iterator[InitErrorDetails]:
    """The first circle of stages that read each other, at the parameter that closes it."""
    reads = {id(stage): sorted(references(stage)) for stage in config.stages.values()}
    stages = with_copies(config.stages, lambda stage: reads[id(stage)])
    try:
        in_order({name: reads[id(stage)] for name, stage in stages.items()})
    except Circle as circle:
        name, read = stage_and_copy(circle.names[0])[0], circle.names[1]
        stage = config.stages[name]
        parameter = next(key for key in type(stage).model_fields if read in references(getattr(stage, key)))
        told = ValueError(f"stages read each other in a circle: {circle}; let one of them read something else")
        yield InitErrorDetails(type="value_error", loc=(name, parameter), input=read, ctx={"error": told})


def leaves(value: Any, loc: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Everything in nested mappings and lists that is neither, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*loc, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*loc, index))
    else:
        yield loc, value


def is_trouble_of_a_plugin(error: ValidationError) -> bool:
    """Whether something is asked for that cannot be loaded, or that two distributions claim."""
    causes = [getattr(detail.get("ctx", {}).get("error"), "__cause__", None) for detail in error.errors(include_url=False)]
    return any(isinstance(cause, PluginError) for cause in causes)


# ---------------------------------------------------------------------------------------------------------------
# What stands where


def value_at(registry: Registry, raw: Mapping[str, Any], path: str) -> Any:
    """What is in effect at a path of a run that is not validated yet, defaults included; MISSING where there is nothing."""
    loc = split_path(path)
    if loc[0] not in raw and loc[0] not in RunConfig.model_fields:
        return MISSING
    try:
        return get_path(raw, path)
    except SpecError:
        info = getattr(_owner_at(registry, raw, loc[:-1]), "model_fields", {}).get(loc[-1])
    return MISSING if info is None or info.is_required() else info.get_default(call_default_factory=True)


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
            owner = component_class(registry, getattr(owner, "_kind", None), raw) or owner
    return owner


@dataclass(frozen=True)
class _ListOf:
    _kind: str


def _owner_below(registry: Registry, owner: Any, part: str, raw: Any) -> Any:
    field_info = getattr(owner, "model_fields", {}).get(part)
    if field_info is None:
        return component_class(registry, "stage", with_stage_name(part, raw)) if owner is RunConfig else None
    kind = slot_kind(field_info)
    if kind is None:
        return field_info.annotation
    return _ListOf(kind) if isinstance(raw, list) else component_class(registry, kind, raw)


def component_class(registry: Registry, kind: str | None, raw: Any) -> Any:
    """The class of the component that `raw` names; None where it names none."""
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
