"""A PID controller of the KL, on log β, in velocity form."""

from rlhf_lab import Component, hookimpl, param


class PID(Component):
    """log β += p·(e_t − e_{t−1}) + i·e_t + d·(e_t − 2e_{t−1} + e_{t−2}), e = (KL − target) / target."""

    kind, name = "kl_controller", "velocity_pid"
    beta: float = param(0.1, "β at the start", gt=0)
    target: float = param(1.0, "KL that is aimed at", gt=0, unit="nats per sequence")
    p: float = param(0.5, "proportional gain", ge=0, le=10)
    i: float = param(0.1, "integral gain", ge=0, le=10, source="Åström & Hägglund 1995")
    d: float = param(0.05, "derivative gain", ge=0, le=10)

    def start(self):
        return {"beta": self.beta, "error": 0.0, "before": 0.0}

    def update(self, state, kl, n_sequences):
        e, last, before = (kl - self.target) / self.target, state["error"], state["before"]
        step = self.p * (e - last) + self.i * e + self.d * (e - 2 * last + before)
        return {"beta": state["beta"] * 2.718281828459045**step, "error": e, "before": last}


@hookimpl
def register_components(register):
    register(PID)
