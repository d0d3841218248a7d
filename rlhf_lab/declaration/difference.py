"""What differs between two experiments, and in one sentence what each difference changes in the numbers.

An experiment is a list of resolved runs, as JSON: those of a spec, of a results folder, or the one that a preset stands for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhf_lab.declaration.consequences import CONSEQUENCES
from rlhf_lab.declaration.run_config import RunConfig, component_class, slot_kind
from rlhf_lab.registry import Registry


class Leaf(NamedTuple):
    """A value of a run and what it means: the sentence of its parameter, and of a component what it is."""

    value: Any
    sentence: str


@dataclass(frozen=True)
class Experiment:
    """The runs of one side; of a preset, `said` are the fields that it sets: others are the laboratory's defaults."""

    label: str
    configs: Sequence[Mapping[str, Any]]
    seeds: Sequence[int] = ()
    said: frozenset[str] = field(default_factory=frozenset)


class Difference(NamedTuple):
    """The values of a field on both sides, each once in order of appearance; none where a side has no such field."""

    field: str
    a: tuple[Any, ...]
    b: tuple[Any, ...]
    sentence: str


def difference(a: Experiment, b: Experiment, registry: Registry) -> list[Difference]:
    """Every field whose values differ, in the order in which `a` has them, then `b`.

    With a preset on a side only what a preset says is compared, in the stages that both have. The parameters of a component
    that only one side has are not listed one by one.
    """
    sides = [spread(experiment.configs, registry) for experiment in (a, b)]
    if a.said or b.said:
        shared = {field.split(".")[0] for field in sides[0]} & {field.split(".")[0] for field in sides[1]}
        heard = [name for name in a.said | b.said if name.split(".")[0] in shared]
        sides = [{name: found for name, found in side.items() if is_said(name, heard)} for side in sides]
    elif set(a.seeds) != set(b.seeds):
        for side, seeds in zip(sides, (a.seeds, b.seeds), strict=True):
            side["seeds"] = [
                Leaf(seed, "Other prompts in another order, and other noise, from the same settings.") for seed in seeds
            ]
    return list(_differences(*sides))


def _differences(a: Mapping[str, list[Leaf]], b: Mapping[str, list[Leaf]]) -> Iterator[Difference]:
    names, unlike = list(dict.fromkeys([*a, *b])), set()
    for name in names:
        one, other = a.get(name, []), b.get(name, [])
        values = tuple(tuple(leaf.value for leaf in side) for side in (one, other))
        if sorted(map(text, values[0])) == sorted(map(text, values[1])):
            continue
        parents = {name[:i] for i, letter in enumerate(name) if letter == "."}
        if (one and other) or not parents & unlike:
            yield Difference(name, *values, sentence(one, other))
        unlike.add(name)


def sentence(one: Sequence[Leaf], other: Sequence[Leaf]) -> str:
    """One sentence: the parameter's, or what each of the components is."""
    leaves = {text(leaf.value): leaf for leaf in (*one, *other)}
    sentences = list(dict.fromkeys(leaf.sentence for leaf in leaves.values()))
    if len(sentences) == 1:
        return sentences[0]
    return "; ".join(f"{value}: {leaf.sentence.rstrip('.')}" for value, leaf in leaves.items()) + "."


def is_said(name: str, heard: Iterable[str]) -> bool:
    """Whether a field is one of `heard`, or inside one, or a component around one."""
    return any(name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in heard)


# ---------------------------------------------------------------------------------------------------------------
# Runs as fields


def spread(configs: Sequence[Mapping[str, Any]], registry: Registry) -> dict[str, list[Leaf]]:
    """Each field with the distinct values that it has over the runs."""
    found: dict[str, list[Leaf]] = {}
    for config in configs:
        for name, leaf in leaves(registry, config):
            if all(text(leaf.value) != text(other.value) for other in found.setdefault(name, [])):
                found[name].append(leaf)
    return found


def leaves(registry: Registry, config: Mapping[str, Any]) -> Iterator[tuple[str, Leaf]]:
    """(dotted path, leaf) of everything in a run; a component's own leaf is its name, one of a list is found by its name."""
    for key, value in config.items():
        info = RunConfig.model_fields.get(key)
        kind = slot_kind(info) if info else "stage"
        yield from _leaves(registry, key, value, kind, Leaf(value, words(info.description if info else None)))


def _leaves(registry: Registry, path: str, value: Any, kind: str | None, leaf: Leaf) -> Iterator[tuple[str, Leaf]]:
    if kind and isinstance(value, list):
        for i, item in enumerate(value):
            again = sum(other["name"] == item["name"] for other in value[:i])
            yield from _leaves(registry, f"{path}.{item['name']}" + f"#{again + 1}" * bool(again), item, kind, leaf)
    elif isinstance(value, Mapping) and "name" in value:
        owner = component_class(registry, kind, value)
        yield path, Leaf(value["name"], first_sentence(getattr(owner, "__doc__", None)) or f"It is the {kind} of that name.")
        yield from _fields(registry, path, {key: value[key] for key in value if key != "name"}, owner)
    else:
        yield path, leaf


def _fields(registry: Registry, path: str, parameters: Mapping[str, Any], owner: Any) -> Iterator[tuple[str, Leaf]]:
    for key, value in parameters.items():
        info = getattr(owner, "model_fields", {}).get(key)
        told = CONSEQUENCES.get(f"{getattr(owner, 'kind', '')}.{key}") or words(getattr(info, "description", None))
        inner = getattr(info, "annotation", None)
        if isinstance(value, Mapping) and "name" not in value and hasattr(inner, "model_fields"):
            yield from _fields(registry, f"{path}.{key}", value, inner)
        else:
            yield from _leaves(registry, f"{path}.{key}", value, slot_kind(info) if info else None, Leaf(value, told))


def words(description: str | None) -> str:
    """A description as a sentence."""
    return f"{description[0].upper()}{description[1:].rstrip('.')}." if description else "It is not described."


def first_sentence(doc: str | None) -> str:
    """Of a docstring, on one line."""
    whole = " ".join((doc or "").strip().split("\n\n")[0].split())
    end = whole.find(". ")
    return whole if end < 0 else whole[: end + 1]


def text(value: Any) -> str:
    """Canonical and short: a word as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shown(values: Sequence[Any]) -> str:
    """All values of a field, or a dash where a side has none."""
    return " | ".join(map(text, values)) or "–"
