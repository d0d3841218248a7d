"""The command line. Exit codes: 0 all done · 1 some runs failed, or data or a model cannot be read · 2 the spec or the
command line is wrong · 3 a plugin failed to load · 130 interrupted · 143 terminated.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Start with: rlhf-lab run quickstart")
@click.version_option(package_name="rlhf-lab")
def main() -> None:
    """The laboratory for classic RLHF: one spec, SFT → reward model → PPO, tidy tables, reward-vs-KL figures."""


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


@main.command(
    epilog="""\b
Examples:
  rlhf-lab run quickstart
  rlhf-lab run experiments/quickstart/spec.yaml rl.kl.beta=0.05 seeds=0,1,2,3,4
  rlhf-lab run kl.yaml --plugin my_controller.py rl.kl=my_controller"""
)
@spec_arguments
@plugin_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for results (default ./results, or RLHF_LAB_RUNS_DIR).",
)
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--dry-run", is_flag=True, help="Only print what would run.")
@json_option
@speaks_plainly
def run(
    spec: Path,
    overrides: tuple[str, ...],
    plugin_files: tuple[Path, ...],
    out: Path | None,
    quiet: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Run a sweep. The same command resumes it, extends it, or does nothing.

    SPEC is a spec file, or the name of an experiment that ships with the package.
    """
    from rlhf_lab.runner import is_finished, results_folder, run_sweep

    sweep, plan, path = planned(spec, overrides, plugin_files)
    results = results_folder(sweep.file.experiment, out)
    if dry_run:
        return show_plan(plan, results, as_json)
    reused = sum(is_finished(results, run) for run in plan.runs)
    with listener(plan, reused, quiet or as_json) as listen, until_terminated():
        outcome = run_sweep(
            sweep, plan, results, [file.resolve() for file in plugin_files], path.read_text(encoding="utf-8"), listen
        )
    report(outcome, as_json, quiet)
    return 1 if outcome.failed else 0


