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
seeds: [0, 1, 2]            # shared by all arms, so that they are compared pairwise
max_runs: 10000             # a sweep with more is refused

What `axes` may hold besides a plain grid:

axes:
  rl.kl.target: {values: [3, 6], when: {rl.kl: adaptive}}   # varied only where the condition holds
  zip:                                                      # in step: first with first, second with second
    rl.learning_rate: [1e-4, 3e-4]
    rl.batch_size: [32, 64]
  random:                                                   # n draws, the same in every arm; more n keep the first ones
    n: 20
    seed: 0
    distributions:
      rl.temperature: {uniform: [0.5, 1]}                   # log_uniform, integers, normal, choice
  when: {arm: [fixed, adaptive]}                            # only where this holds; also {gt: …}, {le: …}, {not: …}

What stands in one mapping is combined, each with each. A list of such mappings adds up; so one factor at a time is

axes:
  - rl.kl.beta: [0.02, 0.2]
  - rl.learning_rate: [1e-4, 3e-4]

Laws. Expansion is pure: the same file gives the same points in the same order. Which runs there are does not depend on the
order of arms, axes, values, blocks or seeds. A component is set before its parameters, whichever is listed first. An axis
of a stage that an arm does not have is not varied there; an axis that no arm uses is refused. Runs that come out equal
are computed once and counted. A run has a value for each axis of the sweep, also where another block varies it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rlhf_lab.contracts import Preset
from rlhf_lab.declaration.axes import (
    MISSING,
    AxesError,
    Block,
    Choice,
    Group,
    blocks_of,
    combinations,
    conditions,
    holds,
    is_path,
    named,
    with_axis,
    without_axis,
)
from rlhf_lab.declaration.overrides import (
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
from rlhf_lab.declaration.resources import Resources
from rlhf_lab.declaration.run_config import (
    RunConfig,
    component_class,
    fields_at,
    is_trouble_of_a_plugin,
    slot_kind,
    unit_at,
    validate_run,
    value_at,
    with_stage_name,
)
from rlhf_lab.declaration.strictness import converted
from rlhf_lab.declaration.yaml_lines import Document, describe, load, quote, spec_error, suggest
from rlhf_lab.errors import PluginError, SpecError
from rlhf_lab.registry import Registry

DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}


def _names_a_folder(name: str) -> str:
    if name.split(".")[0].upper() in DEVICES:
        raise ValueError(f"experiment names a folder, and {name!r} is no name for a folder on Windows; choose another")
    return name


class SweepFile(BaseModel):
    """The keys of a spec file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    experiment: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="names the results folder"),
        AfterValidator(_names_a_folder),
    ]
    description: str = ""
    base: dict[str, Any]
    arms: dict[str, dict[str, Any] | None] = Field({"base": None}, min_length=1)
    axes: Any = Field({}, description="see rlhf_lab.declaration.axes")
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field([0], min_length=1)
    resources: Resources = Field(default_factory=dict, validate_default=True)
    max_runs: int = Field(10_000, ge=1, description="a sweep with more runs is refused")


@dataclass(frozen=True)
class Point:
    """One run of a sweep, validated. `axes` has what is in effect at each axis of the sweep, as far as the run has it."""

    arm: str
    axes: Mapping[str, Any]
    seed: int
    config: RunConfig
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A spec file with all its points; `arms` holds the configuration of each before the axes, `axes` those of all blocks."""

    file: SweepFile
    folder: Path
    points: Sequence[Point]
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    axes: Any = field(default_factory=dict)
    consent: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class _Source:
    """What is needed to say where a wrong value stands, and what the command line says."""

    document: Document
    registry: Registry
    overridden: Mapping[tuple, str] = field(default_factory=dict)
    overrides: Sequence[Override] = ()
    chosen: dict[Any, Any] = field(default_factory=dict)

    def where(self, *loc: str | int) -> str:
        return self.document.where(loc)

    def where_in_axes(self, loc: Sequence[str | int]) -> str:
        """The place inside `axes`, or the override that made this axis."""
        axes = [part for part in loc if isinstance(part, str)]
        said = (origin for path, origin in self.overridden.items() for axis in axes if is_path(axis, path))
        return next(said, None) or self.where("axes", *loc)


