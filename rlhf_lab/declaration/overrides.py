"""Deltas and command-line overrides on plain data: pure functions that never mutate what they are given.

An override is a delta of one path: `rl.kl.beta=0.1` on the command line and `rl.kl.beta: 0.1` in an arm do the same.
A component may be written as its bare name: "fixed" counts as {"name": "fixed"} as soon as a parameter is set on it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlhf_lab.declaration.yaml_lines import describe, parse_value, plain_key, quote, shorten, show_path, suggest
from rlhf_lab.errors import SpecError

MAX_VALUES = 10_000  # of one override


# ---------------------------------------------------------------------------------------------------------------
# Deltas


def merge(base: Any, delta: Any) -> Any:
    """`delta` over `base`. Mappings merge key by key, everything else replaces; an empty mapping changes nothing.

    A component of another `name` replaces the whole, so that no parameter of the old one is left behind. A mapping
    over a list changes single items, chosen by index or component name.
    """
    return merged(deepcopy(base), deepcopy(delta), ())


def merged(base: Any, delta: Any, path: tuple[str, ...]) -> Any:
    """`merge` whose result may share parts with both arguments."""
    if not isinstance(delta, dict) or not isinstance(base, dict | list | str):
        return delta
    if not delta:
        return base
    if isinstance(base, list):
        items = list(base)
        for segment, item in delta.items():
            index = index_of(items, segment, path)
            items[index] = merged(items[index], item, (*path, segment))
        return items
    base = as_mapping(base)
    if "name" in delta and "name" in base and delta["name"] != base["name"]:
        return delta
    changed = {key: merged(base[key], value, (*path, key)) if key in base else value for key, value in delta.items()}
    return {**base, **changed}


def as_mapping(component: Any) -> Any:
    """A bare component name as the mapping it stands for; anything else as it is."""
    return {"name": component} if isinstance(component, str) else component


def expand_dotted(delta: dict[str, Any]) -> dict[str, Any]:
    """Keys with dots, at any level, as nested mappings: {"rl.kl.beta": 0.2} → {"rl": {"kl": {"beta": 0.2}}}.

    A bare name and its parameters may stand side by side ({"rl.kl": "fixed", "rl.kl.beta": 0.2}); any other path that
    is given twice is a SpecError.
    """
    expanded: dict[str, Any] = {}
    for key, value in delta.items():
        inner = expand_dotted(value) if isinstance(value, dict) else deepcopy(value)
        path = split_path(key) if "." in key else (key,)
        expanded = united(expanded, nested(path, inner), ())
    return expanded


def united(left: Any, right: Any, path: tuple[str, ...]) -> Any:
    """Two parts of one delta together; no path may have two values."""
    if isinstance(left, dict) != isinstance(right, dict):
        left, right = as_mapping(left), as_mapping(right)
    if not (isinstance(left, dict) and isinstance(right, dict)):
        raise SpecError(f"{show_path(path)} is given twice in one mapping; keep one of the two")
    common = {key: united(left[key], right[key], (*path, key)) for key in left.keys() & right.keys()}
    return {**left, **right, **common}


def nested(path: Sequence[str], value: Any) -> Any:
    """("a", "b"), 1 → {"a": {"b": 1}}."""
    for segment in reversed(path):
        value = {segment: value}
    return value


# ---------------------------------------------------------------------------------------------------------------
# Paths

SEGMENT = re.compile(r"\w[\w:/@+-]*")

Path = str | Sequence[str]


def split_path(path: Path) -> tuple[str, ...]:
    """ "rl.objective[0].lr" → ("rl", "objective", "0", "lr"). A sequence of segments is taken as it is."""
    if not isinstance(path, str):
        return tuple(path)
    segments = tuple(re.sub(r"\[(\d+)\]", r".\1", path).split("."))
    if not all(SEGMENT.fullmatch(segment) for segment in segments):
        raise SpecError(f"{quote(path)} is not a path; write keys joined by dots, such as rl.kl.beta")
    return segments


def index_of(items: list, segment: str, path: Sequence[str]) -> int:
    """The item of a list that a segment means: the component of that name, or the index."""
    names = [item if isinstance(item, str) else item.get("name") if isinstance(item, dict) else None for item in items]
    where = show_path(path) or "the list"
    if names.count(segment) > 1:
        raise SpecError(f"{where} has several items named {quote(segment)}; use the index, 0 to {len(items) - 1}")
    if segment in names:
        return names.index(segment)
    if re.fullmatch(r"[0-9]{1,9}", segment) and int(segment) < len(items):
        return int(segment)
    known = [name for name in names if isinstance(name, str)]
    there = shorten(", ".join(map(plain_key, known)), 120) or f"{len(items)} without a name"
    raise SpecError(f"{where} has no item {quote(segment)}{suggest(segment, known) or f'; there are {there}'}")


def step(data: Any, segment: str, path: Sequence[str]) -> str | int:
    """The key or index of an existing entry of `data`, which stands at `path`."""
    if isinstance(data, list):
        return index_of(data, segment, path)
    mapping, where = as_mapping(data), show_path(path) or "the spec"
    if not isinstance(mapping, dict):
        raise SpecError(f"{where} is {describe(data)}, so it has no key {quote(segment)}")
    if segment not in mapping:
        there = f"; it has {shorten(', '.join(map(plain_key, mapping)), 120)}" if mapping else ""
        raise SpecError(f"{where} has no key {quote(segment)}{suggest(segment, mapping) or there}")
    return segment


def locate(data: Any, path: Path) -> tuple[str | int, ...]:
    """The path with list items as indices, as pydantic has it; keys that do not exist stay as they are."""
    segments, loc = split_path(path), []
    for n, segment in enumerate(segments):
        missing = not isinstance(data, list) and (not isinstance(as_mapping(data), dict) or segment not in as_mapping(data))
        loc.append(segment if missing else step(data, segment, segments[:n]))
        data = None if missing else as_mapping(data)[loc[-1]]
    return tuple(loc)


def get_path(data: Any, path: Path) -> Any:
    """The value at `path`, not copied. Raises SpecError, with a suggestion, where there is none."""
    segments = split_path(path)
    for n, segment in enumerate(segments):
        data = as_mapping(data)[step(data, segment, segments[:n])]
    return data


def has_path(data: Any, path: Path) -> bool:
    try:
        get_path(data, path)
    except SpecError:
        return False
    return True


def set_path(data: Any, path: Path, value: Any, create: bool = True) -> Any:
    """A copy of `data` with `value` at `path`; mappings that are missing on the way are made only if `create`."""
    return with_value(deepcopy(data), split_path(path), 0, deepcopy(value), create)


def with_value(data: Any, segments: tuple[str, ...], n: int, value: Any, create: bool) -> Any:
    if n == len(segments):
        return value
    segment, last = segments[n], n == len(segments) - 1
    data = {} if data is None and create else as_mapping(data)
    may_be_new = isinstance(data, dict) and (last or create)
    key = segment if may_be_new else step(data, segment, segments[:n])
    inner = data[key] if isinstance(data, list) else data.get(key)
    data[key] = with_value(inner, segments, n + 1, value, create)
    return data


def delete_path(data: Any, path: Path) -> Any:
    """A copy of `data` without what is at `path`, which must exist."""
    segments = split_path(path)
    parent = as_mapping(get_path(data, segments[:-1]))
    key = step(parent, segments[-1], segments[:-1])
    if isinstance(parent, list):
        rest: Any = [item for index, item in enumerate(parent) if index != key]
    else:
        rest = {name: item for name, item in parent.items() if name != key}
    return set_path(data, segments[:-1], rest)


# ---------------------------------------------------------------------------------------------------------------
# The command line

Operation = Literal["set", "add", "force", "delete"]
OPERATIONS: dict[str, Operation] = {"": "set", "+": "add", "++": "force", "~": "delete"}
PREFIXES = {operation: prefix for prefix, operation in OPERATIONS.items()}


@dataclass(frozen=True)
class Override:
    """One argument of the command line; several values make a sweep. `text` is what the user typed."""

    operation: Operation
    path: tuple[str, ...]
    values: tuple[Any, ...] = ()
    text: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def origin(self) -> str:
        """What an error about this value starts with, in place of file and line."""
        return f"override {shorten(self.text or format_override(self), 100)}"

    def each(self) -> tuple[Override, ...]:
        """The points of a sweep; of an override with one value (or none, to delete) itself."""
        if len(self.values) < 2:
            return (self,)
        points = [replace(self, values=(value,), text="") for value in self.values]
        return tuple(replace(point, text=format_override(point)) for point in points)


def parse_override(text: str) -> Override:
    """`key=value` sets, `+key=value` adds a new key, `++key=value` replaces whatever is there, `~key` deletes.

    `key=1,2,3`, `key=choice(a,b)` and `key=range(0,5)` are sweeps. Values are YAML 1.2 scalars, `[…]` or `{…}`.
    """
    try:
        prefix, key, equals, value = re.fullmatch(r"(\+\+|\+|~|)([^=]*)(=?)(.*)", text, re.DOTALL).groups()
        operation = OPERATIONS[prefix]
        if operation == "delete":
            if equals:
                raise SpecError(f"to delete a key write '~{key.strip()}', without a value")
            return Override(operation, split_path(key.strip()), (), text)
        if not equals:
            raise SpecError("write key=value, or ~key to delete a key")
        return Override(operation, split_path(key.strip()), parse_values(value), text)
    except SpecError as error:
        raise SpecError(f"override {quote(text)}: {error}") from None


CALL = re.compile(r"\s*([A-Za-z_]\w*)\((.*)\)\s*", re.DOTALL)


def parse_values(text: str) -> tuple[Any, ...]:
    """The values of a comma list, `choice(…)`, `range(…)`, or the one value."""
    parts = split_commas(text)
    calls = [call for call in map(CALL.fullmatch, parts) if call]
    for call in calls:
        if call[1] not in ("choice", "range"):
            hint = suggest(call[1], ("choice", "range"))
            raise SpecError(f"there is no {call[1]}(…){hint}; put quotes around text with brackets")
    if not calls:
        return tuple(parse_value(part) for part in parts)
    if len(parts) > 1:
        raise SpecError(f"{calls[0][1]}(…) must stand alone; write all values as one comma list")
    arguments = tuple(parse_value(part) for part in split_commas(calls[0][2]))
    return arguments if calls[0][1] == "choice" else range_values(arguments)


def range_values(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """range(stop), range(start, stop) or range(start, stop, step), without `stop` itself, in whole numbers."""
    whole = all(type(argument) is int for argument in arguments)
    if not whole or len(arguments) > 3 or arguments[2:] == (0,):
        raise SpecError("range takes whole numbers: range(start, stop) or range(start, stop, step); write others out: 0.1,0.2")
    values = range(*arguments)
    if not values:
        raise SpecError("this range is empty; it counts from start up to, but without, stop")
    if values[MAX_VALUES:]:
        raise SpecError(f"this range has more than {MAX_VALUES} values; make it shorter")
    return tuple(values)


QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^']|'')*'", re.DOTALL)
CLOSERS = {"(": ")", "[": "]", "{": "}"}


def split_commas(text: str) -> list[str]:
    """The parts between commas that stand outside brackets and quotes."""
    parts, start, open_brackets, fresh, i = [], 0, [], True, 0
    while i < len(text):
        char = text[i]
        if fresh and char in "'\"":
            i = end_of_quote(text, i)
            fresh = False
            continue
        if char == "#" and (i == 0 or text[i - 1].isspace()):
            raise SpecError("put quotes around text with '#'")
        if char in CLOSERS:
            open_brackets.append(CLOSERS[char])
        elif char in ")]}" and (not open_brackets or open_brackets.pop() != char):
            raise SpecError(f"unexpected '{char}'; put quotes around text with brackets")
        elif char == "," and not open_brackets:
            parts.append(text[start:i])
            start = i + 1
        fresh = char in "([{,:" or (fresh and char.isspace())
        i += 1
    if open_brackets:
        raise SpecError(f"'{open_brackets[-1]}' is missing; put quotes around text with brackets")
    return [*parts, text[start:]]


def end_of_quote(text: str, start: int) -> int:
    match = QUOTED.match(text, start)
    if match is None:
        raise SpecError(f"the quote {text[start]} is never closed")
    return match.end()


def format_override(override: Override) -> str:
    """The text that `parse_override` reads back."""
    key = PREFIXES[override.operation] + override.key
    return key if override.operation == "delete" else f"{key}={','.join(format_value(value) for value in override.values)}"


def format_value(value: Any) -> str:
    """A value as YAML on one line; text bare where that reads back as the same text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{format_text(key)}: {format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return format_text(value) if isinstance(value, str) else json.dumps(value)


def format_text(text: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) and parse_value(text) == text:
        return text
    escaped = json.dumps(text, ensure_ascii=False)
    return re.sub(
        r"[^\x20-\x7e\xa1-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]",
        escape,
        escaped,
    )


def escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def apply_override(data: dict[str, Any], override: Override) -> dict[str, Any]:
    """A copy of `data` with an override of one value applied.

    A key that does not exist yet is made (the models judge it later), except by `+`, which insists that it is new.
    """
    try:
        if len(override.values) > 1:
            raise SpecError(f"this is a sweep of {len(override.values)} values; one is needed here")
        if override.operation == "delete":
            return delete_path(data, override.path)
        (value,) = override.values
        if override.operation == "add" and has_path(data, override.path):
            raise SpecError(f"{override.key} exists already; write {override.key}={format_value(value)} to change it")
        change = set_path if override.operation == "force" else with_delta
        return change(deepcopy(data), override.path, deepcopy(value))
    except SpecError as error:
        raise SpecError(f"{override.origin}: {error}") from None


def with_delta(data: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """`merge` of one path, sharing what it leaves as it is. A spec is no component: its own `name` is a key like any other."""
    head, rest = path[0], path[1:]
    delta = nested(rest, value)
    return {**data, head: merged(data[head], delta, (head,)) if head in data else delta}
