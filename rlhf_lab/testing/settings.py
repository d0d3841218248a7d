"""Parameter settings in which a component is tried, found from what its fields declare.

A field is moved to the values that its type, its default and its bounds suggest; what the component refuses is passed over.
Where nothing can be guessed (a text, a file) the field says it itself: `param(..., "the pattern", examples=["w1"])`.
"""

from __future__ import annotations

import itertools
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic_core import PydanticUndefined

from rlhf_lab.contracts import Component, SlotMarker, StageRef
from rlhf_lab.errors import LabError, PluginError
from rlhf_lab.registry import Registry, discover

REFERS_TO_A_STAGE = StageRef.__metadata__[0]  # type: ignore[attr-defined]
STAGES = ("sft", "another")


@cache
def registry() -> Registry:
    """All installed components, and those of the kit's own world, for fields that hold a component."""
    from rlhf_lab.testing import world

    found = discover()
    found.add_module(world, "rlhf-lab-testing", "0")
    return found


def built(component: type[Component], fields: Mapping[str, Any]) -> Component:
    """The component with these parameters. Raises ValueError (pydantic's ValidationError is one) where it refuses them."""
    return component.model_validate(dict(fields), context={"registry": registry()})


def changed(component: Component, **fields: Any) -> Component | None:
    """The same component with other values of some fields; None where it refuses them."""
    try:
        return built(type(component), {**dict(component), **fields})
    except (ValueError, LabError):
        return None


def at_defaults(component: type[Component]) -> Component:
    """The component at its defaults, with likely values where it has none. Raises PluginError naming what cannot be guessed."""
    fields = component.model_fields
    required = {name: candidates(info) for name, info in fields.items() if info.is_required()}
    blank = [name for name, values in required.items() if not values]
    if not blank:
        given = {name: values[0] for name, values in required.items()}
        moves = [{}, *({name: value} for name in fields for value in candidates(fields[name]))]
        for move in moves:
            try:
                return built(component, {**given, **move})
            except (ValueError, LabError) as error:
                reason = " ".join(str(error).split())
    else:
        reason = f"nothing is known to try for {', '.join(blank)}"
    raise PluginError(
        f"{component.kind} {component.name!r} cannot be tried: {reason}; say what to try with param(..., examples=[…]) "
        "or laws(settings=…)"
    )


def settings(component: type[Component]) -> list[Component]:
    """The component at its defaults, with each choice that is not a number made in turn, and with all numbers moved."""
    start = at_defaults(component)
    choices = [changed(start, **{name: value}) for name, value in alternatives(start) if not is_number(value)]
    together = {name: next(iter(values), None) for name, values in by_field(start, numbers_only=True).items()}
    moved = changed(start, **{name: value for name, value in together.items() if value is not None})
    return [start, *(c for c in [*choices, moved] if c is not None and c != start)]


def beside(component: Component) -> list[Component]:
    """The component, and the same class in the settings that the kit finds for it."""
    try:
        return [component, *settings(type(component))]
    except PluginError:
        return [component]


def alternatives(component: Component) -> Iterator[tuple[str, Any]]:
    """(field, value) of all that a field might be set to besides what it is; not all of it need be allowed."""
    for name, info in type(component).model_fields.items():
        now = getattr(component, name)
        yield from ((name, value) for value in candidates(info) if value != now or type(value) is not type(now))


def by_field(component: Component, *, numbers_only: bool = False) -> dict[str, list[Any]]:
    """For each field the values that the component accepts when nothing else is changed."""
    found: dict[str, list[Any]] = {name: [] for name in type(component).model_fields}
    for name, value in alternatives(component):
        if (is_number(value) or not numbers_only) and changed(component, **{name: value}) is not None:
            found[name].append(value)
    return found


def contexts(component: Component) -> Iterator[Component]:
    """The component as it is, and with one or two fields moved: some parameters matter only where another one is set."""
    yield component
    moves = sorted(alternatives(component), key=lambda move: is_number(move[1]))
    pairs = (pair for pair in itertools.combinations(moves, 2) if pair[0][0] != pair[1][0])
    for several in (*((move,) for move in moves), *pairs):
        moved = changed(component, **dict(several))
        if moved is not None:
            yield moved


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------
# From a field to values


def candidates(info: Any) -> list[Any]:
    """Values worth trying in a field: its examples, then what its type suggests. The component may refuse some of them."""
    default = [] if info.default is PydanticUndefined else [info.default]
    found: list[Any] = []
    for value in (*(info.examples or []), *values_of(info.annotation, info.metadata, *(default or [None])), *default):
        if not any(type(value) is type(other) and value == other for other in found):
            found.append(value)
    return found


def values_of(annotation: Any, marks: typing.Sequence[Any], near: Any) -> Iterator[Any]:
    """Values of a type, close to `near` where it is a number."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    slots = [mark.kind for mark in marks if isinstance(mark, SlotMarker)]
    if origin is Annotated:
        yield from values_of(inner[0], [*marks, *annotation.__metadata__], near)
    elif slots:
        yield from components_of(slots[0])
    elif REFERS_TO_A_STAGE in marks:
        yield from STAGES
    elif origin in (typing.Union, types.UnionType):
        yield from itertools.chain.from_iterable(values_of(one, [], near) for one in inner)
    elif annotation is types.NoneType:
        yield None
    elif origin is Literal:
        yield from inner
    elif annotation is bool:
        yield from (True, False)
    elif annotation in (int, float):
        yield from numbers(annotation, near)
    elif origin in (list, tuple):
        yield from rows(origin, inner, near)


def numbers(of: type, near: Any) -> Iterator[float]:
    """Numbers close to the default first, then small ones that most bounds allow."""
    start = near if is_number(near) else 1
    close = (start + 1, start - 1, 2 * start) if of is int else (0.5 * start, 2 * start, start + 0.25, start - 0.25)
    small = (1, 2, 3, 5, 0) if of is int else (0.5, 0.25, 0.9, 1.0, 2.0, 5.0, 0.01, 0.0, -1.0)
    yield from (of(value) for value in (*close, *small))


def rows(origin: type, inner: typing.Sequence[Any], near: Any) -> Iterator[Any]:
    """Lists and tuples: of the default's length with one place moved, or of one, two and three places."""
    if isinstance(near, list | tuple) and near:
        kinds = list(inner) if origin is tuple and Ellipsis not in inner else [inner[0]] * len(near)
        for place, kind in enumerate(kinds):
            for value in values_of(kind, [], near[place]):
                yield origin([*near[:place], value, *near[place + 1 :]])
        return
    for length in (1, 2, 3):
        places = list(itertools.islice(itertools.cycle(values_of(inner[0], [], None)), length))
        if len(places) == length:
            yield origin(places)


def components_of(kind: str) -> Iterator[Component]:
    """Those of the kit's own world, or else a few components of that kind that can be had without parameters."""
    found = [r for r in registry().registrations() if r.kind == kind]
    own = [r for r in found if r.distribution == "rlhf-lab-testing"]
    for registration in own or found[:4]:
        try:
            yield registry().choose(kind, f"{registration.distribution}:{registration.name}")
        except (ValueError, LabError):
            continue
