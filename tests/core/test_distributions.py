"""Quantile functions against closed forms, scipy's, and exhaustive counts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlhf_lab.declaration.distributions import draws, quantile

U = [0.0, 0.1, 0.25, 0.5, 0.75, 0.999]


@pytest.mark.parametrize(
    ("distribution", "witness"),
    [
        ({"uniform": [0.5, 2]}, stats.uniform(0.5, 1.5)),
        ({"uniform": [-1, 1]}, stats.uniform(-1, 2)),
        ({"log_uniform": [1e-5, 1e-2]}, stats.loguniform(1e-5, 1e-2)),
        ({"normal": [3, 0.5]}, stats.norm(3, 0.5)),
    ],
)
def test_quantiles_are_those_of_scipy_to_six_digits(distribution, witness):
    for u in U[distribution.keys() == {"normal"} :]:
        assert quantile(distribution)(u) == pytest.approx(witness.ppf(u), rel=6e-6, abs=1e-12)


def test_middles_by_hand():
    assert quantile({"uniform": [0, 1]})(0.5) == 0.5
    assert quantile({"log_uniform": [1e-4, 1e-2]})(0.5) == pytest.approx(1e-3)
    assert quantile({"normal": [2, 5]})(0.5) == 2
    assert math.isfinite(quantile({"normal": [0, 1]})(0.0))


@pytest.mark.parametrize(("low", "high"), [(1, 4), (0, 0), (-2, 2)])
def test_whole_numbers_both_ends_included_are_equally_likely(low, high):
    n = high - low + 1
    values = [quantile({"integers": [low, high]})((i + 0.5) / (10 * n)) for i in range(10 * n)]
    assert {value: values.count(value) for value in values} == dict.fromkeys(range(low, high + 1), 10)
    assert all(type(value) is int for value in values)


def test_a_choice_is_one_of_the_list_whatever_it_holds():
    items = ["fixed", {"name": "adaptive"}, None, 3]
    assert [quantile({"choice": items})((i + 0.5) / 4) for i in range(4)] == items


@given(st.floats(1e-9, 1e9), st.floats(1, 1e6), st.floats(0, 1, exclude_max=True))
def test_values_stay_within_their_bounds(low, factor, u):
    high = low * factor
    assert low <= quantile({"uniform": [low, high]})(u) <= high
    assert low <= quantile({"log_uniform": [low, high]})(u) <= high


def test_draws_follow_their_distribution():
    """Kolmogorov and Smirnov's test, at a level at which it fails once in 10⁴ seeds; the seed is fixed."""
    values = draws("rl.kl.beta", {"log_uniform": [1e-3, 1]}, 2000, 0)
    assert stats.kstest(values, stats.loguniform(1e-3, 1).cdf).pvalue > 1e-4


def test_draws_are_named_by_seed_and_path_not_by_its_spelling():
    one = draws("rl.objective[0].eps", {"uniform": [0, 1]}, 4, 0)
    assert one == draws("rl.objective.0.eps", {"uniform": [0, 1]}, 4, 0)
    assert one != draws("rl.objective.1.eps", {"uniform": [0, 1]}, 4, 0)
    assert one != draws("rl.objective[0].eps", {"uniform": [0, 1]}, 4, 1)


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (5, "a distribution is one of {uniform: [low, high]}, {log_uniform: [low, high]}, "),
        ({"uniform": [0, 1], "normal": [0, 1]}, "a distribution is one of "),
        ({"uniform": 5}, "uniform takes a list, as in {uniform: [low, high]}, not 5"),
        ({"choice": []}, "choice takes a list, as in {choice: […]}, not a list"),
        ({"uniform": [0, 1, 2]}, "uniform takes two numbers, as in {uniform: [low, high]}"),
        ({"uniform": [0, "x"]}, "uniform takes two numbers, as in {uniform: [low, high]}"),
        ({"uniform": [0, math.inf]}, "uniform takes two numbers"),
        ({"uniform": [False, True]}, "uniform takes two numbers"),
        ({"integers": [0, 1.5]}, "integers takes two whole numbers, as in {integers: [low, high]}"),
        ({"uniform": [1, 0]}, "the low end of uniform, 1, is above its high end, 0"),
        ({"log_uniform": [0, 1]}, "log_uniform needs numbers > 0, not 0"),
        ({"normal": [0, 0]}, "the deviation of normal must be > 0, not 0"),
        ({"nrmal": [0, 1]}, "unknown distribution 'nrmal' (did you mean 'normal'?); there are "),
    ],
)
def test_what_is_no_distribution(distribution, message):
    with pytest.raises(ValueError) as caught:
        quantile(distribution)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
