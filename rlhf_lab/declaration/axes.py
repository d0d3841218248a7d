"""The grammar of `axes`: which values are tried together. Pure functions of plain data.

A block is one mapping; what stands in it is combined, each with each:

    rl.kl.beta: [0.02, 0.2]                                        # an axis of a grid
    rl.kl.target: {values: [3, 6], when: {rl.kl: adaptive}}        # varied only where the condition holds
    grid: {…}                                                      # axes of a grid under a heading of their own
    zip: {rl.learning_rate: [1e-4, 3e-4], rl.batch_size: [32, 64]} # in step: first with first, second with second
    random: {n: 20, seed: 0, distributions: {rl.temperature: {uniform: [0.5, 1]}}}
    when: {arm: [a, b]}                                            # the block counts only where the condition holds

A list of blocks adds up. A condition names paths and what stands there: a value, a list of values of which one must be
there, or a comparison, {gt: 1}, {ge: 1}, {lt: 1}, {le: 1}, {not: 1}. A component may be named by its name, and `arm` is
the name of the arm. Where there is nothing at a path, the condition does not hold.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from rlhf_lab.declaration.distributions import draws
from rlhf_lab.declaration.overrides import split_path
from rlhf_lab.declaration.stage_graph import Circle, in_order
from rlhf_lab.declaration.yaml_lines import describe, plain_key, quote, suggest
from rlhf_lab.errors import SpecError

Loc = tuple[str | int, ...]
Condition = Mapping[str, Any]
GROUPS = ("grid", "zip", "random")
RESERVED = (*GROUPS, "when")
MISSING = object()


class AxesError(Exception):
    """What is wrong with the axes, and where: `loc` is a place inside them."""

    def __init__(self, loc: Loc, message: str) -> None:
        super().__init__(message)
        self.loc = loc


class Choice(NamedTuple):
    """A value and where it stands."""

    value: Any
    loc: Loc


@dataclass(frozen=True)
class Group:
    """Assignments of which a point takes one, or none where the condition does not hold."""

    assignments: Sequence[Mapping[str, Choice]]
    when: Condition
    loc: Loc

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Components before their parameters."""
        return tuple(sorted(self.assignments[0], key=depth))


@dataclass(frozen=True)
class Block:
    """Groups that are combined, in an order in which each comes after those that it depends on."""

    groups: Sequence[Group] = ()
    when: Condition = field(default_factory=dict)
    loc: Loc = ()

    @property
    def size(self) -> int:
        """The number of combinations, conditions aside."""
        return math.prod(len(group.assignments) for group in self.groups)

    @property
    def is_conditional(self) -> bool:
        return bool(self.when) or any(group.when for group in self.groups)


def depth(path: str) -> int:
    return len(split_path(path))


# ---------------------------------------------------------------------------------------------------------------
# Reading


def blocks_of(axes: Any) -> list[Block]:
    """The blocks of a spec's `axes`. Raises AxesError."""
    if axes is None or isinstance(axes, Mapping):
        return [block_of(axes or {}, ())]
    if not isinstance(axes, list) or not all(isinstance(item, Mapping) for item in axes):
        raise AxesError((), f"axes must be a mapping, or a list of mappings (blocks that add up), not {describe(axes)}")
    return [block_of(item, (n,)) for n, item in enumerate(axes)] or [Block()]


def block_of(block: Mapping[str, Any], loc: Loc) -> Block:
    groups: list[Group] = []
    for key, value in block.items():
        if key == "grid":
            groups += grid_of(value, (*loc, key))
        elif key in GROUPS:
            read = {"zip": zip_of, "random": random_of}[key]
            groups += [read(item, place) for item, place in one_or_several(value, (*loc, key))]
        elif key != "when":
            groups.append(axis_of(key, value, {}, (*loc, key)))
    refuse_repeated(groups)
    return Block(ordered(groups), condition_of(block.get("when", {}), (*loc, "when")), loc)


