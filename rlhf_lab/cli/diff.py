"""`diff`: which settings of two experiments differ, and what each changes in the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rlhf_lab.cli.conventions import json_option, plugin_option, print_table, speaks_plainly, spec_path
from rlhf_lab.errors import SpecError


@click.command(
    epilog="""\b
Examples:
  rlhf-lab diff trl openrlhf
  rlhf-lab diff instructgpt my_spec.yaml
  rlhf-lab diff results/monday results/tuesday/runs/0123456789abcdef"""
)
@click.argument("a")
@click.argument("b")
@plugin_option
@json_option
@speaks_plainly
def diff(a: str, b: str, plugin_files: tuple[Path, ...], as_json: bool) -> int:
    """Show which fields of A and B differ, and in one sentence what each changes in the numbers.

    A and B are specs, presets, folders of finished sweeps, or folders of finished runs. Of a preset, only what it says is
    compared. Exit code 0 if nothing differs, 1 if something does, 2 if A or B cannot be read.
    """
    from rlhf_lab.declaration.difference import difference
    from rlhf_lab.registry import discover

    registry = discover([file.resolve() for file in plugin_files])
    one, other = (experiment(name, registry) for name in (a, b))
    found = difference(one, other, registry)
    if as_json:
        rows = [{"field": d.field, "a": list(d.a), "b": list(d.b), "sentence": d.sentence} for d in found]
        click.echo(json.dumps({"a": one.label, "b": other.label, "equal": not found, "differences": rows}, ensure_ascii=False))
    elif found:
        header = ["field", one.label, other.label, "what it changes"]
        print_table(header, [[d.field, cell(one, d.field, d.a), cell(other, d.field, d.b), d.sentence] for d in found])
    else:
        click.echo(f"{one.label} and {other.label} do not differ")
    return 1 if found else 0


def cell(side: Any, field: str, values: Sequence[Any]) -> str:
    """The values of a field; of a preset that leaves it open, the laboratory's default is told as such."""
    from rlhf_lab.declaration.difference import is_said, shown

    left_open = side.said and values and not is_said(field, side.said)
    return shown(values) + " (default)" * bool(left_open)


def experiment(name: str, registry: Any) -> Any:
    """What a name on the command line stands for: a folder of results or of a run, a spec, a preset, a shipped experiment."""
    path = Path(name)
    if (path / "plan.json").is_file():
        return of_results(name, path, None)
    if (path / "run.json").is_file():
        return of_results(name, path.resolve().parents[1], path.resolve().name)
    if not path.exists() and name in registry.names("preset"):
        return of_preset(name, registry)
    if not path.exists() and not path.suffix:
        return of_spec(name, known(path, registry), registry)
    return of_spec(name, spec_path(path), registry)


def known(path: Path, registry: Any) -> Path:
    """The shipped experiment of that name; an error that knows presets as well, where there is none."""
    from rlhf_lab.declaration.yaml_lines import suggest

    try:
        return spec_path(path)
    except SpecError:
        presets = registry.names("preset")
        hint = suggest(str(path), presets) or f"; presets are {', '.join(presets)}"
        raise SpecError(f"there is no file or folder {path}, and no preset or experiment of that name{hint}") from None


def of_results(label: str, results: Path, run_id: str | None) -> Any:
    """All runs of a sweep, or one of them, as they were resolved when they ran."""
    from rlhf_lab.declaration.difference import Experiment
    from rlhf_lab.store.files import read_json

    try:
        resolved = read_json(results / "plan.json")["resolved"]
        chosen = resolved if run_id is None else {run_id: resolved[run_id]}
        seeds = [read_json(results / "runs" / one / "run.json")["seed"] for one in chosen]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{label} is no folder of results that can be read: {type(error).__name__}: {error}") from None
    return Experiment(label, list(chosen.values()), distinct(seeds))


def of_spec(label: str, path: Path, registry: Any) -> Any:
    from rlhf_lab.declaration.difference import Experiment
    from rlhf_lab.declaration.sweep import load_sweep

    points = load_sweep(path, [], registry).points
    configs = {id(point.config): point.config.model_dump(mode="json") for point in points}
    return Experiment(label, list(configs.values()), distinct([point.seed for point in points]))


def of_preset(name: str, registry: Any) -> Any:
    """The stages that a preset speaks of, what it leaves open filled with defaults."""
    from rlhf_lab.declaration.difference import Experiment
    from rlhf_lab.declaration.run_config import with_stage_name
    from rlhf_lab.declaration.sweep import preset_values

    preset = registry.get("preset", name).component
    raw = preset_values(preset)
    stages = {key: registry.choose("stage", with_stage_name(key, value), {"registry": registry}) for key, value in raw.items()}
    config = {key: stage.model_dump(mode="json") for key, stage in stages.items()}
    return Experiment(f"preset {name}", [config], said=frozenset(preset.values))


def distinct(items: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(items))
