"""What a spec gets only if the person at the command line says so, for specs come from others, with weights and data.

    --allow-host HOST[:PORT]             a reward may send prompts and responses there
    --allow-path PATH                    a file outside the folder of the spec may be read
    --trust-remote-code NAME@COMMIT      Python code that comes with these weights may run

A component that wants one has `asks(spec_folder)`, which returns pairs of an option and its value. A relative path is
meant from the spec's folder; any path, absolute ones included, that leads out of that folder once links are followed has
to be allowed. A path that was typed as an override is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lab.declaration.stage_graph import components
from rlhf_lab.errors import SpecError

Consent = frozenset[tuple[str, str]]
NONE: Consent = frozenset()
HOST, PATH, CODE = "--allow-host", "--allow-path", "--trust-remote-code"
WISHES = {
    HOST: "wants to send prompts and responses to {}",
    PATH: "wants to read {}, which lies outside the folder of the spec",
    CODE: "wants to run the Python code that comes with {}",
}


def outside(spec_folder: Path | str, *names: str | Path | None) -> list[tuple[str, str]]:
    """What to ask for: those of the paths that leave the folder of the spec."""
    folder = Path(spec_folder).resolve()
    try:
        paths = [(folder / name).resolve() for name in names if name is not None]
    except ValueError:  # a NUL in it
        raise SpecError(f"{', '.join(map(repr, names))} is no path") from None
    return [(PATH, str(path)) for path in paths if not path.is_relative_to(folder)]


def is_given(wish: tuple[str, str], consent: Consent) -> bool:
    """A path is allowed with the folder that it is in."""
    option, value = wish
    return wish in consent or (
        option == PATH and any(Path(value).is_relative_to(allowed) for given, allowed in consent if given == PATH)
    )


def require(configs: Iterable[Any], spec_folder: Path, consent: Consent) -> None:
    """Raises SpecError for the first wish of these runs' components that nobody allowed. Reads nothing, runs nothing."""
    roots = (root for config in configs for root in (config.data, config.model, config.template, *config.stages.values()))
    for root in {id(root): root for root in roots}.values():
        for component in components(root):
            for option, value in component.asks(spec_folder) if hasattr(component, "asks") else ():
                if not is_given((option, value), consent):
                    raise SpecError(
                        f"{component.kind} {component.name!r} {WISHES[option].format(value)}; if you want that, "
                        f"add {option} {value} to the command"
                    )


def from_environment(environ: Mapping[str, str] = os.environ) -> Consent:
    """RLHF_LAB_ALLOW_HOSTS=a,b and RLHF_LAB_ALLOW_PATHS=/x:/y. There is none for code."""
    hosts = [(HOST, name.strip()) for name in environ.get("RLHF_LAB_ALLOW_HOSTS", "").split(",") if name.strip()]
    paths = [allowed_path(name) for name in environ.get("RLHF_LAB_ALLOW_PATHS", "").split(os.pathsep) if name.strip()]
    return frozenset(hosts + paths)


def allowed_path(name: str | Path) -> tuple[str, str]:
    return PATH, str(Path(name).resolve())


def typed_paths(values: Any, spec_folder: Path) -> Consent:
    """Texts inside the values of overrides, taken as paths: what a person typed, that person allows."""
    if isinstance(values, str):
        return frozenset(outside(spec_folder, values)) if values and "\0" not in values else NONE
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple) else ()
    return frozenset().union(*(typed_paths(part, spec_folder) for part in parts))


def checked(option: str, values: Iterable[str]) -> list[tuple[str, str]]:
    """What an option was given, in the form that components ask for. Raises SpecError."""
    if option == PATH:
        return [allowed_path(value) for value in values]
    if option == CODE:
        for value in values:
            name, _, commit = value.rpartition("@")
            if not name or len(commit) != 40 or set(commit) - set("0123456789abcdef"):
                raise SpecError(f"--trust-remote-code takes NAME@COMMIT with all 40 digits of the commit, not {value!r}")
    return [(option, value) for value in values]
