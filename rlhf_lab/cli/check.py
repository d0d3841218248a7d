"""`check estimators` and `check results`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rlhf_lab.cli.conventions import EXISTING, json_option, plugin_option, speaks_plainly


@click.group()
def check() -> None:
    """Prove things: the numbers of an experiment, the bias of the estimators."""


@check.command(
    "estimators",
    epilog="""\b
Example:
  rlhf-lab check estimators --plugin my_advantage.py""",
)
@plugin_option
@json_option
@speaks_plainly
def check_estimators(plugin_files: tuple[Path, ...], as_json: bool) -> int:
    """Bias and variance of the policy gradient of every advantage estimator × KL estimator × placement.

    Exact, by enumeration of a small world, against the gradient of E[reward] − β·KL.
    """
    from rlhf_lab.proof.estimators import estimator_table, markdown
    from rlhf_lab.registry import discover

    table = estimator_table(discover([file.resolve() for file in plugin_files]))
    click.echo(table.to_json(orient="records") if as_json else markdown(table))
    return 0


@check.command(
    "results",
    epilog="""\b
Example:
  rlhf-lab check results results/quickstart experiments/quickstart/expected.json""",
)
@click.argument("results", type=EXISTING)
@click.argument("expected", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@speaks_plainly
def check_results(results: Path, expected: Path, as_json: bool) -> int:
    """Hold the tables of a sweep against an expected.json: exit code 1 where a number is outside its bounds."""
    from rlhf_lab.results.tables import load
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
