"""How a KL target is held, on runs whose KL is known at every step."""

import numpy as np
import pandas as pd
import pytest

from rlhf_lab_analysis.kl_tracking import settling_step, tracking


def test_a_run_has_settled_after_its_last_step_outside():
    kl = np.array([0.0, 4.0, 9.0, 4.5, 3.5, 4.0])
    assert settling_step(kl, 4.0, 0.25) == 3


def test_a_run_that_ends_outside_has_not_settled():
    assert np.isnan(settling_step(np.array([4.0, 4.0, 6.0]), 4.0, 0.25))


def test_the_second_half_counts():
    steps = np.arange(1, 9)
    kl = np.where(steps <= 4, 100.0, np.where(steps % 2, 3.0, 5.0))
    train = pd.DataFrame({"step": steps, "kl": kl, "split": "train", "reward_proxy": np.nan, "reward_gold": np.nan})
    held_out = pd.DataFrame({"step": [0, 4, 8], "kl": [0.0, 100.0, 5.0], "split": "validation", "reward_proxy": [0.0, 1, 2]})
    frame = pd.concat([train, held_out]).assign(run_id="r", arm="a", seed=0, stage="rl")
    row = tracking(frame, 4.0, window=1).iloc[0]
    assert row["held"] == pytest.approx(4) and row["error"] == pytest.approx(1)  # 3, 5, 3, 5 about 4
    assert row["highest"] == 100 and row["settled"] == 4 and row["proxy"] == 2
