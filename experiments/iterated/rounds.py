"""KL, proxy and gold over all rounds of a run, one after the other: steps are counted from the start of the first round.

python experiments/iterated/rounds.py RESULTS [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rlhf_lab import load
from rlhf_lab.errors import in_one_sentence
from rlhf_lab_analysis.curves import curves
from rlhf_lab_analysis.style import save


def one_after_the_other(steps: pd.DataFrame) -> pd.DataFrame:
    """The rounds rl_1, rl_2, …, rl of each run as one stage `rl`; where two meet, the row is that of the end of the earlier."""
    rounds = steps[steps["stage"].str.fullmatch(r"rl(_\d+)?")]
    order = pd.to_numeric(rounds["stage"].str.removeprefix("rl_"), errors="coerce").fillna(float("inf"))  # the last: no number
    rounds = rounds.assign(order=order)
    long = rounds.groupby(["run_id", "order"])["step"].max().groupby("run_id").cumsum()
    before = long.groupby("run_id").shift(fill_value=0).rename("before").reset_index()
    rounds = rounds.merge(before, on=["run_id", "order"], how="left")
    rounds = rounds[(rounds["step"] > 0) | (rounds["before"] == 0)]
    return rounds.assign(step=rounds["step"] + rounds["before"], stage="rl").drop(columns=["before", "order"])


@in_one_sentence
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    columns = ["kl", "reward_proxy", "reward_gold", "response_length"]
    figure = curves(one_after_the_other(load(options.results)), columns, hue="arm", width=5.5)
    print(*save(figure, options.out or options.results / "figures", "rounds"), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
