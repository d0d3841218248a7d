"""β: Ziegler's numbers, and a closed loop with a simulated plant."""

import json
import math

import pytest
from pydantic import ValidationError
from tiny_world import registry

from rlhf_lab_plugins.kl_controller.adaptive import Adaptive
from rlhf_lab_plugins.kl_controller.fixed import Fixed

RELEASED_CODE = {"beta": 0.15, "target": 6.0, "gain": 512 / 10_000, "clip": 0.2}


@pytest.mark.parametrize(
    "kl, expected", [(12, 0.151536), (7.2, 0.151536), (6, 0.15), (3, 0.148464), (6.6, 0.15 * (1 + 0.0512 * 0.1))]
)
def test_the_released_codes_numbers(kl, expected):
    """lm-human-preferences, style tasks: n = 512, horizon = 10000, clip ± 0.2."""
    controller = Adaptive(**RELEASED_CODE)
    assert controller.update(controller.start(), kl, 512)["beta"] == pytest.approx(expected, abs=1e-12)


def test_the_papers_gain_is_the_default():
    """K = 0.1: at twice the target β rises by 0.1 · 0.2 = 2 %."""
    controller = Adaptive(beta=0.5)
    assert controller.update(controller.start(), 12.0, 64)["beta"] == pytest.approx(0.5 * 1.02, abs=1e-12)


@pytest.mark.parametrize("start", [0.01, 20.0])
@pytest.mark.parametrize("clip", [0.2, 1.0])
def test_it_finds_the_beta_that_holds_the_target(start, clip):
    """Plant: KL = 3 / β, with a lag of half the way per step. Fixed point β = 3 / 6; the number of steps is
    bounded by log(20 / 0.5) / log(1 + 0.1 · 0.2) ≈ 186 on the slow, clipped way there.
    """
    controller, kl = Adaptive(beta=start, target=6.0, clip=clip), 0.0
    state = controller.start()
    for _ in range(600):
        kl += 0.5 * (3 / state["beta"] - kl)
        state = controller.update(state, kl, 64)
    assert state["beta"] == pytest.approx(0.5, rel=1e-3) and kl == pytest.approx(6.0, rel=1e-3)


def test_beta_stays_positive_whatever_it_sees():
    controller = Adaptive(beta=0.1, target=1.0, gain=1.0, clip=0.99)
    state = controller.start()
    for kl in [-1e9, -5.0, 0.0, 1e9, 1e30] * 40:
        state = controller.update(state, kl, 1)
        assert math.isfinite(state["beta"]) and state["beta"] > 0


@pytest.mark.parametrize("controller", [Fixed(beta=0.3), Adaptive(beta=0.3)])
def test_updates_are_pure_and_their_state_is_json(controller):
    state = controller.start()
    assert controller.update(json.loads(json.dumps(state)), 2.0, 8) == controller.update(state, 2.0, 8)
    assert state == controller.start() == {"beta": 0.3}


def test_fixed_stays():
    controller = Fixed(beta=0.02)
    state = controller.start()
    for kl in (0.0, 100.0):
        state = controller.update(state, kl, 512)
    assert state == {"beta": 0.02}
    assert Fixed(beta=0.0).start() == {"beta": 0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": 0},
        {"target": -6},
        {"target": math.inf},
        {"beta": 0},
        {"beta": math.nan},
        {"gain": 0},
        {"gain": 1.5},
        {"clip": 0},
        {"horizon": 10_000},
    ],
)
def test_what_cannot_control_is_refused(wrong):
    with pytest.raises(ValidationError):
        registry().choose("kl_controller", {"name": "adaptive", **wrong})


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_a_fixed_beta_is_finite_and_not_negative(beta):
    with pytest.raises(ValidationError):
        Fixed(beta=beta)