@contextlib.contextmanager
def until_terminated() -> Iterator[None]:
    """Inside, SIGTERM (a scheduler's way to stop a job) ends like Ctrl-C: workers stopped, tables written; exit code 143."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listener(plan: Any, reused: int, quiet: bool) -> Any:
    from rlhf_lab.progress import Bars, Lines

    if quiet:
        return contextlib.nullcontext(lambda run_id, event: None)
    return Bars(plan, reused) if sys.stderr.isatty() else Lines(plan, reused)


def report(outcome: Any, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(
            json.dumps(
                {"results": str(outcome.results), "done": outcome.done, "reused": outcome.reused, "failed": outcome.failed}
            )
        )
        return
    for run_id, error in outcome.failed.items():
        folder = outcome.results / "runs" / run_id
        traceback = folder / "traceback.txt"
        click.echo(f"{run_id} failed: {error}  ({traceback if traceback.is_file() else folder / 'log.txt'})", err=True)
    if not quiet:
        click.echo(
            f"{len(outcome.done)} runs done, {len(outcome.reused)} reused, {len(outcome.failed)} failed: {outcome.results}"
        )


@main.command()
@spec_arguments
@plugin_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for results.")
@json_option
@speaks_plainly
def plan(spec: Path, overrides: tuple[str, ...], plugin_files: tuple[Path, ...], out: Path | None, as_json: bool) -> int:
    """Show what a sweep consists of: runs, and the stages they share."""
    from rlhf_lab.runner import results_folder

    sweep, plan, _ = planned(spec, overrides, plugin_files)
    return show_plan(plan, results_folder(sweep.file.experiment, out), as_json)


def show_plan(plan: Any, results: Path, as_json: bool) -> int:
    from collections import Counter

    from rlhf_lab.progress import labels
    from rlhf_lab.runner import is_finished
    from rlhf_lab.store import is_committed

    stages = Counter(stage.name for stage in plan.stage_hashes.values())
    there = Counter(stage.name for stage in plan.stage_hashes.values() if is_committed(results / "stages" / stage.hash))
    finished = {run.run_id for run in plan.runs if is_finished(results, run)}
    if as_json:
        click.echo(
            json.dumps(
                {
                    "results": str(results),
                    "duplicates": plan.duplicates,
                    "stages": dict(stages),
                    "stages_done": dict(there),
                    "runs": [
                        {
                            "run_id": run.run_id,
                            "arm": run.arm,
                            "axes": dict(run.axes),
                            "seed": run.seed,
                            "done": run.run_id in finished,
                            "stages": {s.name: s.hash for s in run.stages},
                        }
                        for run in plan.runs
                    ],
                }
            )
        )
        return 0
    for run_id, label in labels(plan).items():
        click.echo(f"{run_id}  {'done   ' if run_id in finished else 'to run '}  {label}")
    click.echo(
        f"{len(plan.runs)} runs ({len(finished)} done, {plan.duplicates} duplicates dropped); stages: "
        + ", ".join(f"{count} {name}" + (f" ({there[name]} done)" if there[name] else "") for name, count in stages.items())
    )
    return 0


@main.command()
@spec_arguments
@plugin_option
@speaks_plainly
def config(spec: Path, overrides: tuple[str, ...], plugin_files: tuple[Path, ...]) -> int:
    """Print the resolved spec of each distinct run, defaults included."""
    from rlhf_lab.progress import labels

    _, plan, _ = planned(spec, overrides, plugin_files)
    names = labels(plan)
    click.echo(
        json.dumps({names[run.run_id]: run.config.model_dump(mode="json") for run in plan.runs}, indent=1, ensure_ascii=False)
    )
    return 0


@main.group()
def plugins() -> None:
    """The components that a spec can name, and where they come from."""


@plugins.command("list")
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


@plugins.command("show")
@click.argument("kind")
@click.argument("name")
@plugin_option
@json_option
@speaks_plainly
def plugins_show(kind: str, name: str, plugin_files: tuple[Path, ...], as_json: bool) -> int:
    """Show a component: what it computes, and its parameters with type, default, range, unit and source."""
    from rlhf_lab.contracts import KINDS, Preset
    from rlhf_lab.registry import discover
    from rlhf_lab.yaml_lines import suggest

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


def full_doc(component: Any) -> str:
    import inspect

    return inspect.cleandoc(
        (component.doc if hasattr(component, "doc") and not isinstance(component, type) else component.__doc__) or ""
    )


def summary(component: Any) -> str:
    return full_doc(component).split("\n\n")[0].replace("\n", " ")


def parameter_row(key: str, info: Any) -> list[str]:
    """One row of `plugins show`."""
    from rlhf_lab.spec import slot_kind

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


@main.group()
def check() -> None:
    """Prove things: the numbers of an experiment, the bias of the estimators."""


@check.command("estimators")
@plugin_option
@json_option
@speaks_plainly
def check_estimators(plugin_files: tuple[Path, ...], as_json: bool) -> int:
    """Bias and variance of the policy gradient of every advantage estimator × KL estimator × placement.

    Exact, by enumeration of a small world, against the gradient of E[reward] − β·KL.
    """
    from rlhf_lab.estimators import estimator_table, markdown
    from rlhf_lab.registry import discover

    table = estimator_table(discover([file.resolve() for file in plugin_files]))
    click.echo(table.to_json(orient="records") if as_json else markdown(table))
    return 0


@check.command("results")
@click.argument("results", type=EXISTING)
@click.argument("expected", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@speaks_plainly
def check_results(results: Path, expected: Path, as_json: bool) -> int:
    """Hold the tables of a sweep against an expected.json: exit code 1 where a number is outside its bounds."""
    from rlhf_lab.records import load
    from rlhf_lab_analysis.report import check_expected

    checks = check_expected(
        {"steps": load(results), "runs": load(results, "runs")}, json.loads(expected.read_text(encoding="utf-8"))
    )
    if as_json:
        click.echo(json.dumps([one._asdict() for one in checks]))
    else:
        for one in checks:
            click.echo(f"{'ok  ' if one.ok else 'FAIL'}  {one.text}")
    return 0 if all(one.ok for one in checks) else 1


@main.group()
def plot() -> None:
    """Draw figures from the tables of a sweep."""


def figure_command(name: str, module: str, help_text: str) -> None:
    @plot.command(name, help=help_text)
    @click.argument("results", type=EXISTING)
    @click.option(
        "--x", type=click.Choice(["sqrt_kl", "kl"]), default="sqrt_kl", show_default=True, help="Horizontal axis (frontier)."
    )
    @click.option(
        "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the files (default RESULTS/figures)."
    )
    @speaks_plainly
    def command(results: Path, x: str, out: Path | None) -> int:
        import importlib

        options = {"x": x} if name == "frontier" else {}
        for path in importlib.import_module(module).draw(results, out, **options):
            click.echo(path)
        return 0


figure_command("frontier", "rlhf_lab_analysis.reward_vs_kl", "Proxy and gold reward against KL, with best-of-n from SFT.")
figure_command("curves", "rlhf_lab_analysis.curves", "KL, rewards, entropy, length and β over the steps.")


if __name__ == "__main__":
    main()
