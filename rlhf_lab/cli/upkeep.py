"""`export`, `gc` and `doctor`: what is kept of a sweep, and whether it is sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from rlhf_lab.cli.conventions import json_option, print_table, results_argument, speaks_plainly
from rlhf_lab.errors import SpecError, SweepBusy
from rlhf_lab.terminal import json_text, one_line, printable


@click.command(
    epilog="""\b
Examples:
  rlhf-lab export quickstart --out archive
  rlhf-lab export quickstart --out archive --format csv"""
)
@results_argument
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the files.")
@click.option(
    "--format", "formats", type=click.Choice(["csv", "parquet"]), multiple=True, help="Only this one; can be given twice."
)
@json_option
@speaks_plainly
def export(results: str, out: Path, formats: tuple[str, ...], as_json: bool) -> int:
    """Write the tables of a sweep for an archive: CSV and parquet, spec, plan and checksums.

    The tables are put together from the finished stages at this moment, also while the sweep runs. In CSV a text that a
    spreadsheet would take for a formula begins with an apostrophe; parquet is without loss.
    """
    from rlhf_lab.results.export import export as write
    from rlhf_lab.results.folder import find_results
    from rlhf_lab.results.tables import tables

    folder = find_results(results)
    made = tables(folder)
    files = write(folder, made, out, formats or ("csv", "parquet"))
    if as_json:
        click.echo(json_text({"files": [str(file) for file in files], "rows": {name: len(t) for name, t in made.items()}}))
    else:
        for file in files:
            click.echo(printable(file))
    return 0


@click.command(
    epilog="""\b
Examples:
  rlhf-lab gc quickstart
  rlhf-lab gc quickstart --unplanned --delete"""
)
@results_argument
@click.option("--delete", is_flag=True, help="Remove them. Without it they are only listed.")
@click.option("--unplanned", is_flag=True, help="Also runs that the plan no longer lists, and the stages that only they need.")
@json_option
@speaks_plainly
def gc(results: str, delete: bool, unplanned: bool, as_json: bool) -> int:
    """List the stages that no run needs, with their size; with --delete, remove them."""
    from rlhf_lab.results.folder import drivers, find_results
    from rlhf_lab.results.garbage import garbage, remove

    folder = find_results(results)
    if delete and (owners := drivers(folder)):
        raise SweepBusy(f"{owners[0]} is working on {folder}; wait for it, or stop it with rlhf-lab cancel")
    found = garbage(folder, unplanned)
    removed = [one for one in found if remove(one)] if delete else []
    total = sum(one.bytes for one in (removed if delete else found))
    if as_json:
        rows = [{"path": str(one.path), "bytes": one.bytes, "why": one.why} for one in found]
        click.echo(json_text({"garbage": rows, "deleted": delete, "bytes": total}))
        return 0
    if found:
        print_table(["path", "size", "why"], [[one_line(one.path), amount(one.bytes), one.why] for one in found])
    done = f"{len(removed)} removed, {amount(total)} freed" if delete else f"{len(found)} found, {amount(total)}"
    click.echo(done + ("; remove them with --delete" if found and not delete else ""))
    return 0


def amount(n_bytes: float) -> str:
    """`999 B`, `1.5 MiB`."""
    power = next(power for power in range(5) if n_bytes < 1024 ** (power + 1) or power == 4)
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{n_bytes / 1024**power:.{1 if power else 0}f} {unit}"


@click.command(
    epilog="""\b
Examples:
  rlhf-lab doctor
  rlhf-lab doctor quickstart
  rlhf-lab doctor quickstart --rebuild"""
)
@click.argument("results", required=False)
@click.option("--rebuild", is_flag=True, help="Put the tables together anew from the files of the finished stages.")
@json_option
@speaks_plainly
def doctor(results: str | None, rebuild: bool, as_json: bool) -> int:
    """Look for what is wrong: with plugins, threads and variables, and, with RESULTS, with every file of a results folder.

    Exit code 1 if something is broken; what is merely odd is said and counts as 0.
    """
    from rlhf_lab.results.doctor import BAD, examine, setup
    from rlhf_lab.results.folder import drivers, find_results

    if rebuild and not results:
        raise SpecError("--rebuild needs a results folder: rlhf-lab doctor RESULTS --rebuild")
    folder = find_results(results) if results else None
    if rebuild:
        if owners := drivers(folder):
            raise SweepBusy(f"{owners[0]} is working on {folder}, and writes the tables when it ends")
        from rlhf_lab.results.tables import compact

        compact(folder)
    findings = [*setup(known_variables()), *(examine(folder) if folder else ())]
    if as_json:
        click.echo(json_text({"findings": [finding._asdict() for finding in findings]}))
    else:
        for finding in findings:
            advice = f"\n     → {finding.advice}" if finding.advice else ""
            click.echo(printable(f"{finding.level:<4} {finding.what}{advice}"))
    return 1 if any(finding.level == BAD for finding in findings) else 0


def known_variables() -> Iterator[str]:
    """Names of environment variables that mean something: our own, and one for each option that may be given so."""
    from rlhf_lab.cli.conventions import VARIABLES

    yield from VARIABLES
    yield from option_variables(click.get_current_context().find_root().command, "RLHF_LAB")


def option_variables(command: Any, prefix: str) -> Iterator[str]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from option_variables(inner, f"{prefix}_{name.upper().replace('-', '_')}")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.allow_from_autoenv:
            yield f"{prefix}_{parameter.name.upper()}"
