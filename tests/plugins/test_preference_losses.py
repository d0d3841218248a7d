"""Preference losses: values and slopes by hand, and what they come to where everything can be enumerated."""

import itertools
import math

import pytest
import torch
from tiny_world import component

from rlhf_lab.contracts import Preferences, Ranking
from rlhf_lab.errors import DataError
from rlhf_lab.proof import exact
from rlhf_lab_plugins.preference_loss.kto import KTO
from rlhf_lab_plugins.preference_loss.orpo import log_odds
from rlhf_lab_plugins.preference_loss.pairs import untied_pairs


def evaluated(loss, logprobs, lengths=(2, 4), ref=(0.0, 0.0), preferred=(True, False), baseline=None):
    """Loss and slopes of one example, whose sums of log-probs are given; with a reference of 0 they are log-ratios."""
    leaf = torch.tensor([logprobs], dtype=torch.float64, requires_grad=True)
    k = len(logprobs)
    batch = Preferences(
        leaf,
        torch.tensor([lengths[:k]]),
        torch.tensor([preferred[:k]]),
        torch.tensor([ref[:k]], dtype=torch.float64),
        None if baseline is None else torch.tensor(baseline, dtype=torch.float64),
    )
    (value,) = component("preference_loss", loss).losses(batch)
    return value.item(), torch.autograd.grad(value, leaf)[0][0].tolist()


@pytest.mark.parametrize(
    "loss, expected",
    [
        ({"name": "dpo", "beta": 0.3}, math.log(2)),
        ({"name": "cdpo", "beta": 0.3, "flip": 0.2}, math.log(2)),
        ({"name": "ipo", "beta": 0.1}, 25.0),
        ({"name": "ipo", "beta": 0.1, "per_token": True}, 25.0),
        ({"name": "hinge", "beta": 0.3}, 1.0),
    ],
)
def test_at_the_reference_a_pair_says_nothing_yet(loss, expected):
    """log 2, 1/(4τ²), 1: whatever the log-probs are, if the reference has the same."""
    value, slopes = evaluated(loss, [-3.0, -7.0], ref=(-3.0, -7.0))
    assert value == pytest.approx(expected, abs=1e-12) and slopes[0] < 0 < slopes[1]


# Log-ratios 1 and −1, so a margin of 2; or sums of −4 over 2 tokens and −6 over 4.
BY_HAND = [
    ("dpo", {"beta": 0.5}, [1.0, -1.0], 0.31326169, [-0.13447071, 0.13447071]),  # −log σ(1), −β σ(−1)
    ("cdpo", {"beta": 0.5, "flip": 0.1}, [1.0, -1.0], 0.41326169, [-0.08447071, 0.08447071]),  # .9·.3133 + .1·1.3133
    ("ipo", {"beta": 0.1}, [1.0, -1.0], 9.0, [-6.0, 6.0]),  # (2 − 5)², 2(2 − 5)
    ("ipo", {"beta": 0.1, "per_token": True}, [1.0, -1.0], 18.0625, [-4.25, 2.125]),  # (1/2 + 1/4 − 5)²
    ("hinge", {"beta": 0.25}, [1.0, -1.0], 0.5, [-0.25, 0.25]),
    ("hinge", {"beta": 0.25}, [3.0, -3.0], 0.0, [0.0, 0.0]),  # further apart than 1/β: left alone
    ("slic", {"delta": 3.0, "weight": 0.1}, [-4.0, -6.0], 1.4, [-1.1, 1.0]),  # (3 − 2) + .1·4
    ("slic", {"delta": 1.0, "weight": 0.1}, [-4.0, -6.0], 0.4, [-0.1, 0.0]),
    ("simpo", {"beta": 2.0, "gamma": 1.0}, [-4.0, -6.0], 2.12692801, [-0.88079708, 0.44039854]),  # −log σ(2(−2 + 1.5) − 1)
]


@pytest.mark.parametrize("name, parameters, logprobs, expected, slopes", BY_HAND)
def test_by_hand(name, parameters, logprobs, expected, slopes):
    value, found = evaluated({"name": name, **parameters}, logprobs)
    assert value == pytest.approx(expected, abs=1e-8) and found == pytest.approx(slopes, abs=1e-8)


def test_orpo_by_hand():
    """p = .8 over two tokens and .5 over four: odds 4 and 1, σ(log 4) = .8; slopes through d log odds / d log p = 1/(1 − p)."""
    value, slopes = evaluated({"name": "orpo", "weight": 0.5}, [2 * math.log(0.8), 4 * math.log(0.5)])
    assert value == pytest.approx(-math.log(0.8) - 0.5 * math.log(0.8), abs=1e-12)
    assert slopes == pytest.approx([(-1 - 0.5 * 0.2 / 0.2) / 2, (0.5 * 0.2 / 0.5) / 4], abs=1e-12)