def one_or_several(value: Any, loc: Loc) -> list[tuple[Any, Loc]]:
    return [(item, (*loc, n)) for n, item in enumerate(value)] if isinstance(value, list) else [(value, loc)]


def axis_of(path: str, value: Any, when: Condition, loc: Loc) -> Group:
    """`path: [values]`, or `path: {values: […], when: {…}}`."""
    check_path(path, loc)
    if isinstance(value, Mapping) and "values" in value:
        check_keys(value, ("values", "when"), f"axis {quote(path)}", loc)
        when = {**when, **condition_of(value.get("when", {}), (*loc, "when"))}
        loc, value = (*loc, "values"), value["values"]
    if not isinstance(value, list):
        hint = "; write {values: […], when: {…}}, or a distribution under random" if isinstance(value, Mapping) else ""
        raise AxesError(loc, f"axis {quote(path)} must be a list of values, not {describe(value)}{hint}")
    if not value:
        raise AxesError(loc, f"axis {quote(path)} has no values, so there is nothing to run")
    return Group([{path: Choice(item, (*loc, n))} for n, item in enumerate(value)], when, loc)


def grid_of(grid: Any, loc: Loc) -> list[Group]:
    """The axes under `grid`, each with its condition, if there is one."""
    axes, when = split_condition(grid, "grid", loc)
    return [axis_of(path, values, when, (*loc, path)) for path, values in axes.items()]


