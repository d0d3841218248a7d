"""Rewards at equal KL, on runs whose values are known at every KL."""

import numpy as np
import pandas as pd
import pytest

from rlhf_lab_analysis.matched_kl import at_kl, dots, first_crossing


def run(seed, kl, proxy, arm="a"):
    kl = np.asarray(kl, dtype=float)
    return pd.DataFrame(
        {
            "run_id": f"{arm}{seed}",
            "arm": arm,
            "seed": seed,
            "stage": "rl",
            "split": "validation",
            "step": np.arange(len(kl)),
            "kl": kl,
            "reward_proxy": proxy,
            "reward_gold": np.nan,
        }
    )


def test_between_two_evaluations_the_reward_lies_on_their_line():
    assert first_crossing(run(0, [0, 1, 4], [0.0, 10.0, 40.0]), "reward_proxy", 2.5) == pytest.approx(25)


def test_the_first_time_counts_when_a_run_comes_back():
    assert first_crossing(run(0, [0, 3, 1, 3], [0.0, 3.0, 100.0, 300.0]), "reward_proxy", 2.0) == pytest.approx(2)


def test_a_run_that_never_gets_there_has_no_number():
    assert np.isnan(first_crossing(run(0, [0, 1], [0.0, 1.0]), "reward_proxy", 2.0))


def test_the_mean_is_over_the_seeds_that_reached_it():
    frame = pd.concat([run(0, [0, 4], [0.0, 4.0]), run(1, [0, 4], [0.0, 8.0]), run(2, [0, 1], [0.0, 1.0])])
    row = at_kl(frame, [2.0]).iloc[0]
    assert row["reached"] == "2 of 3" and row["proxy at 2 nats"] == pytest.approx(3)  # (2 + 4) / 2
    half_width = 12.7062 * np.sqrt(2) / np.sqrt(2)  # t_{0.975, 1} · s / √n with s = √2
    assert row["proxy at 2 nats_half_width"] == pytest.approx(half_width, rel=1e-4)
    assert "gold at 2 nats" not in row


def test_the_figure_has_the_table_in_it():
    """Two arms and two KLs of which one arm reaches one only: three points, where the table says."""
    frame = pd.concat([run(0, [0, 4], [0.0, 4.0]), run(1, [0, 4], [0.0, 8.0]), run(0, [0, 2], [0.0, 6.0], arm="b")])
    figure = dots(frame, [1.0, 3.0])
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["a", "b"]
    points = [np.asarray(container.lines[0].get_xdata(), dtype=float) for container in panel.containers]
    np.testing.assert_allclose(points, [[1.5, 3.0], [4.5, np.nan]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 nats", "3 nats"]
