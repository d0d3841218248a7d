"""Witnesses: all subsets by enumeration, exact binomials, an integral, and known order statistics."""

from fractions import Fraction
from itertools import combinations
from math import comb, exp, log

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from rlhf_lab.best_of_n import best_of_n, best_of_n_kl, best_of_n_weights
from rlhf_lab.errors import RewardError, SpecError


def over_all_subsets(proxy, value, n):
    """Mean over subsets of the value of the best; of several best, their mean."""
    totals = []
    for subset in combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        best = [value[i] for i in subset if proxy[i] == top]
        totals.append(sum(best) / len(best))
    return sum(totals) / len(totals)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize(
    "proxy",
    [
        [0.3, -1.0, 2.0, 0.7, 5.0, 1.1, -0.2],
        [1.0, 1.0, 2.0, 2.0, 2.0, 0.0, 3.0],
        [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0],
    ],
)
def test_equals_the_mean_over_all_subsets(proxy, n):
    value = [1.5, -0.5, 3.0, -7.0, 2.0, 0.25, 1.0]
    assert best_of_n(proxy, value, n) == pytest.approx(over_all_subsets(proxy, value, n), rel=1e-12)


def test_one_is_the_mean_and_all_is_the_best():
    proxy, gold = [3.0, 1.0, 2.0], [10.0, 20.0, 60.0]
    assert best_of_n(proxy, gold, 1) == pytest.approx(30.0)
    assert best_of_n(proxy, gold, 3) == pytest.approx(10.0)


@pytest.mark.parametrize("n", [1, 2, 64, 4095, 4096])
def test_weights_of_thousands_of_samples_equal_exact_binomials(n):
    n_samples = 4096
    weights = best_of_n_weights(n_samples, n)
    exact = [Fraction(comb(i - 1, n - 1), comb(n_samples, n)) for i in range(1, n_samples + 1)]
    np.testing.assert_allclose(weights, [float(w) for w in exact], rtol=1e-7, atol=1e-300)


def test_unbiased_for_the_maximum_of_normals():
    """E of the largest of 2 standard normals is 1/√π, of 3 it is 3/(2√π); the estimator from N = 10 hits it on average."""
    x = norm.rvs(size=(20_000, 10), random_state=0)
    for n, exact in [(2, np.pi**-0.5), (3, 1.5 * np.pi**-0.5)]:
        estimates = [best_of_n(row, row, n) for row in x[:4000]]
        assert np.mean(estimates) == pytest.approx(exact, abs=4 * np.std(estimates) / np.sqrt(len(estimates)))


@pytest.mark.parametrize("n", [1, 2, 7, 256])
def test_kl_is_the_integral_over_quantiles(n):
    """The best of n has density n u^(n−1) over the sampler's quantile u: KL = ∫ p log p (in v = log u, for n large)."""
    integral, _ = quad(lambda v: exp(v) * n * exp((n - 1) * v) * (log(n) + (n - 1) * v), -np.inf, 0)
    assert best_of_n_kl(n) == pytest.approx(integral, abs=1e-8)


def test_kl_of_many_n_at_once():
    np.testing.assert_allclose(best_of_n_kl([1, 2, 4]), [0, log(2) - 1 / 2, log(4) - 3 / 4], atol=1e-15)


def test_gold_that_is_nan_stays_nan():
    assert np.isnan(best_of_n([1.0, 2.0], [np.nan, 1.0], 1))


def test_what_cannot_work_is_said():
    with pytest.raises(SpecError, match="between 1 and the number of samples per prompt, which is 3"):
        best_of_n([1, 2, 3], [1, 2, 3], 4)
    with pytest.raises(SpecError, match="best-of-0"):
        best_of_n([1, 2, 3], [1, 2, 3], 0)
    with pytest.raises(RewardError, match="NaN"):
        best_of_n([1, np.nan], [1, 2], 1)
    with pytest.raises(ValueError, match="one length"):
        best_of_n([1, 2, 3], [1, 2], 1)
