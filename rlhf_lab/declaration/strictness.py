"""What pydantic converts in silence and a spec should not: `steps: true` is no number, `epochs: "2"` neither, 1 no truth value.

A whole number may stand for a fraction, and a fraction without remainder (1e3) for a whole number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import InitErrorDetails

from rlhf_lab.contracts import Component

Loc = tuple[str | int, ...]


def converted(given: Any, value: Any, loc: Loc = ()) -> Iterator[InitErrorDetails]:
    """An error for each part of what was given that has become a value of another sort; components inside are not entered."""
    if isinstance(given, Mapping):
        for key, item in given.items():
            inner = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
            if not isinstance(inner, Component):
                yield from converted(item, inner, (*loc, key))
    elif isinstance(given, list) and isinstance(value, list | tuple):
        for index, (item, inner) in enumerate(zip(given, value, strict=False)):
            if not isinstance(inner, Component):
                yield from converted(item, inner, (*loc, index))
    elif sort(value) and sort(given) and sort(given) != sort(value):
        yield InitErrorDetails(type=TYPES[type(value)], loc=loc, input=given)


TYPES = {bool: "bool_type", int: "int_type", float: "float_type"}


def sort(value: Any) -> str | None:
    """Truth value, number, or text that pydantic would take for one of them; None for everything else."""
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) and looks_like_more(value) else None


def looks_like_more(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "yes", "no", "on", "off", "y", "n", "t", "f")
    return True
