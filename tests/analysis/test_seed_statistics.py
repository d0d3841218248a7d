"""Witnesses: scipy's t-test, its bootstrap and its curve fit; Gao's forms with known coefficients."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from rlhf_lab_analysis.seed_statistics import (
    bootstrap_interval,
    fit_gao,
    least_squares_gao,
    mean_by_step,
    mean_interval,
    reward_best_of_n,
    reward_rl,
)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_t_interval_is_that_of_the_one_sample_t_test(confidence):
    values = [0.52, 0.75, 0.89, 0.61]
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    interval = mean_interval(values, confidence)
    assert interval == pytest.approx((np.mean(values), expected.low, expected.high, 4))
    assert interval.half_width == pytest.approx((expected.high - expected.low) / 2)


def test_n_counts_the_finite_values():
    interval = mean_interval([1.0, np.nan, 3.0])
    assert (interval.mean, interval.n) == (2.0, 2)
    assert interval.half_width == pytest.approx(12.706204736 * 1.0)  # t(.975, 1 df) · √2 / √2


def test_one_value_has_no_interval_and_none_has_no_mean():
    one, none = mean_interval([2.5]), mean_interval([])
    assert one.mean == 2.5 and one.n == 1 and np.isnan(one.low) and np.isnan(one.high)
    assert np.isnan(none.mean) and none.n == 0


def test_mean_by_step_is_the_t_interval_at_each_step():
    frame = pd.DataFrame({"step": [5, 0, 0, 5, 0, 5], "y": [4.0, 1.0, 2.0, 6.0, 6.0, np.nan]})
    table = mean_by_step(frame, "y")
    assert list(table.index) == [0, 5] and list(table["n"]) == [3, 2]
    for step, values in {0: [1.0, 2.0, 6.0], 5: [4.0, 6.0]}.items():
        expected = stats.ttest_1samp(values, 0).confidence_interval()
        assert tuple(table.loc[step, ["mean", "low", "high"]]) == pytest.approx((np.mean(values), expected.low, expected.high))


def test_bootstrap_agrees_with_scipy():
    values = stats.norm.rvs(size=30, random_state=3)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    low, high = bootstrap_interval(list(values), np.mean, draws=20_000)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert np.isnan(bootstrap_interval([1.0], np.mean)).all()


def test_forms_by_hand():
    assert reward_best_of_n([0, 2, 4], 1.5, 0.25) == pytest.approx([0, 2, 2])
    assert reward_rl([0, 1, np.e], 2.0, 0.5) == pytest.approx([0, 2, 1.5 * np.e])


@pytest.mark.parametrize(
    "form, by_hand",
    [
        ("rl", lambda d: [x * (1.1 - 0.9 * np.log(x)) if x else 0 for x in d]),
        ("best_of_n", lambda d: [x * (1.1 - 0.9 * x) for x in d]),
    ],
)
def test_coefficients_of_noise_free_data_are_recovered(form, by_hand):
    d = np.array([0.0, 0.3, 0.9, 2.0, 4.0, 6.0])
    assert least_squares_gao(d, by_hand(d), form) == pytest.approx([1.1, 0.9], rel=1e-10)


def test_least_squares_with_noise_is_scipys():
    d = np.linspace(0.2, 6, 40)
    reward = d * (1.1 - 0.9 * np.log(d)) + stats.norm.rvs(scale=0.1, size=40, random_state=5)
    expected, _ = optimize.curve_fit(lambda d, a, b: d * (a - b * np.log(d)), d, reward, p0=[1, 1])
    assert least_squares_gao(np.append(d, 7.0), np.append(reward, np.nan), "rl") == pytest.approx(expected, rel=1e-6)


def test_interval_over_seeds_holds_the_truth_and_one_seed_has_none():
    rng, d = np.random.default_rng(0), np.linspace(0, 6, 12)
    curves = [(d, reward_rl(d, 1.1 + rng.normal(0, 0.1), 0.9) + rng.normal(0, 0.05, 12)) for _ in range(8)]
    fit = fit_gao(curves, "rl")
    low, high = fit.alpha_interval
    assert fit.n == 8 and low < 1.1 < high and high - low < 0.3
    alone = fit_gao(curves[:1], "rl")
    assert np.isfinite(alone.alpha) and np.isnan(alone.alpha_interval).all()


def test_a_single_distance_cannot_be_fitted():
    assert np.isnan(least_squares_gao([2.0, 2.0], [1.0, 1.1], "rl")).all()
