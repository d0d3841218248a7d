"""`plot frontier`, `plot endpoints`, `plot curves`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from rlhf_lab.cli.conventions import EXISTING, speaks_plainly


@click.group()
def plot() -> None:
    """Draw figures from the tables of a sweep."""


def figure_command(name: str, module: str, help_text: str, *own: Any) -> None:
    @click.argument("results", type=EXISTING)
    @click.option(
        "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the files (default RESULTS/figures)."
    )
    @click.option("--hue", multiple=True, metavar="COLUMN", help="Colour by this column (default: what varies).")
    @click.option("--stage", default="rl", show_default=True, help="The stage to draw.")
    @click.option("--width", type=click.FloatRange(min=1), help="Width in inches (under 4.5: stacked panels).")
    @speaks_plainly
    def command(results: Path, out: Path | None, **options: Any) -> int:
        options["hue"] = list(options["hue"]) or None
        for path in importlib.import_module(module).draw(results, out, **{k: v for k, v in options.items() if v is not None}):
            click.echo(path)
        return 0

    for option in own:
        command = option(command)
    epilog = f"\b\nExample:\n  rlhf-lab plot {name} results/quickstart --width 6.5"
    plot.command(name, help=help_text, epilog=epilog)(command)


X = click.option("--x", type=click.Choice(["sqrt_kl", "kl"]), default="sqrt_kl", show_default=True, help="Horizontal axis.")
UNIT = click.option("--unit", default="score", show_default=True, help="Unit of the rewards, for the labels.")
figure_command(
    "frontier", "rlhf_lab_analysis.reward_vs_kl", "Proxy and gold reward against KL, with best-of-n from SFT.", X, UNIT
)
figure_command("endpoints", "rlhf_lab_analysis.endpoints", "Where each run ended: proxy and gold against KL.", X, UNIT)
figure_command("curves", "rlhf_lab_analysis.curves", "KL, rewards, entropy, length and β over the steps.")
