"""The command line. Exit codes: 0 all done · 1 some runs failed, or data or a model cannot be read · 2 the spec or the
command line is wrong · 3 a plugin failed to load · 130 interrupted · 143 terminated.
"""

from __future__ import annotations

import click

from rlhf_lab.cli.check import check
from rlhf_lab.cli.diff import diff
from rlhf_lab.cli.plot import plot
from rlhf_lab.cli.plugins import plugins
from rlhf_lab.cli.run import config, plan, run


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Start with: rlhf-lab run quickstart")
@click.version_option(package_name="rlhf-lab")
def main() -> None:
    """The laboratory for classic RLHF: one spec, SFT → reward model → PPO, tidy tables, reward-vs-KL figures."""


for command in (run, plan, config, diff, plugins, check, plot):
    main.add_command(command)
