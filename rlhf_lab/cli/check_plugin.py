"""`plugins check`: the laws of the kit, held against a plugin file or a package that need not be installed."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lab.contracts import ENTRY_POINT_GROUP
from rlhf_lab.errors import PluginError, SpecError
from rlhf_lab.registry import Registry, discover

BUILT_IN_ONLY = {"RLHF_LAB_LOAD_PLUGINS": ""}


@contextmanager
def plugin_at(path: Path) -> Iterator[tuple[Registry, str]]:
    """The registry with what is at `path`, and its distribution. Raises PluginError where it is broken."""
    if path.is_file():
        yield usable(discover([path.resolve()], BUILT_IN_ONLY), path.name)
    elif (path / "pyproject.toml").is_file():
        folder = path.resolve()
        sys.path[:0] = added = [str(folder / "src"), str(folder)]
        try:
            yield with_package(folder)
        finally:
            for entry in added:
                sys.path.remove(entry)
    else:
        raise SpecError(f"{path} is neither a plugin file nor a folder with a pyproject.toml")


def with_package(folder: Path) -> tuple[Registry, str]:
    """What the entry points of a package in a folder register."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        points = project["entry-points"][ENTRY_POINT_GROUP]
    except (tomllib.TOMLDecodeError, KeyError):
        raise PluginError(
            f"{folder / 'pyproject.toml'} has no [project.entry-points.{ENTRY_POINT_GROUP}], by which a package says where its "
            "components are"
        ) from None
    registry = discover([], BUILT_IN_ONLY)
    for name, module in points.items():
        registry.add(
            name, project["name"], str(project.get("version", "0")), lambda module=module: importlib.import_module(module)
        )
    return usable(registry, project["name"])


def usable(registry: Registry, distribution: str) -> tuple[Registry, str]:
    broken = [f"{b.plugin}: {b.reason}" for b in registry.broken if b.distribution == distribution]
    if broken:
        raise PluginError("; ".join(broken))
    return registry, distribution


def report(path: Path) -> list[dict[str, Any]]:
    """A verdict for each component at `path` and each law of its kind."""
    from rlhf_lab.testing import verdicts

    with plugin_at(path) as (registry, distribution):
        mine = [r.component for r in registry.registrations() if r.distribution == distribution]
        return [{**verdict._asdict(), "holds": verdict.seen is None} for component in mine for verdict in verdicts(component)]


def lines(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The verdicts for people: what was expected and what was seen, where a law is broken."""
    for place, verdict in enumerate(found):
        if place == 0 or verdict["component"] != found[place - 1]["component"]:
            yield verdict["component"]
        yield f"  {'ok  ' if verdict['holds'] else 'FAIL'}  {verdict['law'].replace('_', ' ')}"
        if not verdict["holds"]:
            yield f"        expected: {verdict['expected']}"
            yield f"        seen:     {verdict['seen']}"
    broken = sum(not verdict["holds"] for verdict in found)
    yield f"{len(found) - broken} laws hold, {broken} {'is' if broken == 1 else 'are'} broken"
