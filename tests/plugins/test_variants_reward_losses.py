"""Losses of the reward model beside the pairwise one: numbers by hand, minima in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from tiny_world import component

from rlhf_lab_plugins.reward_loss.best_of_n_softmax import BestOfNSoftmax
from rlhf_lab_plugins.reward_loss.centred import Centred
from rlhf_lab_plugins.reward_loss.kwise import KWise
from rlhf_lab_plugins.reward_loss.label_smoothing import LabelSmoothing
from rlhf_lab_plugins.reward_loss.margin import Margin


def loss(kind, scores, ratings):
    scores_BK, ratings_BK = torch.tensor([scores], dtype=torch.float64), torch.tensor([ratings], dtype=torch.float64)
    return kind.losses(scores_BK, ratings_BK, torch.ones_like(ratings_BK, dtype=torch.bool)).item()


def nll(difference):
    """−log σ."""
    return math.log1p(math.exp(-difference))


@pytest.mark.parametrize(
    "kind, scores, ratings, expected",
    [
        (Margin(margin=1.0), [2.0, 0.0], [3.0, 1.0], nll(0.0)),  # 2 apart where 2 are asked for
        (Margin(margin=0.5), [2.0, 0.0], [3.0, 1.0], nll(1.0)),
        (Margin(margin=1.0), [2.0, 0.0, 1.0], [1.0, 0.0, 0.0], (nll(2.0 - 1) + nll(1.0 - 1)) / 2),
        (Centred(coefficient=0.01), [2.0, 1.0], [1.0, 0.0], nll(1.0) + 0.01 * 9),
        (Centred(coefficient=0.5), [3.0, 1.0, -1.0], [1.0, 0.0, 0.0], (nll(2.0) + 0.5 * 16 + nll(4.0) + 0.5 * 4) / 2),
        (LabelSmoothing(flip=0.1), [2.0, 1.0], [1.0, 0.0], 0.9 * nll(1.0) + 0.1 * nll(-1.0)),
        (LabelSmoothing(flip=0.25), [0.0, 0.0], [1.0, 0.0], math.log(2)),
        (BestOfNSoftmax(), [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], math.log(4)),
        (BestOfNSoftmax(), [1.0, 3.0, 2.0], [0.0, 5.0, 1.0], -log_softmax([1.0, 3.0, 2.0])[1]),
        (BestOfNSoftmax(), [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], math.log(3 / 2)),  # a tie at the top is one choice
    ],
    ids=str,
)
def test_by_hand(kind, scores, ratings, expected):
    assert loss(kind, scores, ratings) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("neutral", [Margin(margin=0.0), Centred(coefficient=0.0), LabelSmoothing(flip=0.0)], ids=str)
def test_without_their_parameter_they_are_the_k_wise_loss(neutral):
    rng = np.random.default_rng(0)
    for k in (2, 5):
        scores, ratings = rng.normal(size=k).tolist(), rng.integers(0, 3, k).tolist()
        assert loss(neutral, scores, ratings) == pytest.approx(loss(KWise(), scores, ratings), abs=1e-12)


def test_two_completions_make_the_choice_a_comparison():
    for difference in (-2.0, 0.0, 1.5):
        assert loss(BestOfNSoftmax(), [difference, 0.0], [1, 0]) == pytest.approx(nll(difference), abs=1e-12)


def test_only_the_best_counts_in_a_choice():
    assert loss(BestOfNSoftmax(), [1.0, 3.0, 2.0], [0, 5, 1]) == loss(BestOfNSoftmax(), [1.0, 3.0, 2.0], [1, 5, 0])


@pytest.mark.parametrize("flip", [0.05, 0.2, 0.45])
def test_smoothed_labels_have_a_finite_optimum(flip):
    """At a difference of log((1−ε)/ε), where the model is as sure as the labels are."""
    best = minimize_scalar(lambda d: loss(LabelSmoothing(flip=flip), [d, 0.0], [1, 0]), bounds=(-10, 10), method="bounded").x
    assert best == pytest.approx(math.log((1 - flip) / flip), abs=1e-4)


def test_centring_alone_says_where_the_scores_stand():
    """With the difference held at 2 the best scores are 1 and −1; the k-wise loss does not care."""
    best = minimize_scalar(lambda shift: loss(Centred(), [2.0 + shift, shift], [1, 0])).x
    assert best == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize("kind", [Margin(), Centred(), LabelSmoothing(), BestOfNSoftmax()], ids=str)
def test_they_stay_finite_far_out(kind):
    scores_BK = torch.tensor([[-800.0, 800.0, 0.0]], requires_grad=True)
    value_B = kind.losses(scores_BK, torch.tensor([[2.0, 1.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool))
    value_B.sum().backward()
    assert value_B.isfinite().all() and scores_BK.grad.isfinite().all() and value_B.item() > 500


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "margin", "margin": -1.0},
        {"name": "centred", "coefficient": -0.1},
        {"name": "label_smoothing", "flip": 0.5},
        {"name": "best_of_n_softmax", "n": 4},
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        component("reward_loss", wrong)


@pytest.mark.parametrize("kind", ["margin", "centred", "label_smoothing", "best_of_n_softmax"])
def test_each_trains_a_reward_model(run_stage, kind):
    """The tiny world ranks by the number of one word, which a reward model learns within a few epochs."""
    parameters = {"loss": kind, "epochs": 8, "batch_size": 4, "learning_rate": 0.01, "normalize": "none",
                  "validate_at_start": True, "pooling": "sum"}  # fmt: skip
    rows = run_stage("reward_model", parameters).rows()
    train = [row["loss"] for row in rows if row["split"] == "train"]
    assert np.mean(train[-3:]) < 0.7 * np.mean(train[:3])
