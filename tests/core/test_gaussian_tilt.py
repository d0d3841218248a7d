"""The Gaussian toy: its claims by quadrature, and the whole analysis of over-optimisation on its tables."""

import math

import numpy as np
import pytest

from rlhf_lab.proof.gaussian_tilt import Tilt, steps
from rlhf_lab_analysis.report import text
from rlhf_lab_analysis.reward_vs_kl import reward_vs_kl
from rlhf_lab_analysis.seed_statistics import fit_gao

TILT = Tilt(proxy_slope=1.3, alpha=1.1, c=0.25)


def curves(frame, reward="reward_gold"):
    return [(np.sqrt(run["kl"].clip(lower=0)).to_numpy(), run[reward].to_numpy()) for _, run in frame.groupby("run_id")]


def normal_mean(f, mean):
    """E[f(z)], z ~ N(mean, 1), by Gauss–Hermite quadrature, which is exact for polynomials."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    return float(np.sum(weights * f(nodes + mean)) / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("d", [0.0, 0.5, 2.2, 4.0])
def test_rows_are_expectations_under_the_tilted_gaussian(d):
    row = steps(TILT, [d], seeds=[0]).iloc[0]
    mean = math.sqrt(2) * d
    assert row["kl"] == pytest.approx(normal_mean(lambda z: mean * z - mean**2 / 2, mean), abs=1e-12)
    assert row["reward_proxy"] == pytest.approx(normal_mean(TILT.proxy, mean), abs=1e-12)
    assert row["reward_gold"] == pytest.approx(normal_mean(TILT.gold, mean), abs=1e-12)


def test_beta_is_the_one_whose_optimum_the_policy_is():
    """e^{proxy/β} φ(z) ∝ φ(z − √2 d): the log of both is linear in z with slope √2 d."""
    row = steps(TILT, [1.7], seeds=[0]).iloc[0]
    z = np.array([-1.0, 0.0, 2.0])
    log_ratio = TILT.proxy(z) / row["beta"] - (-((z - math.sqrt(2) * 1.7) ** 2) / 2 + z**2 / 2)
    assert log_ratio == pytest.approx(np.full(3, log_ratio[0]), abs=1e-12)


def test_fit_recovers_alpha_and_c():
    fit = fit_gao(curves(steps(TILT)), "best_of_n")
    assert (fit.alpha, fit.beta, fit.n) == (pytest.approx(1.1, abs=1e-12), pytest.approx(0.25, abs=1e-12), 3)
    proxy = fit_gao(curves(steps(TILT), "reward_proxy"), "best_of_n")
    assert (proxy.alpha, proxy.beta) == (pytest.approx(1.3, abs=1e-12), pytest.approx(0.0, abs=1e-12))


def test_fit_from_samples_covers_alpha_and_c():
    """8 runs of 2000 samples a step: both within the interval widened by half, and the interval is of use."""
    fit = fit_gao(curves(steps(TILT, np.linspace(0.5, 4, 15), seeds=range(8), samples=2000)), "best_of_n")
    for found, (low, high), true in ((fit.alpha, fit.alpha_interval, 1.1), (fit.beta, fit.beta_interval, 0.25)):
        assert abs(found - true) < 1.5 * (high - low) and high - low < 0.1


def test_gold_peaks_where_it_should():
    """At d = α / 2c = 2.2 with α² / 4c = 1.21."""
    frame = steps(TILT, np.linspace(0, 5, 51), seeds=[0])
    peak = frame.loc[frame["reward_gold"].idxmax()]
    assert (math.sqrt(peak["kl"]), peak["reward_gold"]) == (pytest.approx(2.2), pytest.approx(1.21))


def test_best_of_n_lies_under_the_frontier_and_has_the_known_maximum():
    """E[max of 2 normals] = 1/√π (times p/√2); and KL = log 2 − 1/2."""
    frame = steps(TILT, [0.0], seeds=[0], n=[1, 2, 4, 64])
    rows = frame[frame["stage"] == "best_of_n"].set_index("n")
    assert rows.loc[2, "reward_proxy"] == pytest.approx(1.3 / math.sqrt(2 * math.pi), abs=1e-9)
    assert rows.loc[2, "kl"] == pytest.approx(0.193147, abs=1e-6)
    assert rows.loc[1, "reward_gold"] == pytest.approx(0.0, abs=1e-9)
    beyond = rows.loc[[2, 4, 64]]
    assert (beyond["reward_proxy"] < beyond["reward_optimal_at_kl"]).all()
    assert (beyond["reward_proxy"] > 0.8 * beyond["reward_optimal_at_kl"]).all()


def test_runs_differ_by_seed_only_where_they_sample():
    exactly, sampled = steps(TILT, [1.0], seeds=[0, 1]), steps(TILT, [1.0], seeds=[0, 1], samples=10)
    assert exactly["reward_gold"].nunique() == 1 and sampled["reward_gold"].nunique() == 2
    assert steps(TILT, [1.0], seeds=[1], samples=10)["kl"].iloc[0] == sampled["kl"].iloc[1]


def test_the_analysis_reads_its_tables():
    frame = steps(TILT, n=[1, 2, 4, 16])
    assert "Fits" in text(frame) and len(reward_vs_kl(frame).axes) == 4  # two rewards, whole and close up
