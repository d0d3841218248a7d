"""The laws of every component, whatever its kind."""

from __future__ import annotations

import inspect
import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from rlhf_lab.contracts import Component
from rlhf_lab.errors import LabError
from rlhf_lab.testing.sentences import require, same, shown
from rlhf_lab.testing.settings import alternatives, built, changed, contexts

MEMORY_ONLY = "changes memory, not numbers"
VALUES = 3  # of a parameter are tried before another one is moved


def it_says_what_it_is(c: Component) -> None:
    """The docstring says in a sentence what the component computes."""
    doc = inspect.cleandoc(type(c).__doc__ or "")
    require(type(c).__doc__ is not Component.__doc__ and len(doc.split()) >= 3, "there is no docstring of its own")
    require(doc[-1] in ".)", f"the docstring ends in {doc[-20:]!r}, not with a full stop")


def each_parameter_says_what_it_is(c: Component) -> None:
    """Each parameter has a description, or is a block whose class has a docstring."""
    for name, field in type(c).model_fields.items():
        block = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and field.annotation.__doc__
        require(field.description or block, f"parameter {name!r} has none; write {name}: … = param(default, 'what it is')")


def sources_and_units_are_texts(c: Component) -> None:
    """What `plugins show` prints beside a parameter is its unit and its source, as texts."""
    for name, field in type(c).model_fields.items():
        for key, text in (field.json_schema_extra or {}).items():
            fine = key in ("unit", "source") and isinstance(text, str) and bool(text.strip())
            require(fine, f"parameter {name!r} has {key} = {text!r}")


def unknown_parameters_are_refused(c: Component) -> None:
    """A parameter that the component does not have is an error, not ignored."""
    wrong = {**dict(c), "surely_no_parameter_of_this_name": 1}
    try:
        built(type(c), wrong)
    except (ValueError, LabError):
        return
    require(False, "a parameter of any name is accepted; leave model_config as Component has it")


def it_is_frozen(c: Component) -> None:
    """Parameters cannot be changed once the component is made."""
    for name in type(c).model_fields:
        try:
            setattr(c, name, getattr(c, name))
        except ValueError:
            continue
        require(False, f"parameter {name!r} can be set; leave model_config as Component has it")


def it_survives_json(c: Component) -> None:
    """Written as JSON and read again it is the same component, so that a run can be repeated from its plan."""
    fields = {key: value for key, value in json.loads(c.model_dump_json()).items() if key != "name"}
    again = built(type(c), fields)
    require(again == c, f"it comes back as {again!r}")


def nothing_happens_at_construction(c: Component) -> None:
    """Making the component draws no random number from a global generator."""
    before = global_generators()
    built(type(c), dict(c))
    require(global_generators() == before, "a global random generator has moved; draw from ctx.rng(name) when it is opened")


def global_generators() -> tuple[str, ...]:
    return str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())


OF_THE_CLASS = (it_says_what_it_is, each_parameter_says_what_it_is, sources_and_units_are_texts)
LAWS = (
    *OF_THE_CLASS,
    unknown_parameters_are_refused,
    it_is_frozen,
    it_survives_json,
    nothing_happens_at_construction,
)


# ---------------------------------------------------------------------------------------------------------------
# Each parameter counts: the same for every kind whose components can be asked for a result


def each_parameter_counts(outcome: Callable[[Any], Any], tries: int, read_by_the_core: frozenset[str] = frozenset()) -> Any:
    """The law for a kind whose components give `outcome(component)` in a fixed situation; at most `tries` of them per field.

    `read_by_the_core`: parameters that the protocol of the kind lets the core read.
    """

    def each_parameter_counts(c: Component) -> None:
        """Each parameter changes the result somewhere; one that says it changes memory only changes no number."""
        for name, field in type(c).model_fields.items():
            if name in read_by_the_core:
                continue
            if MEMORY_ONLY in (field.description or ""):
                for value in (value for other, value in alternatives(c) if other == name):
                    if (moved := changed(c, **{name: value})) is not None:
                        same(result(outcome, moved), result(outcome, c), f"the result with {name} = {value!r}", 1e-5)
            else:
                require(counts(outcome, c, name, tries), f"{name} changes nothing: {shown(tried(c, name))} give one result")

    return each_parameter_counts


def counts(outcome: Callable[[Any], Any], c: Component, name: str, tries: int) -> bool:
    """Whether two settings that differ in this field alone give two results, or in this and one that has to move with it."""
    known: tuple[Component | None, Any] = (None, None)
    for before, after in moves_of(c, name):
        if known[0] is not before:
            known, tries = (before, result(outcome, before)), tries - 1
        tries -= 1
        if differ(result(outcome, after), known[1]):
            return True
        if tries <= 0:
            break
    return False


def moves_of(c: Component, name: str) -> Iterator[tuple[Component, Component]]:
    """Pairs of settings that differ in a field; where it cannot be moved alone, in that field and in another."""
    alone = False
    for context in contexts(c):
        values = (value for other, value in alternatives(context) if other == name)
        allowed = (moved for value in values if (moved := changed(context, **{name: value})) is not None)
        for moved in itertools.islice(allowed, VALUES):
            alone = True
            yield context, moved
    if not alone:
        yield from ((c, moved) for moved in contexts(c) if getattr(moved, name) != getattr(c, name))


def tried(c: Component, name: str) -> list[Any]:
    values = [getattr(c, name), *(value for other, value in alternatives(c) if other == name)]
    return [value for value in values if changed(c, **{name: value}) is not None]


def result(outcome: Callable[[Any], Any], c: Component) -> Any:
    """What comes out, or the error that is raised instead."""
    try:
        return outcome(c)
    except (LabError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def differ(a: Any, b: Any) -> bool:
    """Whether two results, nested or not, are not equal number by number (NaN equals NaN)."""
    try:
        same(a, b, "", 0.0)
    except AssertionError:
        return True
    return False