@pytest.mark.parametrize("p", [1e-30, 1e-6, 0.3, 0.5, 0.500001, 0.9, 1 - 1e-9])
def test_odds_do_not_cancel(p):
    leaf = torch.tensor(math.log1p(p - 1) if p > 0.5 else math.log(p), dtype=torch.float64, requires_grad=True)
    value = log_odds(leaf)
    value.backward()
    complement = -math.expm1(leaf.item())
    assert value.item() == pytest.approx(leaf.item() - math.log(complement), rel=1e-12, abs=1e-12)
    assert leaf.grad.item() == pytest.approx(1 / complement, rel=1e-9)


def test_conservative_dpo_has_its_minimum_at_the_odds_of_a_right_label():
    value, slopes = evaluated({"name": "cdpo", "beta": 0.5, "flip": 0.1}, [2 * math.log(9), 0.0])
    assert slopes == pytest.approx([0.0, 0.0], abs=1e-12)
    assert value == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-12)  # the entropy of the label


def negated(batch):
    ref_BK = None if batch.ref_logprobs_BK is None else -batch.ref_logprobs_BK
    return Preferences(-batch.logprobs_BK, batch.lengths_BK, batch.preferred_BK, ref_BK)


@pytest.mark.parametrize("name, parameters", [(name, parameters) for name, parameters, *_ in BY_HAND if name != "slic"])
def test_the_opposite_verdict_is_a_change_of_sign(name, parameters):
    """A loss of the margin alone: (w, l) exchanged costs what (w, l) costs with all log-probs negated. For DPO and hinge near
    the reference the two differ by β times the margin: −log σ(−x) + log σ(x) = x, (1 + x) − (1 − x) = 2x."""
    loss = component("preference_loss", {"name": name, **parameters})
    sums, ref = [[-3.0, -4.5], [-6.0, -5.0]], [[-3.5, -4.0], [-5.5, -5.5]]
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (sums, ref)]
    batch = Preferences(tensors[0], torch.tensor([[3, 4], [6, 2]]), torch.tensor([[True, False]] * 2), tensors[1])
    # what negation does to lengths is nothing, what the exchange does to them is undone by it
    torch.testing.assert_close(loss.losses(batch.swapped()), loss.losses(negated(batch)), atol=1e-12, rtol=0)
    difference_B = loss.losses(batch.swapped()) - loss.losses(batch)
    margin_B = torch.tensor([0.5 - -0.5, -0.5 - 0.5], dtype=torch.float64)
    if name == "dpo":
        torch.testing.assert_close(difference_B, parameters["beta"] * margin_B, atol=1e-12, rtol=0)
    if name == "hinge":
        torch.testing.assert_close(difference_B, 2 * parameters["beta"] * margin_B, atol=1e-12, rtol=0)


def test_swapping_twice_changes_nothing():
    singles = Preferences(torch.tensor([[-1.0], [-2.0]]), torch.tensor([[3], [4]]), torch.tensor([[True], [False]]))
    assert singles.swapped().preferred_BK.tolist() == [[False], [True]]
    pair = Preferences(torch.tensor([[-1.0, -2.0]]), torch.tensor([[3, 4]]), torch.tensor([[True, False]]))
    assert pair.swapped().logprobs_BK.tolist() == [[-2.0, -1.0]] and pair.swapped().preferred_BK.tolist() == [[True, False]]
    assert pair.swapped().swapped().lengths_BK.tolist() == [[3, 4]]


# KTO


def kto(log_ratio, preferred, z0, **parameters):
    return evaluated({"name": "kto", "beta": 0.5, **parameters}, [log_ratio], preferred=(preferred,), baseline=z0)


def test_kto_by_hand():
    """At the reference one half; then 1 − σ(1) with slope β σ(1) σ(−1), downwards for the desirable."""
    assert kto(0.0, True, 0.0)[0] == kto(0.0, False, 0.0)[0] == 0.5
    value, (slope,) = kto(3.0, True, 1.0)
    assert (value, slope) == pytest.approx((0.26894142, -0.09830597), abs=1e-8)
    value, (slope,) = kto(-1.0, False, 1.0, undesirable_weight=2.0)
    assert (value, slope) == pytest.approx((0.53788284, 0.19661193), abs=1e-8)
    assert kto(3.0, True, 1.0, desirable_weight=3.0)[0] == pytest.approx(3 * 0.26894142, abs=1e-7)


def test_the_baseline_is_never_negative_and_takes_both_kinds():
    both = torch.tensor([True, False, True])
    assert KTO().baseline(torch.tensor([-3.0, 1.0, 0.5]), both).item() == 0
    assert KTO().baseline(torch.tensor([3.0, 1.0, 0.5]), both).item() == 1.5
    for preferred, which in ((torch.tensor([True, True]), "desirable"), (torch.tensor([False]), "undesirable")):
        with pytest.raises(DataError, match=f"in a batch of {len(preferred)} all are {which}; set another batch_size"):
            KTO().baseline(torch.zeros(len(preferred)), preferred)


