"""Ziegler's proportional controller of the KL coefficient."""

from rlhf_lab.contracts import Component, hookimpl, param


def proportional_step(beta: float, kl: float, target: float, gain: float, clip: float) -> float:
    """β_{t+1} = β_t (1 + K e_t) with e_t = clip((KL_t − KL*) / KL*, ±clip) (Ziegler et al. 2019, section 2.2)."""
    error = max(-clip, min(clip, (kl - target) / target))
    return beta * (1 + gain * error)


class Adaptive(Component):
    """Moves β so that the KL per sequence approaches a target.

    KL is in nats per sequence, once per rollout. The gain is explicit because the sources disagree: the paper has
    K = 0.1, its released code K = batch / horizon = 512 / 10000 = 0.0512.
    """

    kind, name = "kl_controller", "adaptive"
    beta: float = param(0.15, "β at the start", gt=0, allow_inf_nan=False, source="lm-human-preferences launch.py, style tasks")
    target: float = param(
        6.0,
        "KL that is aimed at",
        gt=0,
        allow_inf_nan=False,
        unit="nats per sequence",
        source="lm-human-preferences launch.py, style tasks",
    )
    gain: float = param(
        0.1, "K, relative change of β per update and unit of error", gt=0, le=1, source="Ziegler et al. 2019, 2.2"
    )
    clip: float = param(0.2, "largest relative error that is acted on", gt=0, le=1, source="Ziegler et al. 2019, 2.2")

    def start(self):
        return {"beta": self.beta}

    def update(self, state, kl, n_sequences):
        return {"beta": proportional_step(state["beta"], kl, self.target, self.gain, self.clip)}


@hookimpl
def register_components(register):
    register(Adaptive)
