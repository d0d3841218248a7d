"""β by plan, by PID and by dual ascent: numbers by hand, and closed loops whose fixed point is known."""

import math

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.optimize import brentq
from tiny_world import registry

from rlhf_lab_plugins.kl_controller.dual_ascent import DualAscent, ascent_step
from rlhf_lab_plugins.kl_controller.none import NoKL
from rlhf_lab_plugins.kl_controller.pid import PID
from rlhf_lab_plugins.kl_controller.schedule import Schedule
from rlhf_lab_plugins.kl_controller.step_kl_doubling import StepKLDoubling, doubled_or_halved


def betas(controller, kls):
    """β before each update and after the last."""
    state, seen = controller.start(), []
    for kl in kls:
        seen.append(state["beta"])
        state = controller.update(state, kl, 8)
    return [*seen, state["beta"]]


def settled(controller, plant, updates=3000):
    """β and KL after many updates, with a plant that goes half of the way to its equilibrium per update."""
    state, kl = controller.start(), 0.0
    for _ in range(updates):
        kl += 0.5 * (plant(state["beta"]) - kl)
        state = controller.update(state, kl, 64)
    return state["beta"], kl


def test_a_linear_schedule_by_hand():
    assert betas(Schedule(beta=0.2, final=0.0, steps=4), [1.0] * 6) == pytest.approx([0.2, 0.15, 0.1, 0.05, 0, 0, 0], abs=1e-15)


def test_a_cosine_schedule_by_hand():
    """cos(π/4) = √½: slow at both ends, half way in the middle."""
    half = math.sqrt(0.5)
    expected = [0.1, 0.1 + 0.2 * (1 - half), 0.3, 0.1 + 0.2 * (1 + half), 0.5, 0.5]
    assert betas(Schedule(beta=0.1, final=0.5, steps=4, shape="cosine"), [1.0] * 5) == pytest.approx(expected, abs=1e-15)


def test_a_warm_up_comes_before_the_schedule():
    got = betas(Schedule(beta=0.3, final=0.1, steps=2, warmup=3), [1.0] * 6)
    assert got == pytest.approx([0, 0.1, 0.2, 0.3, 0.2, 0.1, 0.1], abs=1e-15)


@pytest.mark.parametrize("kl", [-5.0, 0.0, 1e9])
def test_a_schedule_listens_to_nothing(kl):
    assert betas(Schedule(), [kl] * 30) == betas(Schedule(), [3.0] * 30)


def test_none_is_0_and_stays_there():
    assert betas(NoKL(), [0.0, 100.0]) == [0.0, 0.0, 0.0]


def test_pid_by_hand():
    """KL* = 6. KL = 9: e = ½, Σ = ½, no change yet. KL = 3: e = −½, Σ = 0, change −1. KL = 600: e is clipped to 1."""
    controller = PID(beta=0.1, target=6.0, proportional=0.5, integral=0.1, derivative=0.2)
    exponents = [0.5 * 0.5 + 0.1 * 0.5, -0.5 * 0.5 - 0.2, 0.5 * 1 + 0.1 * 1 + 0.2 * 1.5]
    assert betas(controller, [9.0, 3.0, 600.0])[1:] == pytest.approx([0.1 * math.exp(x) for x in exponents], rel=1e-12)