def load_sweep(path: Path, overrides: Sequence[Override], registry: Registry) -> Sweep:
    """Reads, expands and validates a spec. Raises SpecError with file, line and column; nothing is created."""
    document = load(path)
    own = [override for override in overrides if override.path[0] in SweepFile.model_fields]
    inner = [override for override in overrides if override.path[0] not in SweepFile.model_fields]
    source = _Source(document, registry, {override.path: override.origin for override in inner}, inner)
    file = _validated_file(with_overrides(document, own, inner), source, {o.path: o.origin for o in own})
    try:
        blocks = blocks_of(file.axes)
    except AxesError as error:
        raise SpecError(f"{source.where_in_axes(error.loc)}: {error}") from None
    _refuse_unknown_arms(file, blocks, source)
    _refuse_too_many(file, blocks, source)
    arms = _arms(file, source)
    points = list(_points(file, arms, blocks, source))
    return Sweep(file, Path(path).resolve().parent, points, arms, _axes_and_last_words(file.axes, blocks, source))


def with_overrides(document: Document, own: Sequence[Override], inner: Sequence[Override]) -> dict[str, Any]:
    """The file's data with those overrides applied that are about the file.

    `own` are about its own keys (`seeds`, `experiment`, …), `inner` about what stands in `base`: several values make an
    axis of every block, one value removes the axis of that name and is applied later, to each arm.
    """
    data = dict(document.data)
    for override in own:
        data = apply_override(data, _as_seeds(override))
    if not isinstance(data.get("base") or {}, dict):
        return data  # which is refused
    data["base"] = _placed(document.where(("base",)), expand_dotted, data.get("base") or {})
    data["axes"] = data.get("axes") or {}
    for override in inner:
        data["axes"] = without_axis(data["axes"], override.path)
        if len(override.values) > 1:
            data["axes"] = with_axis(data["axes"], override.key, list(override.values))
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
        file = SweepFile.model_validate(data, context={"registry": source.registry})
        own = {key: value for key, value in data.items() if key not in ("base", "arms", "axes")}
        if wrong := list(converted(own, file)):
            raise ValidationError.from_exception_data("SweepFile", wrong)
    except ValidationError as error:
        raise spec_error(source.document, (), error, fields_at=known, origins=origins) from None
    if len(set(file.seeds)) < len(file.seeds):
        raise SpecError(f"{source.where('seeds')}: a seed is listed twice")
    return file


# ---------------------------------------------------------------------------------------------------------------
# Arms


def _arms(file: SweepFile, source: _Source) -> dict[str, dict[str, Any]]:
    """The configuration of each arm, before the axes."""
    base = with_command_line(with_presets({}, file.base, source, ("base",)), source)
    arms = {
        arm: with_last_word(with_presets(base, delta or {}, source, ("arms", arm)), source) for arm, delta in file.arms.items()
    }
    for override in source.overrides:
        if len(override.values) < 2 and not any(_has_its_stage(raw, override) for raw in arms.values()):
            stages = {key for raw in arms.values() for key in raw} - set(RunConfig.model_fields)
            hint = suggest(override.path[0], stages) or f"; +{override.key}=… adds one"
            raise SpecError(f"{override.origin}: this spec has no stage {quote(override.path[0])}{hint}")
    return arms


def _has_its_stage(raw: Mapping[str, Any], override: Override) -> bool:
    """Whether there is a stage to change; what adds or deletes, and what is about no stage, needs none."""
    first, *rest = override.path
    return override.operation != "set" or not rest or first in raw or first in RunConfig.model_fields


def with_command_line(raw: dict[str, Any], source: _Source) -> dict[str, Any]:
    """The overrides of one value applied, but for those of a stage that only some arm has."""
    for override in source.overrides:
        if len(override.values) < 2 and override.path != ("preset",) and _has_its_stage(raw, override):
            raw = apply_override(raw, override)
    return raw


