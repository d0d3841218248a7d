"""A PID controller of the logarithm of the KL coefficient."""

import math

from rlhf_lab.contracts import Component, hookimpl, param


def clamp(x: float, limit: float) -> float:
    return max(-limit, min(limit, x))


class PID(Component):
    """log β_n = log β_0 + K_p e_n + K_i I_n + K_d (e_n − e_{n−1}), e = clip((KL − KL*)/KL*, ±c), I_n = clip(I_{n−1} + e_n, ±L).

    On the logarithm β stays positive and equal errors change it by equal factors; the clamp of the integral keeps a long
    stretch off target from having to be undone (anti-windup). K_p = K_d = 0 is close to `adaptive` with gain K_i. KL in
    nats per sequence, once per rollout. State: `beta`, `integral`, and `error` after the first update.
    Source: the form of Stooke et al. 2020 (PID on a Lagrange multiplier), on log β; the gains are this project's.
    """

    kind, name = "kl_controller", "pid"
    beta: float = param(0.1, "β_0", gt=0, allow_inf_nan=False)
    target: float = param(
        6.0, "KL*", gt=0, allow_inf_nan=False, unit="nats per sequence", source="lm-human-preferences launch.py, style tasks"
    )
    proportional: float = param(0.2, "K_p, on the error", ge=0, le=10)
    integral: float = param(0.1, "K_i, on the sum of errors", ge=0, le=10)
    derivative: float = param(0.0, "K_d, on the change of the error", ge=0, le=10)
    clip: float = param(1.0, "c, largest relative error that is acted on", gt=0, le=1)
    integral_limit: float = param(60.0, "L, clamp of the sum of errors", gt=0, le=1000)

    def start(self):
        return {"beta": self.beta, "integral": 0.0}

    def update(self, state, kl, n_sequences):
        error = clamp((kl - self.target) / self.target, self.clip)
        total = clamp(state["integral"] + error, self.integral_limit)
        change = error - state.get("error", error)
        exponent = self.proportional * error + self.integral * total + self.derivative * change
        return {"beta": self.beta * math.exp(clamp(exponent, 100.0)), "integral": total, "error": error}


@hookimpl
def register_components(register):
    register(PID)
