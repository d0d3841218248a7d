"""`plugins list`, `show`, `new`, `check` and `docs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rlhf_lab.cli.conventions import json_option, plugin_option, print_table, speaks_plainly
from rlhf_lab.errors import SpecError


@click.group()
def plugins() -> None:
    """The components that a spec can name, and where they come from."""


@plugins.command(
    "list",
    epilog="""\b
Example:
  rlhf-lab plugins list --plugin my_pid.py""",
)
@plugin_option
@json_option
@speaks_plainly
def plugins_list(plugin_files: tuple[Path, ...], as_json: bool) -> int:
    """List every component, and every plugin that could not be loaded with its reason."""
    from rlhf_lab.registry import discover

    registry = discover([file.resolve() for file in plugin_files])
    rows = [
        {"kind": r.kind, "name": r.name, "from": f"{r.distribution} {r.version}", "doc": summary(r.component)}
        for r in registry.registrations()
    ]
    broken = [{"plugin": b.plugin, "from": b.distribution, "reason": b.reason} for b in registry.broken]
    if as_json:
        click.echo(json.dumps({"components": rows, "broken": broken}))
        return 0
    print_table(["kind", "name", "from", "what it is"], [list(row.values()) for row in rows])
    for row in broken:
        click.echo(f"broken: {row['plugin']} ({row['from']}): {row['reason']}", err=True)
    return 0


@plugins.command(
    "show",
    epilog="""\b
Example:
  rlhf-lab plugins show kl_controller adaptive""",
)
@click.argument("kind")
@click.argument("name")
@plugin_option
@json_option
@speaks_plainly
def plugins_show(kind: str, name: str, plugin_files: tuple[Path, ...], as_json: bool) -> int:
    """Show a component: what it computes, and its parameters with type, default, range, unit and source."""
    from rlhf_lab.contracts import KINDS, Preset
    from rlhf_lab.declaration.yaml_lines import suggest
    from rlhf_lab.registry import discover

    if kind not in KINDS:
        raise SpecError(f"unknown kind {kind!r}{suggest(kind, KINDS)}; there are {', '.join(KINDS)}")
    registry = discover([file.resolve() for file in plugin_files])
    try:
        registration = registry.get(kind, name)
    except ValueError as error:
        raise SpecError(str(error)) from None
    component = registration.component
    if isinstance(component, Preset):
        header, rows = (
            ["key", "value", "source"],
            [[key, json.dumps(value), source] for key, (value, source) in component.values.items()],
        )
    else:
        header = ["parameter", "type", "default", "range", "unit", "what it is", "source"]
        rows = [parameter_row(key, info) for key, info in component.model_fields.items()]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "kind": kind,
                    "name": name,
                    "doc": full_doc(component),
                    "parameters": [dict(zip(header, row, strict=True)) for row in rows],
                }
            )
        )
        return 0
    click.echo(f"{kind} {name}, from {registration.distribution} {registration.version} ({registration.origin})\n")
    click.echo(full_doc(component) + "\n")
    print_table(header, rows)
    return 0


@plugins.command(
    "new",
    epilog="""\b
Example:
  rlhf-lab plugins new kl_controller my_pid --file""",
)
@click.argument("kind")
@click.argument("name")
@click.option("--file", "one_file", is_flag=True, help="One file, to be named by --plugin, instead of a package.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Where to write it (default: here)."
)
@speaks_plainly
def plugins_new(kind: str, name: str, one_file: bool, out: Path) -> int:
    """Write a component to start from: it runs as it is, and says what to fill in."""
    from rlhf_lab.cli.new_plugin import checked, write_new
    from rlhf_lab.registry import discover

    checked(kind, name, discover())
    written = write_new(kind, name, out, one_file=one_file)
    for path in written:
        click.echo(path)
    there = written[0] if one_file else written[0].parent
    click.echo(f"next: rlhf-lab plugins check {there}", err=True)
    return 0


@plugins.command(
    "check",
    epilog="""\b
Example:
  rlhf-lab plugins check my_pid.py""",
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@json_option
@speaks_plainly
def plugins_check(path: Path, as_json: bool) -> int:
    """Hold the components of a plugin file, or of a package in a folder, against the laws of their kinds.

    Exit code 1 where a law is broken, 3 where the plugin cannot be loaded.
    """
    from rlhf_lab.cli.check_plugin import lines, report

    found = report(path)
    click.echo(json.dumps(found) if as_json else "\n".join(lines(found)))
    return 0 if all(verdict["holds"] for verdict in found) else 1


@plugins.command(
    "docs",
    epilog="""\b
Example:
  rlhf-lab plugins docs --out docs""",
)
@click.option(
    "--out",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder for README.md, LAWS.md and ESTIMATORS.md.",
)
@plugin_option
@speaks_plainly
def plugins_docs(out: Path | None, plugin_files: tuple[Path, ...]) -> int:
    """Print the table of all built-in components, or write it, the laws and the table of the estimators into a folder."""
    from rlhf_lab.cli.plugin_table import page, write_pages
    from rlhf_lab.registry import discover

    registry = discover([file.resolve() for file in plugin_files], {"RLHF_LAB_LOAD_PLUGINS": ""})
    if out is None:
        click.echo(page(registry), nl=False)
    else:
        for path in write_pages(registry, out):
            click.echo(path)
    return 0


def full_doc(component: Any) -> str:
    import inspect

    return inspect.cleandoc(
        (component.doc if hasattr(component, "doc") and not isinstance(component, type) else component.__doc__) or ""
    )


def summary(component: Any) -> str:
    return full_doc(component).split("\n\n")[0].replace("\n", " ")


def parameter_row(key: str, info: Any) -> list[str]:
    """One row of `plugins show`."""
    from rlhf_lab.declaration.sweep import slot_kind

    kind, extra = slot_kind(info), info.json_schema_extra or {}
    shown = f"a {kind}" if kind else str(info.annotation).replace("typing.", "").replace("<class '", "").replace("'>", "")
    bounds = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "max_length": "length ≤"}
    limits = [
        f"{sign} {getattr(m, name)}"
        for m in info.metadata
        for name, sign in bounds.items()
        if getattr(m, name, None) is not None
    ]
    default = "required" if info.is_required() else repr(info.default)
    return [
        key,
        shown.rsplit(".", 1)[-1] if "Literal" not in shown else shown,
        default,
        ", ".join(limits),
        extra.get("unit", ""),
        info.description or "",
        extra.get("source", ""),
    ]
