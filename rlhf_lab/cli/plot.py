"""`plot frontier` and `plot curves`."""

from __future__ import annotations

from pathlib import Path

import click

from rlhf_lab.cli.conventions import EXISTING, speaks_plainly


@click.group()
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