def with_last_word(raw: dict[str, Any], source: _Source, below: Sequence[str] = ("",)) -> dict[str, Any]:
    """The same once more over what an arm, or an axis among `below`, has said since."""
    for override in source.overrides:
        if len(override.values) > 1 or override.path == ("preset",) or not any(f"{override.key}.".startswith(b) for b in below):
            continue
        if has_path(raw, override.path) or (override.operation != "delete" and _has_its_stage(raw, override)):
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
        except PluginError as error:
            raise PluginError(f"{where}: {error}") from None
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
        is_stage = key not in RunConfig.model_fields
        owner = component_class(source.registry, "stage", with_stage_name(key, given)) if is_stage else None
        if owner is not None:
            where = source.where("base", key)
            named = with_stage_name(key, as_mapping(given) or {})  # so that an arm's stage of another kind replaces it
            filled[key] = _placed(where, _filled, source.registry, owner, named)
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
        inner = component_class(registry, kind, filled.get(key))
        if inner is not None and isinstance(filled[key], dict):
            filled[key] = _filled(registry, inner, filled[key])
    return filled


def preset_values(preset: Preset) -> dict[str, Any]:
    """The nested mapping that a preset stands for, without the sources."""
    return expand_dotted({path: value for path, (value, _) in preset.values.items()})


def _axes_and_last_words(axes: Any, blocks: Sequence[Block], source: _Source) -> Any:
    """The axes, and as an axis of one value each override that is about a parameter of what an axis chooses."""
    paths = {path for block in blocks for group in block.groups for path in group.paths}
    for override in source.overrides:
        if len(override.values) == 1 and any(override.key.startswith(f"{path}.") for path in paths):
            axes = with_axis(axes, override.key, list(override.values))
    return axes


# ---------------------------------------------------------------------------------------------------------------
# Points


def _refuse_too_many(file: SweepFile, blocks: Sequence[Block], source: _Source) -> None:
    """Before anything is expanded; with conditions the number of runs shows only while expanding."""
    n_runs = len(file.arms) * len(file.seeds) * sum(block.size for block in blocks)
    if n_runs > file.max_runs and not any(block.is_conditional for block in blocks):
        raise SpecError(f"{source.where('axes')}: the sweep has {n_runs} runs, more than max_runs: {file.max_runs}")


def _refuse_unknown_arms(file: SweepFile, blocks: Sequence[Block], source: _Source) -> None:
    for condition, loc in (found for block in blocks for found in conditions(block)):
        for name in named(condition.get("arm", [])):
            if name not in file.arms:
                hint = suggest(name, file.arms) or f"; there are {', '.join(map(quote, file.arms))}"
                raise SpecError(f"{source.where_in_axes((*loc, 'arm'))}: no arm is called {describe(name)}{hint}")


def _points(file: SweepFile, arms: Mapping[str, dict[str, Any]], blocks: Sequence[Block], source: _Source) -> Iterator[Point]:
    paths = dict.fromkeys(path for block in blocks for group in block.groups for path in group.assignments[0])
    used: set[tuple] = set()
    n_runs = 0
    for arm, raw in arms.items():
        before = n_runs
        for chosen, point in (found for block in blocks for found in _combined(arm, raw, block, file, source, used)):
            n_runs += len(file.seeds)
            if n_runs > file.max_runs:
                raise SpecError(f"{source.where('axes')}: the sweep has more than max_runs: {file.max_runs} runs")
            config = _validated_point(point, arm, chosen, len(arms), source)
            if not config.stages:
                raise SpecError(f"{source.where('base')}: base has no stage, such as sft or rl, so there is nothing to run")
            axes = _in_effect(paths, chosen, point, source.registry)
            yield from (Point(arm, axes, seed, config, point) for seed in file.seeds)
        if n_runs == before:
            raise SpecError(f"{source.where('arms', arm)}: arm {quote(arm)} has no runs, for no block's `when` holds for it")
    _refuse_unused(blocks, used, arms, source)