def test_the_integral_is_clamped_so_that_it_need_not_be_unwound():
    """After 1000 updates far above target the sum stands at 5, and 5 updates far below bring it back to 0."""
    controller = PID(beta=1.0, proportional=0.0, integral=0.1, integral_limit=5.0)
    seen = betas(controller, [1e9] * 1000 + [-1e9] * 5)
    assert max(seen) == pytest.approx(math.exp(0.5)) and seen[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("start", [0.01, 20.0])
@pytest.mark.parametrize("gains", [{}, {"derivative": 0.2}, {"proportional": 0.0}, {"clip": 0.2}])
def test_pid_finds_the_beta_that_holds_the_target(start, gains):
    """KL = 3/β is at 6 for β = ½."""
    assert settled(PID(beta=start, target=6.0, **gains), lambda beta: 3 / beta) == pytest.approx((0.5, 6.0), rel=1e-6)


@pytest.mark.parametrize(
    "beta, kl, expected", [(0.1, 8.0, 0.12), (0.1, 6.0, 0.1), (0.1, 0.0, 0.04), (0.05, 0.0, 0.0), (0.0, -9.0, 0.0)]
)
def test_dual_ascent_by_hand(beta, kl, expected):
    """η = 0.01, KL* = 6: β moves by a hundredth of the difference, and stops at 0."""
    assert ascent_step(beta, kl, 6.0, 0.01) == pytest.approx(expected, abs=1e-15)
    controller = DualAscent(beta=beta, budget=6.0, rate=0.01)
    assert controller.update(controller.start(), kl, 1)["beta"] == pytest.approx(expected, abs=1e-15)


def tilted_kl(beta, rewards=(0.0, 1.0, 3.0), ref=(0.7, 0.2, 0.1)):
    """KL(π*‖ref) of π* ∝ ref·e^{r/β}, by summing over three actions."""
    ref, rewards = np.array(ref), np.array(rewards)
    weights = ref * np.exp((rewards - rewards.max()) / beta)
    law = weights / weights.sum()
    return float((law * np.log(law / ref)).sum())


def test_dual_ascent_ends_at_the_multiplier_of_the_budget():
    """For the optimal policy at each β, KL(β) = 1 nat at the root that Brent's method finds."""
    multiplier = brentq(lambda beta: tilted_kl(beta) - 1.0, 0.05, 50.0)
    beta, kl = settled(DualAscent(beta=5.0, budget=1.0, rate=0.2), tilted_kl)
    assert (beta, kl) == pytest.approx((multiplier, 1.0), rel=1e-4)


def test_dual_ascent_gives_up_a_constraint_that_does_not_bind():
    """The plant never spends more than 2 of its 6 nats: the multiplier of a slack constraint is 0."""
    assert settled(DualAscent(beta=0.5, budget=6.0), lambda beta: 2 / (1 + beta))[0] == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "schedule", "beta": -0.1},
        {"name": "schedule", "final": math.inf},
        {"name": "schedule", "steps": 0},
        {"name": "schedule", "warmup": -1},
        {"name": "schedule", "shape": "exponential"},
        {"name": "pid", "beta": 0},
        {"name": "pid", "target": 0},
        {"name": "pid", "proportional": -1},
        {"name": "pid", "clip": 1.5},
        {"name": "pid", "integral_limit": 0},
        {"name": "dual_ascent", "budget": 0},
        {"name": "dual_ascent", "rate": 0},
        {"name": "dual_ascent", "beta": -1},
        {"name": "none", "beta": 0.1},
    ],
    ids=str,
)
def test_what_cannot_control_is_refused(wrong):
    with pytest.raises(ValidationError):
        registry().choose("kl_controller", wrong)


CHOICES = ["none", {"name": "schedule", "steps": 2}, "pid", {"name": "dual_ascent", "budget": 0.1}]


@pytest.mark.parametrize("kl", CHOICES, ids=str)
def test_each_controls_a_run(run_stage, kl):
    """The β of each step's row is the one that the controller gives for the KLs of the rows before."""
    parameters = {"reward": "words", "kl": kl, "steps": 3, "batch_size": 8, "response_length": 4, "learning_rate": 0.03}
    rows = run_stage("rl", parameters).rows("train")
    controller = registry().choose("kl_controller", kl)
    assert [row["beta"] for row in rows] == pytest.approx(betas(controller, [row["kl"] for row in rows])[:3], abs=1e-12)


@pytest.mark.parametrize(
    "kl, expected", [(0.0, 0.5), (0.0066, 0.5), (0.0067, 1.0), (0.01, 1.0), (0.0149, 1.0), (0.0151, 2.0), (9.0, 2.0)]
)
def test_doubling_and_halving_by_hand(kl, expected):
    """d* = 0.01: half below 0.01/1.5 = 0.00667, twice above 0.015."""
    assert doubled_or_halved(1.0, kl, 0.01, 1.5, 2.0) == expected
    assert betas(StepKLDoubling(), [kl] * 3) == pytest.approx([1.0, expected, expected**2, expected**3])


def test_the_doubling_rule_settles_between_its_bounds():
    """On d = 0.03/β the only β that it leaves alone are 2 … 4.5; from 1 it goes to 2 or 4 and stays."""
    beta, kl = settled(StepKLDoubling(), lambda beta: 0.03 / beta)
    assert 0.01 / 1.5 <= kl <= 0.015 and beta in (2.0, 4.0)


def test_the_doubling_rule_asks_for_the_kl_of_the_update():
    assert StepKLDoubling().needs == {"step_kl"} and PID().needs == frozenset()
