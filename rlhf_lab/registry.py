"""Finds plugins and answers for them: which components there are, from which distribution, and which plugins are broken."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
from pydantic import ValidationError

from rlhf_lab import contracts
from rlhf_lab.contracts import API_VERSION, ENTRY_POINT_GROUP, KINDS, Component, Hooks, Preset
from rlhf_lab.declaration.strictness import converted
from rlhf_lab.declaration.yaml_lines import suggest
from rlhf_lab.errors import PluginError
from rlhf_lab.sources import source_hash

BUILTIN_DISTRIBUTION = "rlhf-lab"

# kind → the protocol whose methods a component of that kind must offer itself (a policy offers `build`, and what that
# returns is the protocol; so for critics and data).
OFFERS: Mapping[str, Mapping[str, int]] = {
    "policy": {"build": 1},
    "critic": {"build": 2},
    "reward": {"open": 1},
    "kl_controller": {"start": 0, "update": 3},
    "advantage": {"estimate": 2},
    "objective": {"loss": 2},
    "reward_loss": {"examples": 1, "losses": 3},
    "preference_loss": {"examples": 1, "losses": 1},
    "stage": {"run": 1},
    "data": {"open": 1},
    "model": {"open": 1},
    "template": {"format": 2},
    "launcher": {"open": 2},
}


@dataclass(frozen=True)
class Registration:
    """One component class and where it came from."""

    component: Any
    distribution: str
    version: str
    origin: str

    @property
    def kind(self) -> str:
        return self.component.kind

    @property
    def name(self) -> str:
        return self.component.name

    def source_hash(self) -> str:
        """Of the code that defines the component: a change under an unchanged version shows."""
        return source_hash(self.component.__module__, self.distribution) if inspect.isclass(self.component) else ""


@dataclass(frozen=True)
class BrokenPlugin:
    plugin: str
    distribution: str
    reason: str


@dataclass
class Registry:
    """The components of one process. Filled once by `discover`, then only read."""

    found: dict[tuple[str, str], list[Registration]] = field(default_factory=dict)
    broken: list[BrokenPlugin] = field(default_factory=list)

    def choose(self, kind: str, value: Any, context: Mapping[str, Any] | None = None) -> Component:
        """The component that a spec asks for: `name`, or a mapping with `name` and parameters.

        Raises ValueError for an unknown name (caused by a PluginError where the name may belong to a broken plugin, or two
        distributions claim it), pydantic's ValidationError for wrong parameters. `context["chosen"]`, where it is there,
        remembers what was chosen.
        """
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(f"{kind} must be a name, or a mapping with a 'name' in it: one of {', '.join(self.names(kind))}")
        context = {**(context or {}), "registry": self}
        chosen = context.get("chosen")
        if chosen is None:
            return self._chosen(kind, value, context)
        key = kind, context.get("stages"), json.dumps(value, sort_keys=True)
        if key not in chosen:
            chosen[key] = self._chosen(kind, value, context)
        return chosen[key]

    def _chosen(self, kind: str, value: Mapping[str, Any], context: Mapping[str, Any]) -> Component:
        try:
            component = self.get(kind, value["name"]).component
        except PluginError as error:
            raise ValueError(str(error)) from error
        if isinstance(component, Preset):
            raise ValueError(f"{value['name']!r} is a preset; write it under 'preset'")
        parameters = {key: item for key, item in value.items() if key != "name"}
        made = component.model_validate(parameters, context=context)
        if wrong := list(converted(parameters, made)):
            raise ValidationError.from_exception_data(component.__name__, wrong)
        return made

    def get(self, kind: str, name: str) -> Registration:
        """The registration called `name`, or `distribution:name` where two distributions claim a name."""
        distribution, _, bare = name.rpartition(":")
        candidates = [r for r in self.found.get((kind, bare), []) if distribution in ("", r.distribution)]
        if len(candidates) > 1:
            owners = " and ".join(f"{r.distribution} ({r.origin})" for r in candidates)
            raise PluginError(f"{kind} {bare!r} is claimed by {owners}; write '<distribution>:{bare}' or remove one of them")
        if not candidates:
            raise self._unknown(kind, name)
        return candidates[0]

    def registration_of(self, component: Component) -> Registration:
        """Where the class of a component came from."""
        return next(r for r in self.found[component.kind, component.name] if r.component is type(component))

    def _unknown(self, kind: str, name: str) -> Exception:
        message = f"unknown {kind} {name!r}{suggest(name, self.names(kind))}"
        if self.broken:
            reasons = "; ".join(f"{b.plugin}: {b.reason}" for b in self.broken)
            return PluginError(f"{message}, and these plugins could not be loaded: {reasons}")
        return ValueError(f"{message}; there are {', '.join(self.names(kind))}")

    def names(self, kind: str) -> list[str]:
        return sorted(name for k, name in self.found if k == kind)

    def registrations(self) -> list[Registration]:
        """All registrations, by kind in the order of `KINDS`, then by name."""
        order = list(KINDS)
        return [r for key in sorted(self.found, key=lambda key: (order.index(key[0]), key[1])) for r in self.found[key]]

    def add_module(self, module: ModuleType, distribution: str, version: str) -> None:
        """Registers what the hooks of `module` register; all or nothing."""
        if (needed := getattr(module, "requires_api", API_VERSION)) > API_VERSION:
            raise PluginError(f"needs version {needed} of the plugin API, this rlhf-lab has {API_VERSION}; upgrade rlhf-lab")
        fresh: list[Registration] = []

        def register(component: Any) -> None:
            check_component(component)
            fresh.append(Registration(component, distribution, version, module.__name__))

        manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
        manager.add_hookspecs(Hooks)
        manager.register(module)
        manager.check_pending()
        manager.hook.register_components(register=register)
        for registration in fresh:
            self.found.setdefault((registration.kind, registration.name), []).append(registration)

    def add(self, plugin: str, distribution: str, version: str, load: Any) -> None:
        """Loads one plugin, and of a package each of its modules; what fails is listed as broken, with its reason."""
        before = len(self.broken), self.count()
        try:
            module = load()
        except (Exception, SystemExit) as error:
            self.broken.append(BrokenPlugin(plugin, distribution, one_line(error)))
            return
        for name in [None, *submodules(module)]:
            try:
                part = module if name is None else importlib.import_module(name)
                self.add_module(part, distribution, version)
            except (Exception, SystemExit) as error:
                self.broken.append(BrokenPlugin(name or plugin, distribution, one_line(error)))
        if before == (len(self.broken), self.count()):
            reason = "registers nothing; it needs a function register_components(register) under @hookimpl"
            self.broken.append(BrokenPlugin(plugin, distribution, reason))

    def count(self) -> int:
        return sum(map(len, self.found.values()))


def submodules(module: ModuleType) -> list[str]:
    """Dotted names of all modules inside a package, sorted; empty for a plain module."""
    if not hasattr(module, "__path__"):
        return []
    found = pkgutil.walk_packages(module.__path__, module.__name__ + ".", onerror=lambda name: None)
    return sorted(info.name for info in found if not info.ispkg)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def check_component(component: Any) -> None:
    """Raises PluginError unless `component` is a Component class (or a Preset) that offers what its kind needs."""
    if isinstance(component, Preset):
        return
    if not (inspect.isclass(component) and issubclass(component, Component)):
        raise PluginError(f"register() takes a Component class or a Preset, not {component!r}")
    for attribute in ("kind", "name"):
        if not isinstance(getattr(component, attribute, None), str):
            raise PluginError(f"{component.__name__} lacks the class attribute {attribute!r}")
    if component.kind not in KINDS:
        raise PluginError(f"{component.__name__}: unknown kind {component.kind!r}{suggest(component.kind, KINDS)}")
    if "name" in component.model_fields or "kind" in component.model_fields:
        raise PluginError(f"{component.__name__}: 'name' and 'kind' cannot be parameters")
    for method, n_arguments in OFFERS[component.kind].items():
        if not callable(getattr(component, method, None)):
            raise PluginError(f"{component.__name__} lacks the method {method}() of a {component.kind}")
        try:
            inspect.signature(getattr(component, method)).bind(None, *range(n_arguments))
        except TypeError:
            raise PluginError(f"{component.__name__}.{method}() must take {n_arguments} arguments besides self") from None


def load_file(path: Path) -> ModuleType:
    """Imports a plugin file under a name of its own, so that it shadows nothing."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    name = f"rlhf_lab_local_plugin_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def discover(plugin_files: Iterable[Path] = (), environ: Mapping[str, str] = os.environ) -> Registry:
    """All built-in components, those of installed distributions (entry points of group `rlhf_lab`), and `plugin_files`.

    `RLHF_LAB_LOAD_PLUGINS`: unset loads every distribution, empty none of the third-party ones, `a,b` just those two.
    Nothing is ever loaded from the working directory by itself. A file has no version, so a hash of its content stands
    for one: results of an edited plugin are not taken for those of the old one.
    """
    registry = Registry()
    allowed = environ.get("RLHF_LAB_LOAD_PLUGINS")
    wanted = None if allowed is None else {BUILTIN_DISTRIBUTION, *map(normal, allowed.split(","))}
    points = {(p.dist.name if p.dist else "", p.name): p for p in entry_points(group=ENTRY_POINT_GROUP)}
    for (distribution, name), point in sorted(points.items()):
        if wanted is None or normal(distribution) in wanted:
            registry.add(name, distribution, point.dist.version if point.dist else "0", point.load)
    for path in map(Path, plugin_files):
        registry.add(str(path), path.name, local_version(path), lambda path=path: load_file(path))
    return registry


def normal(distribution: str) -> str:
    """The name as package indexes compare it: case, `-`, `_` and `.` make no difference."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def local_version(path: Path) -> str:
    """`local+` and a hash of the file's content."""
    return "local+" + hashlib.blake2b(path.read_bytes() if path.is_file() else b"", digest_size=4).hexdigest()


__all__ = ["BrokenPlugin", "Registration", "Registry", "contracts", "discover"]
