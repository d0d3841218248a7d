"""Losses of the reward model: Bradley–Terry numbers, K-wise as an average of pairs."""

import itertools
import math

import numpy as np
import pytest
import torch

from rlhf_lab.contracts import Ranking
from rlhf_lab_plugins.reward_loss.kwise import KWise, Pairwise, pairwise_losses


def loss(scores, ratings, mask=None):
    scores_BK, ratings_BK = torch.tensor([scores], dtype=torch.float64), torch.tensor([ratings], dtype=torch.float64)
    mask_BK = torch.ones_like(ratings_BK, dtype=torch.bool) if mask is None else torch.tensor([mask])
    return pairwise_losses(scores_BK, ratings_BK, mask_BK).item()


def by_pairs(scores, ratings):
    """−log σ(r_w − r_l) averaged over the untied pairs, one by one; and how many there are."""
    terms = [
        math.log1p(math.exp(-(scores[w] - scores[n])))
        for w, n in itertools.permutations(range(len(scores)), 2)
        if ratings[w] > ratings[n]
    ]
    return (sum(terms) / len(terms) if terms else 0.0), len(terms)


@pytest.mark.parametrize("difference, expected", [(0.0, 0.69314718), (1.0, 0.31326169), (-1.0, 1.31326169)])
def test_bradley_terry_by_hand(difference, expected):
    assert loss([difference, 0.0], [1, 0]) == pytest.approx(expected, abs=1e-8)
    assert loss([0.0, difference], [0, 1]) == pytest.approx(expected, abs=1e-8)


def test_it_stays_finite_far_out():
    assert loss([-800.0, 0.0], [1, 0]) == pytest.approx(800.0)
    assert loss([800.0, 0.0], [1, 0]) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4, 9])
def test_k_wise_is_the_average_over_its_pairs(k):
    rng = np.random.default_rng(k)
    scores, ratings = rng.normal(size=k).tolist(), rng.permutation(k).tolist()
    expected, n = by_pairs(scores, ratings)
    assert n == math.comb(k, 2) and loss(scores, ratings) == pytest.approx(expected, abs=1e-12)


def test_nine_completions_are_36_pairs():
    """Equal scores: each pair costs log 2, and its gradient says by how many pairs the loss was divided."""
    scores_BK = torch.zeros(1, 9, dtype=torch.float64, requires_grad=True)
    value = pairwise_losses(scores_BK, torch.arange(9.0)[None], torch.ones(1, 9, dtype=torch.bool))
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(2), abs=1e-12)
    assert scores_BK.grad[0, 8].item() == pytest.approx(-0.5 * 8 / 36, abs=1e-12)  # wins all of its eight pairs


def test_ties_are_dropped_from_the_sum_and_the_count():
    scores, ratings = [0.3, -1.0, 2.0, 0.5], [1.0, 1.0, 0.0, 0.0]
    expected, n = by_pairs(scores, ratings)
    assert n == 4 and loss(scores, ratings) == pytest.approx(expected, abs=1e-12)


def test_all_tied_costs_nothing_and_teaches_nothing():
    scores_BK = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    value = pairwise_losses(scores_BK, torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool))
    value.sum().backward()
    assert value.item() == 0 and (scores_BK.grad == 0).all()


@pytest.mark.parametrize("filler", [0.0, 1e9, -1e9, math.nan])
def test_padding_of_k_changes_nothing(filler):
    scores_BK = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, filler]], requires_grad=True)
    ratings_BK = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 7.0]])
    mask_BK = torch.tensor([[True] * 3, [True, True, False]])
    values_B = pairwise_losses(scores_BK, ratings_BK, mask_BK)
    values_B.sum().backward()
    assert values_B.tolist() == pytest.approx(
        [by_pairs([0.3, -1.0, 2.0], [0, 2, 1])[0], by_pairs([1.5, 0.2], [1, 0])[0]], abs=1e-6
    )
    assert scores_BK.grad.isfinite().all() and scores_BK.grad[1, 2] == 0


def test_a_constant_added_to_a_prompts_scores_changes_nothing():
    assert loss([0.3, -1.0, 2.0], [0, 2, 1]) == pytest.approx(loss([5.3, 4.0, 7.0], [0, 2, 1]), abs=1e-12)


def test_the_order_of_the_completions_changes_nothing():
    assert loss([0.3, -1.0, 2.0], [0, 2, 1]) == pytest.approx(loss([2.0, 0.3, -1.0], [1, 0, 2]), abs=1e-12)


def test_pairwise_cuts_rankings_into_untied_pairs_and_k_wise_keeps_them_whole():
    ranking = Ranking("x", ("a", "b", "c"), (1.0, 1.0, 0.0))
    assert KWise().examples([ranking]) == [ranking]
    assert Pairwise().examples([ranking]) == [Ranking("x", ("a", "c"), (1.0, 0.0)), Ranking("x", ("b", "c"), (1.0, 0.0))]


def test_pairs_average_to_the_k_wise_loss():
    """One prompt: the mean over its examples is the same number, whichever way it is cut."""
    score = {"a": 0.4, "b": -0.3, "c": 1.1, "d": 0.0}
    ranking = Ranking("x", tuple(score), (3.0, 1.0, 1.0, 0.0))
    pairs = Pairwise().examples([ranking])
    mean = np.mean([loss([score[c] for c in pair.completions], list(pair.ratings)) for pair in pairs])
    assert len(pairs) == 5 and mean == pytest.approx(loss(list(score.values()), list(ranking.ratings)), abs=1e-12)