def _combined(
    arm: str, raw: dict[str, Any], block: Block, file: SweepFile, source: _Source, used: set[tuple]
) -> Iterator[tuple[dict[str, Choice], dict[str, Any]]]:
    """What a block makes of an arm; `used` collects the places of the block and of those groups that apply."""

    def assign(state: dict[str, Any], path: str, choice: Choice) -> dict[str, Any]:
        return _placed(source.where_in_axes(choice.loc), with_delta, state, split_path(path), choice.value)

    def at(state: dict[str, Any], path: str) -> Any:
        return arm if path == "arm" else value_at(source.registry, state, path)

    def applies(state: dict[str, Any], group: Group) -> bool:
        stages = {split_path(path)[0] for path in group.paths} - set(RunConfig.model_fields)
        return stages <= state.keys() and (not group.when or holds(group.when, lambda path: at(state, path)))

    limit = 10 * file.max_runs + 1000
    for tried, (chosen, state) in enumerate(combinations(block, raw, assign, applies)):
        if tried > limit:
            where = source.where_in_axes((*block.loc, "when"))
            raise SpecError(f"{where}: this condition leaves few of more than {limit} combinations; write fewer values")
        point = with_last_word(state, source, below=[f"{path}." for path in chosen]) if source.overrides else state
        if holds(block.when, lambda path, point=point: at(point, path)):
            used |= {block.loc, *(group.loc for group in block.groups if group.assignments[0].keys() <= chosen.keys())}
            yield chosen, point


def _refuse_unused(blocks: Sequence[Block], used: set[tuple], arms: Mapping[str, Any], source: _Source) -> None:
    """An axis, or a block, that no run has anything of."""
    stages = {key for raw in arms.values() for key in raw}
    for block in blocks:
        if block.loc not in used:
            raise SpecError(f"{source.where_in_axes((*block.loc, 'when'))}: the `when` of this block holds for no run")
        for group in block.groups:
            if group.loc not in used:
                firsts = {split_path(path)[0] for path in group.paths}
                missing = sorted(firsts - stages - set(RunConfig.model_fields))
                why = [f"no stage is called {quote(first)}{suggest(first, stages)}" for first in missing]
                axis = " and ".join(map(quote, group.paths))
                said = " and ".join(why) or "its `when` never holds"
                raise SpecError(f"{source.where_in_axes(group.loc)}: no arm uses axis {axis}: {said}")


def _in_effect(
    paths: Mapping[str, Any], chosen: Mapping[str, Choice], point: Mapping[str, Any], registry: Registry
) -> dict[str, Any]:
    """The value at each axis of the sweep: what was chosen, or what the run has there anyway, if it has it."""
    found = {path: chosen[path].value if path in chosen else value_at(registry, point, path) for path in paths}
    return {path: _bare(value) for path, value in found.items() if value is not MISSING}


def _bare(value: Any) -> Any:
    """A component without parameters as its name."""
    return value["name"] if isinstance(value, dict) and value.keys() == {"name"} else value


def _validated_point(raw: dict[str, Any], arm: str, chosen: Mapping[str, Choice], n_arms: int, source: _Source) -> RunConfig:
    try:
        return validate_run(raw, source.registry, source.chosen)
    except ValidationError as error:
        places = {locate(raw, path): source.where_in_axes(choice.loc) for path, choice in chosen.items()}
        told = spec_error(
            source.document,
            ("base",),
            error,
            fields_at=lambda loc: fields_at(source.registry, raw, loc),
            unit_at=lambda loc: unit_at(source.registry, raw, loc),
            origins=places | {locate(raw, path): origin for path, origin in source.overridden.items()},
            overlays=[("arms", arm)],
        )
        if is_trouble_of_a_plugin(error):
            raise PluginError(str(told)) from None
        raise SpecError(f"{told}{_hint_at_when(error, arm, places, n_arms)}") from None


def _hint_at_when(error: ValidationError, arm: str, places: Mapping[tuple, str], n_arms: int) -> str:
    """Said where an axis sets a parameter that the component of one arm does not have."""
    unknown = [detail["loc"] for detail in error.errors(include_url=False) if detail["type"] == "extra_forbidden"]
    meant = n_arms > 1 and any(loc[: len(axis)] == axis for loc in unknown for axis in places)
    return f"; in arm {quote(arm)}: `when` limits an axis to some arms" if meant else ""


__all__ = ["Point", "Resources", "RunConfig", "Sweep", "SweepFile", "load_sweep", "slot_kind", "validate_run"]
