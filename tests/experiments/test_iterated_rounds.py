"""Rounds one after the other, by hand."""

import pandas as pd
from rlhf_lab_experiments.iterated.rounds import one_after_the_other


def test_steps_go_on_from_round_to_round():
    """Two steps, then three; the start of the second round is the end of the first. A run of one round stays as it is."""
    parts = {("x", "rl_1"): [0, 1, 2], ("x", "rl"): [0, 3], ("y", "rl"): [0, 5], ("x", "sft"): [0, 9]}
    rows = [
        {"run_id": run, "stage": stage, "step": step, "kl": 10.0 * i}
        for (run, stage), steps in parts.items()
        for i, step in enumerate(steps)
    ]
    found = one_after_the_other(pd.DataFrame(rows))
    assert found[["run_id", "stage", "step", "kl"]].values.tolist() == [
        ["x", "rl", 0, 0.0],
        ["x", "rl", 1, 10.0],
        ["x", "rl", 2, 20.0],
        ["x", "rl", 5, 10.0],
        ["y", "rl", 0, 0.0],
        ["y", "rl", 5, 10.0],
    ]
