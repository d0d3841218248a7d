"""What every command shares: options, a table, and one sentence for what went wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from rlhf_lab.errors import LabError, SpecError

EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)


def speaks_plainly(command: Callable[..., int | None]) -> Callable[..., None]:
    """Errors meant for the user become one sentence (and with --json an object) and an exit code."""

    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            code = command(*args, **options)
        except LabError as error:
            if options.get("as_json"):
                click.echo(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}))
            click.echo(str(error), err=True)
            code = error.exit_code
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on from the stages that are finished", err=True)
            code = 130
        sys.exit(code or 0)

    return wrapped


def plugin_option(command: Any) -> Any:
    return click.option(
        "--plugin",
        "plugin_files",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE.py",
        help="Load a plugin file. Can be given several times.",
    )(command)


def spec_arguments(command: Any) -> Any:
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("spec", type=click.Path(path_type=Path))(command)


def json_option(command: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")(command)


def spec_path(spec: Path) -> Path:
    """The spec file, or the one of that name that ships with the package."""
    from rlhf_lab.yaml_lines import suggest

    shipped = Path(str(files("rlhf_lab_experiments"))) / spec / "spec.yaml"
    if not spec.exists() and shipped.is_file():
        return shipped
    if not spec.exists() and not spec.suffix:
        there = sorted(path.parent.name for path in shipped.parents[1].glob("*/spec.yaml"))
        hint = suggest(str(spec), there) or f"; the experiments that ship with the package are {', '.join(there)}"
        raise SpecError(f"there is no file {spec}, and no experiment of that name{hint}")
    return spec / "spec.yaml" if spec.is_dir() and (spec / "spec.yaml").is_file() else spec


def planned(spec: Path, overrides: Sequence[str], plugin_files: Sequence[Path]) -> tuple[Any, Any, Path]:
    from rlhf_lab.overrides import parse_override
    from rlhf_lab.plan import plan_sweep
    from rlhf_lab.registry import discover
    from rlhf_lab.spec import load_sweep

    path = spec_path(spec)
    for file in plugin_files:
        if not file.is_file():
            raise SpecError(f"--plugin {file}: there is no such file")
    registry = discover([file.resolve() for file in plugin_files])
    sweep = load_sweep(path, [parse_override(text) for text in overrides], registry)
    return sweep, plan_sweep(sweep, registry), path


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A table as wide as the terminal; where output is no terminal, tab-separated lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not sys.stdout.isatty():
        for row in [header, *rows]:
            click.echo("\t".join(row))
        return
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