def zip_of(zipped: Any, loc: Loc) -> Group:
    """The axes under `zip` as one: the first values together, the second values together, …"""
    axes, when = split_condition(zipped, "zip", loc)
    columns = [axis_of(path, values, {}, (*loc, path)) for path, values in axes.items()]
    lengths = {path: len(column.assignments) for path, column in zip(axes, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{plain_key(path)} has {n}" for path, n in lengths.items())
        raise AxesError(loc, f"the axes of a zip go in step, so they need equally many values: {told}")
    together = zip(*(column.assignments for column in columns), strict=True)
    return Group([{path: choice for one in row for path, choice in one.items()} for row in together], when, loc)


def random_of(random: Any, loc: Loc) -> Group:
    """n assignments, drawn."""
    if not isinstance(random, Mapping):
        raise AxesError(loc, f"random must be {{n: …, seed: …, distributions: {{…}}}}, not {describe(random)}")
    check_keys(random, ("n", "seed", "distributions", "when"), "random", loc)
    n = whole_number(random, "n", 1, loc)
    seed = whole_number({"seed": 0, **random}, "seed", 0, loc)
    distributions, place = random.get("distributions"), (*loc, "distributions")
    if not isinstance(distributions, Mapping) or not distributions:
        raise AxesError(place, "random needs distributions, such as {rl.learning_rate: {log_uniform: [1e-5, 1e-3]}}")
    columns = {path: drawn(path, distribution, n, seed, (*place, path)) for path, distribution in distributions.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Group(rows, condition_of(random.get("when", {}), (*loc, "when")), loc)


def drawn(path: str, distribution: Any, n: int, seed: int, loc: Loc) -> list[Choice]:
    check_path(path, loc)
    try:
        return [Choice(value, loc) for value in draws(path, distribution, n, seed)]
    except ValueError as error:
        raise AxesError(loc, str(error)) from None


def split_condition(group: Any, name: str, loc: Loc) -> tuple[dict[str, Any], Condition]:
    """The axes of a grid or zip, and its `when`."""
    if not isinstance(group, Mapping):
        raise AxesError(loc, f"{name} must be a mapping of axes, such as {{rl.kl.beta: [0.02, 0.2]}}, not {describe(group)}")
    axes = {path: values for path, values in group.items() if path != "when"}
    if not axes:
        raise AxesError(loc, f"{name} has no axes; write {name}: {{rl.kl.beta: [0.02, 0.2]}}")
    return axes, condition_of(group.get("when", {}), (*loc, "when"))


def whole_number(mapping: Mapping[str, Any], key: str, least: int, loc: Loc) -> int:
    value = mapping.get(key)
    if type(value) is not int or value < least:
        raise AxesError((*loc, key), f"random.{key} must be a whole number ≥ {least}, not {describe(value)}")
    return value


def check_path(path: str, loc: Loc) -> None:
    try:
        split_path(path)
    except SpecError as error:
        raise AxesError(loc, str(error)) from None


def check_keys(mapping: Mapping[str, Any], known: Sequence[str], where: str, loc: Loc) -> None:
    for key in mapping:
        if key not in known:
            hint = suggest(key, known) or f"; it has {', '.join(known)}"
            raise AxesError((*loc, key), f"unknown key {quote(key)} in {where}{hint}")


def refuse_repeated(groups: Sequence[Group]) -> None:
    seen: set[tuple[str, ...]] = set()
    for group in groups:
        for path, choice in group.assignments[0].items():
            if split_path(path) in seen:
                raise AxesError(choice.loc, f"axis {quote(path)} is given twice in one block; keep one of the two")
            seen.add(split_path(path))


# ---------------------------------------------------------------------------------------------------------------
# Order


def ordered(groups: Sequence[Group]) -> list[Group]:
    """The groups as the file lists them, but for those that depend on others: a parameter comes after the axis of its
    component, and an axis after those that its condition asks about.
    """
    names = [" and ".join(map(plain_key, group.assignments[0])) for group in groups]
    reads = {
        name: [other for other, theirs in zip(names, groups, strict=True) if theirs is not group and depends(group, theirs)]
        for name, group in zip(names, groups, strict=True)
    }
    try:
        return [groups[names.index(name)] for name in in_order(reads)]
    except Circle as circle:
        raise AxesError(groups[names.index(circle.names[0])].loc, f"axes depend on each other in a circle: {circle}") from None


def depends(group: Group, other: Group) -> bool:
    """Whether it sets, or asks about, something that the other one sets."""
    below = (is_below(path, theirs) for path in group.paths for theirs in other.paths)
    asks = (path == theirs or is_below(path, theirs) or is_below(theirs, path) for path in group.when for theirs in other.paths)
    return any(below) or any(asks)


def is_below(path: str, other: str) -> bool:
    mine, theirs = split_path(path), split_path(other)
    return len(mine) > len(theirs) and mine[: len(theirs)] == theirs


# ---------------------------------------------------------------------------------------------------------------
# Conditions

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}


def condition_of(when: Any, loc: Loc) -> Condition:
    """A condition as it stands in a spec. Raises AxesError."""
    if not isinstance(when, Mapping):
        raise AxesError(loc, f"when must be a mapping of paths, such as {{rl.kl: adaptive}}, not {describe(when)}")
    for path, wanted in when.items():
        check_path(path, (*loc, path))
        if isinstance(wanted, Mapping):
            check_comparison(path, wanted, (*loc, path))
    return when


def check_comparison(path: str, wanted: Mapping[str, Any], loc: Loc) -> None:
    if not wanted:
        raise AxesError(loc, f"the condition on {plain_key(path)} is empty; write a value, a list, or {{gt: 1}}")
    check_keys(wanted, (*COMPARISONS, "not"), f"the condition on {plain_key(path)}", loc)
    for name, limit in wanted.items():
        if name in COMPARISONS and not is_number(limit):
            raise AxesError((*loc, name), f"{name} compares numbers, so it takes a number, not {describe(limit)}")


def holds(when: Condition, value_at: Callable[[str], Any]) -> bool:
    """Whether what `value_at` gives for each path (MISSING where there is nothing) is what the condition wants."""
    return all(fits(value_at(path), wanted) for path, wanted in when.items())


def fits(value: Any, wanted: Any) -> bool:
    if value is MISSING:
        return False
    if not isinstance(wanted, Mapping):
        return is_one_of(value, wanted)
    return all(
        not is_one_of(value, limit) if name == "not" else is_number(value) and COMPARISONS[name](value, limit)
        for name, limit in wanted.items()
    )


def is_one_of(value: Any, wanted: Any) -> bool:
    """Equal to it, or to one of a list; a list of components counts as having each of them."""
    values = value if isinstance(value, list) else [value]
    return (isinstance(wanted, list) and value == wanted) or any(
        same(v, w) for v in values for w in (wanted if isinstance(wanted, list) else [wanted])
    )


def same(value: Any, wanted: Any) -> bool:
    if isinstance(value, Mapping) and isinstance(wanted, str):
        value = value.get("name")
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def conditions(block: Block) -> list[tuple[Condition, Loc]]:
    """All conditions of a block, each with the place where it stands."""
    return [(block.when, (*block.loc, "when")), *((group.when, (*group.loc, "when")) for group in block.groups)]


def named(wanted: Any) -> list[Any]:
    """The values that the condition on a path names."""
    if isinstance(wanted, Mapping):
        wanted = wanted.get("not", [])
    return wanted if isinstance(wanted, list) else [wanted]


# ---------------------------------------------------------------------------------------------------------------
# Expansion


def combinations(
    block: Block,
    start: Any,
    assign: Callable[[Any, str, Choice], Any],
    applies: Callable[[Any, Group], bool],
) -> Iterator[tuple[dict[str, Choice], Any]]:
    """What the groups choose, and `start` with it assigned, for every combination; the block's own `when` aside.

    `assign(state, path, choice)` is the state with the choice at the path; a group is left out where it does not apply.
    """

    def extend(n: int, chosen: dict[str, Choice], state: Any) -> Iterator[tuple[dict[str, Choice], Any]]:
        if n == len(block.groups):
            yield chosen, state
        elif not applies(state, block.groups[n]):
            yield from extend(n + 1, chosen, state)
        else:
            for assignment in block.groups[n].assignments:
                after = state
                for path in block.groups[n].paths:
                    after = assign(after, path, assignment[path])
                yield from extend(n + 1, {**chosen, **assignment}, after)

    yield from extend(0, {}, start)


# ---------------------------------------------------------------------------------------------------------------
# Changes from the command line


def without_axis(axes: Any, path: tuple[str, ...]) -> Any:
    """The axes of a spec without the one at `path`, wherever it stands; groups that are left empty go too."""
    if isinstance(axes, list):
        return [without_axis(block, path) for block in axes]
    if not isinstance(axes, Mapping):
        return axes
    kept = {key: item for key, item in axes.items() if key in RESERVED or not is_path(key, path)}
    for key in set(kept) & set(GROUPS):
        kept[key] = without_in_group(kept[key], path)
    return {key: item for key, item in kept.items() if item is not MISSING}


def without_in_group(group: Any, path: tuple[str, ...]) -> Any:
    """MISSING where nothing is left."""
    if isinstance(group, list):
        left = [item for item in (without_in_group(item, path) for item in group) if item is not MISSING]
        return left if left or not group else MISSING
    if not isinstance(group, Mapping):
        return group
    if isinstance(group.get("distributions"), Mapping):
        rest = without_in_group(group["distributions"], path)
        return MISSING if rest is MISSING else {**group, "distributions": rest}
    left = {key: item for key, item in group.items() if not is_path(key, path)}
    return left if left == group or set(left) - {"when"} else MISSING


def is_path(key: str, path: tuple[str, ...]) -> bool:
    try:
        return split_path(key) == path
    except SpecError:
        return False


def with_axis(axes: Any, path: str, values: list[Any]) -> Any:
    """The axes with one more, in each block."""
    if isinstance(axes, list) and axes:
        return [with_axis(block, path, values) for block in axes]
    return {**(axes or {}), path: values} if not axes or isinstance(axes, Mapping) else axes
