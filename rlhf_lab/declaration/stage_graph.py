"""What stands inside a component, which stages it reads, and an order in which each stage comes after those it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from rlhf_lab.contracts import Component, StageName, stage_and_copy


class Circle(Exception):
    """Things that need each other; `names` begins and ends with the same one."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(" → ".join(names))
        self.names = tuple(names)


def in_order(reads: Mapping[str, Sequence[str]]) -> list[str]:
    """The names, those that one reads before it, otherwise as they are listed. Raises Circle."""
    order: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise Circle([*path[path.index(name) :], name])
        if name not in order:
            for ref in reads[name]:
                visit(ref, (*path, name))
            order[name] = None

    for name in reads:
        visit(name, ())
    return list(order)


def references(value: Any) -> set[StageName]:
    """Every stage name inside a component, however deep. Without recursion, for each run of a sweep is asked."""
    found, waiting = set(), [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, StageName):
            found.add(item)
        else:
            waiting += parts(item)
    return found


def with_copies(
    stages: Mapping[str, Component], read_by: Callable[[Component], Iterable[str]] = references
) -> dict[str, Component]:
    """The stages of a run, and those that references such as `reward_model@2` add: the same ones, whose seed is 2 higher."""
    found = dict(stages)
    for ref in sorted(set().union(*map(read_by, stages.values()))):
        found.setdefault(str(ref), stages[stage_and_copy(ref)[0]])
    return found


def located(value: Any, loc: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Component]]:
    """A component and all components inside it, each with its place."""
    if isinstance(value, Component):
        yield loc, value
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from located(getattr(value, name), (*loc, name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from located(item, (*loc, number))


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
        return list(value.__dict__.values())
    if isinstance(value, list | tuple):
        return list(value)
    return list(value.values()) if isinstance(value, Mapping) else []
