"""The command line. Exit codes: 0 all done · 1 some runs failed, or data, a model or a file cannot be read · 2 the spec or
the command line is wrong · 3 a plugin failed to load · 5 there is nothing to do it to · 75 stopped early, the same command
goes on (full disk, preemption) · 130 interrupted · 143 terminated.
"""

from __future__ import annotations

import click

from rlhf_lab.cli.again import cancel, reproduce, retry
from rlhf_lab.cli.check import check
from rlhf_lab.cli.diff import diff
from rlhf_lab.cli.look import ls, show, status
from rlhf_lab.cli.plan import config, plan
from rlhf_lab.cli.plot import plot
from rlhf_lab.cli.plugins import plugins
from rlhf_lab.cli.run import run
from rlhf_lab.cli.upkeep import doctor, export, gc

SETTINGS = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "RLHF_LAB"}


@click.group(context_settings=SETTINGS, epilog="Start with: rlhf-lab run quickstart")
@click.version_option(package_name="rlhf-lab")
def main() -> None:
    """The laboratory for classic RLHF: one spec, SFT → reward model → PPO, tidy tables, reward-vs-KL figures."""


COMMANDS = (run, plan, config, diff, status, ls, show, cancel, retry, reproduce, plot, check, export, gc, doctor, plugins)
for command in COMMANDS:
    main.add_command(command)
