"""What every command shares: options, a table, and one sentence for what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import click

from rlhf_lab.errors import LabError, SpecError
from rlhf_lab.terminal import json_text, one_line, printable

HOST, PATH, CODE = "--allow-host", "--allow-path", "--trust-remote-code"
EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)
VARIABLES = {
    "RLHF_LAB_RUNS_DIR": "where results folders are (default ./results)",
    "RLHF_LAB_LOAD_PLUGINS": "installed plugins to load: unset all, empty only the built-in ones, `a,b` those two",
    "RLHF_LAB_ALLOW_HOSTS": "hosts that a reward may ask, `a,b:8443`, as --allow-host",
    "RLHF_LAB_ALLOW_PATHS": "files and folders outside the spec's folder that may be read, `/a:/b`, as --allow-path",
    "RLHF_LAB_KEY_…": "keys of reward servers, each named by a reward's `key_variable`",
    "RLHF_LAB_RAISE_ERRORS": "set: an error ends in a traceback instead of one sentence",
    "RLHF_LAB_LOG_LEVEL": "what goes into a run's log.txt: DEBUG, INFO, WARNING (default) or ERROR",
    "RLHF_LAB_FAULT": "a fault on purpose, for tests (rlhf_lab/store/faults.py)",
    "NO_COLOR": "set: no colours",
}
"""Environment variables that mean something; besides them every option can be given as RLHF_LAB_COMMAND_OPTION."""


def speaks_plainly(command: Callable[..., int | None]) -> Callable[..., None]:
    """Errors meant for the user become one sentence (and with --json an object) and an exit code."""

    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            code = command(*args, **options)
        except LabError as error:
            code = said(type(error).__name__, str(error), error, error.exit_code, options)
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.filename is None:
                raise
            code = said("OSError", f"{error.filename}: {error.strerror}", error, 1, options)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on from the stages that are finished", err=True)
            code = 130
        sys.exit(code or 0)

    return wrapped


def said(kind: str, message: str, error: Exception, code: int, options: Mapping[str, Any]) -> int:
    """Prints an error, as an object too if --json asks for it; raises it if RLHF_LAB_RAISE_ERRORS does."""
    if os.environ.get("RLHF_LAB_RAISE_ERRORS"):
        raise error
    if options.get("as_json"):
        click.echo(json_text({"error": {"kind": kind, "message": message}}))
    click.echo(printable(message), err=True)
    return code


def results_argument(command: Any) -> Any:
    return click.argument("results", metavar="RESULTS")(command)


def results_option(command: Any) -> Any:
    return click.option("--results", help="Results folder or experiment to look in (default: all under RLHF_LAB_RUNS_DIR).")(
        command
    )


def consent_options(command: Any) -> Any:
    """--allow-host, --allow-path and --trust-remote-code; what they were given is in `given_consent()`."""
    texts = {
        CODE: ("NAME@COMMIT", "Let the Python code that comes with these weights run. Can be given several times."),
        PATH: ("PATH", "Let the spec read this file or folder, outside its own folder (RLHF_LAB_ALLOW_PATHS)."),
        HOST: ("HOST[:PORT]", "Let a reward send prompts and responses to this host (RLHF_LAB_ALLOW_HOSTS)."),
    }
    for option, (metavar, help_text) in texts.items():
        command = click.option(
            option,
            multiple=True,
            metavar=metavar,
            help=help_text,
            expose_value=False,
            allow_from_autoenv=False,
            callback=partial(remember, option),
        )(command)
    return command


def remember(option: str, ctx: click.Context, parameter: Any, values: tuple[str, ...]) -> None:
    ctx.meta.setdefault("rlhf_lab.declaration.consent", []).extend((option, value) for value in values)


def given_consent() -> Any:
    """What the person allows by options and by the environment. Raises SpecError."""
    from rlhf_lab.declaration.consent import checked, from_environment

    options = click.get_current_context().meta.get("rlhf_lab.declaration.consent", [])
    return from_environment() | {pair for option, value in options for pair in checked(option, [value])}


def plugin_option(command: Any) -> Any:
    return click.option(
        "--plugin",
        "plugin_files",
        multiple=True,
        type=click.Path(path_type=Path),
        allow_from_autoenv=False,
        metavar="FILE.py",
        help="Load a plugin file. Can be given several times.",
    )(command)


def spec_arguments(command: Any) -> Any:
    command = consent_options(command)
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("spec", type=click.Path(path_type=Path))(command)


def json_option(command: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")(command)


def spec_path(spec: Path) -> Path:
    """The spec file, or the one of that name that ships with the package."""
    from rlhf_lab.declaration.yaml_lines import suggest

    shipped = Path(str(files("rlhf_lab_experiments"))) / spec / "spec.yaml"
    if not spec.exists() and shipped.is_file():
        return shipped
    if not spec.exists() and not spec.suffix:
        there = sorted(path.parent.name for path in shipped.parents[1].glob("*/spec.yaml"))
        hint = suggest(str(spec), there) or f"; the experiments that ship with the package are {', '.join(there)}"
        raise SpecError(f"there is no file {spec}, and no experiment of that name{hint}")
    return spec / "spec.yaml" if spec.is_dir() and (spec / "spec.yaml").is_file() else spec


class Planned(NamedTuple):
    """What a spec and the command line come to."""

    sweep: Any
    plan: Any
    path: Path


def planned(spec: Path, overrides: Sequence[str], plugin_files: Sequence[Path]) -> Planned:
    from rlhf_lab.declaration.overrides import parse_override
    from rlhf_lab.declaration.sweep import load_sweep
    from rlhf_lab.registry import discover
    from rlhf_lab.running.plan import plan_sweep

    path = spec_path(spec)
    for file in plugin_files:
        if not file.is_file():
            raise SpecError(f"--plugin {file}: there is no such file")
    registry = discover([file.resolve() for file in plugin_files])
    sweep = load_sweep(path, [parse_override(text) for text in overrides], registry)
    sweep = with_consent(sweep, overrides)
    return Planned(sweep, plan_sweep(sweep, registry), path)


def with_consent(sweep: Any, overrides: Sequence[str]) -> Any:
    """The sweep with what the person allows it, who by typing a path allows that. Raises SpecError where that is too little."""
    from dataclasses import replace

    from rlhf_lab.declaration.consent import require, typed_paths
    from rlhf_lab.declaration.overrides import parse_override

    typed = [typed_paths(list(parse_override(text).values), sweep.folder) for text in overrides]
    consent = given_consent().union(*typed)
    require((point.config for point in sweep.points), sweep.folder, consent)
    return replace(sweep, consent=consent)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A table as wide as the terminal; where output is no terminal, tab-separated lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not sys.stdout.isatty():
        for row in [header, *rows]:
            click.echo("\t".join(map(one_line, row)))
        return
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    Console().print(table)