def test_which_responses_are_desirable():
    ranking = Ranking("x", ("a", "b", "c"), (1.0, 3.0, 1.0), (True, False, True))
    pairs = KTO().examples([ranking])
    assert [(e.completions, e.ratings, e.ended) for e in pairs] == [
        (("b",), (1.0,), (False,)), (("a",), (0.0,), (True,)), (("b",), (1.0,), (False,)), (("c",), (0.0,), (True,))
    ]  # fmt: skip
    rated = KTO(desirable_above=2.0).examples([ranking, Ranking("z", ("d",), (5.0,))])
    assert [(e.prompt, e.completions, e.ratings) for e in rated] == [
        ("x", ("a",), (0.0,)), ("x", ("b",), (1.0,)), ("x", ("c",), (0.0,)), ("z", ("d",), (1.0,))
    ]  # fmt: skip


# Pairs


def test_all_pairs_of_a_ranking_the_preferred_one_first_and_no_ties():
    ranking = Ranking("x", ("a", "b", "c", "d"), (2.0, 5.0, 2.0, 0.0), (True, True, False, True))
    found = untied_pairs([ranking, Ranking("y", ("e", "f"), (1.0, 1.0)), Ranking("z", ("g", "h"), (0.0, 1.0))])
    pairs = {pair.completions for pair in found}
    assert pairs == {("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d"), ("h", "g")} and len(found) == 6
    assert {pair.ratings for pair in found} == {(1.0, 0.0)}
    assert next(p for p in found if p.completions == ("b", "c")).ended == (True, False) and found[-1].ended == ()


@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo", "hinge", "simpo", "kto"])
@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf])
def test_beta_must_be_positive(name, beta):
    with pytest.raises(ValueError, match=r"greater than 0|finite"):
        component("preference_loss", {"name": name, "beta": beta})


# Where everything can be enumerated


@pytest.fixture(scope="module")
def world():
    """Reference law, rewards and Bradley–Terry preferences over the 40 responses to one prompt of the enumerable world."""
    world = component("data", {"name": "enumerable", "words": 3, "length": 3}).open(None)
    ref_SV = world.logprobs("b a")
    rewards_N = torch.randn(len(world.space.responses), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return world.space, ref_SV, rewards_N


def minimised(loss, space, ref_SV, rewards_N):
    """The table of next-token logits, from the reference's, at which the expected loss is least: pairs of draws from ref,
    labelled with probability σ(r_i − r_j)."""
    ref_N = exact.response_logprobs(ref_SV, space)
    index = torch.tensor(list(itertools.permutations(range(len(ref_N)), 2)))
    first, second = index.T
    weights = ref_N.exp()[first] * ref_N.exp()[second] * torch.sigmoid(rewards_N[first] - rewards_N[second])
    lengths_BK, preferred_BK = space.mask_NT.sum(1)[index], torch.tensor([True, False]).expand_as(index)
    logits_SV = ref_SV.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits_SV], lr=1.0, max_iter=2000, history_size=50, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-12, tolerance_change=0)  # fmt: skip

    def closure():
        optimizer.zero_grad()
        logprobs_N = exact.response_logprobs(logits_SV.log_softmax(-1), space)
        value = (weights * loss.losses(Preferences(logprobs_N[index], lengths_BK, preferred_BK, ref_N[index]))).sum()
        value.backward()
        return value

    optimizer.step(closure)
    return exact.response_logprobs(logits_SV.detach().log_softmax(-1), space), ref_N


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_optimum_of_dpo_is_that_of_rlhf(world, beta):
    """π* ∝ ref e^{r/β}, where comparisons follow Bradley and Terry (Rafailov et al. 2023, theorem 1)."""
    law_N, ref_N = minimised(component("preference_loss", {"name": "dpo", "beta": beta}), *world)
    best_N = exact.optimum(ref_N, world[2], beta)
    assert exact.kl(ref_N, best_N) > 0.2 and exact.kl(law_N, best_N) < 1e-7


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_optimum_of_ipo_is_that_of_the_win_probability(world, beta):
    """π* ∝ ref e^{p/τ}, p(y) = P(y beats a draw from ref) (Azar et al. 2024, eq. 7)."""
    law_N, ref_N = minimised(component("preference_loss", {"name": "ipo", "beta": beta}), *world)
    wins_N = torch.sigmoid(world[2][:, None] - world[2][None, :]) @ ref_N.exp()
    best_N = exact.optimum(ref_N, wins_N, beta)
    assert exact.kl(ref_N, best_N) > 0.03 and exact.kl(law_N, best_N) < 1e-7
