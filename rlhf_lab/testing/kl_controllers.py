"""The laws of KL controllers."""

from __future__ import annotations

import json
import math
from typing import Any

from rlhf_lab.testing.every_kind import each_parameter_counts
from rlhf_lab.testing.sentences import require, same
from rlhf_lab.testing.settings import changed

SEQUENCES = 64
OBSERVED = ([0.0, 3.0, 6.0, 60.0] * 30, [-1e6, 1e6] * 40, [1e9] * 500, [-5.0] * 500)
USUAL = [2.0, 0.0, 9.0, 7.5, -0.3, 40.0]
AIMS = ("target", "budget")


def path(controller: Any, kls: list[float]) -> list[dict[str, float]]:
    """The states that a controller goes through."""
    states = [dict(controller.start())]
    for kl in kls:
        states.append(dict(controller.update(states[-1], kl, SEQUENCES)))
    return states


def beta_is_finite_and_not_negative(controller: Any) -> None:
    """Whatever KL is observed, the state holds a β that is finite and ≥ 0, and nothing that is not finite."""
    for kls in OBSERVED:
        for n, state in enumerate(path(controller, kls)):
            beta = state.get("beta")
            seen = f"after {n} updates that saw {kls[max(0, n - 1)]:g} nats the state is {state}"
            require(isinstance(beta, int | float) and math.isfinite(beta) and beta >= 0, seen)
            require(all(math.isfinite(value) for value in state.values()), seen)


def an_update_is_pure(controller: Any) -> None:
    """`update` leaves the old state as it was and gives the same twice; `start` always gives the same."""
    same(dict(controller.start()), dict(controller.start()), "the second start")
    state = dict(controller.start())
    for kl in USUAL:
        before = dict(state)
        after = dict(controller.update(state, kl, SEQUENCES))
        same(dict(state), before, f"the old state after update(state, {kl:g}, …)")
        same(dict(controller.update(state, kl, SEQUENCES)), after, "a second update from the same state")
        state = after


def its_state_survives_json(controller: Any) -> None:
    """A state that went through JSON leads to the same next state, so that a resume changes nothing."""
    for state, kl in zip(path(controller, USUAL), USUAL, strict=False):
        again = json.loads(json.dumps(state))
        same(
            dict(controller.update(again, kl, SEQUENCES)),
            dict(controller.update(state, kl, SEQUENCES)),
            "the update after JSON",
        )


def it_reaches_its_target(controller: Any) -> None:
    """In a simulated loop, where KL falls with β, the KL ends within 10 % of `target` (or `budget`), if it has one.

    One that looks at the size of a step instead (`step_kl`) is not asked. Tried at its defaults with targets from 2 to 12 nats.
    """
    field = next((name for name in AIMS if name in type(controller).model_fields), None)
    if field is None or "step_kl" in controller.needs:
        return
    for aim in (2.0, 6.0, 12.0):
        if (aimed := changed(controller, **{field: aim})) is not None:
            late = settled_kl(aimed)
            require(abs(late - aim) <= 0.1 * aim, f"with {field} {aim:g} the KL settles at {late:.3g} nats")


def settled_kl(controller: Any) -> float:
    """Mean KL of the last 1000 of 4000 steps, in nats.

    The plant: the policy goes a fifth of the way, each step, to the KL at which this β would hold it, 50/(1 + (β/0.1)²) nats.
    """
    state, kl, late = dict(controller.start()), 0.0, 0.0
    for step in range(4000):
        kl += 0.2 * (50 / (1 + (state["beta"] / 0.1) ** 2) - kl)
        state = dict(controller.update(state, kl, SEQUENCES))
        late += kl / 1000 if step >= 3000 else 0.0
    return late


def outcome(controller: Any) -> list[dict[str, float]]:
    return path(controller, USUAL * 5 + [20.0] * 150 + [1.0] * 150)


LAWS = (
    beta_is_finite_and_not_negative,
    an_update_is_pure,
    its_state_survives_json,
    it_reaches_its_target,
    each_parameter_counts(outcome, tries=200),
)
