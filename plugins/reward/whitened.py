"""Another reward at unit spread, where it is."""

from rlhf_lab.contracts import Component, hookimpl, param, slot
from rlhf_lab_plugins.reward.scaled import RunningScale


class Whitened(Component):
    """(r − μ)/σ + μ: the spread becomes 1 and the mean stays, so that a reward that rises is still seen to rise.

    μ, σ over all scores of earlier batches, of the first batch itself in that (σ with ddof 0, at least `floor`). Column
    `unscaled`. State: `count`, `mean`, `m2`. For the same on token rewards, batch by batch, see `whiten_rewards` of rl.
    Source: lm-human-preferences `utils/core.py`, whiten with shift_mean=False, there on the token rewards of a batch.
    """

    kind, name = "reward", "whitened"
    source: slot("reward") = param(..., "the reward that is whitened")
    floor: float = param(1e-4, "smallest σ that is divided by", gt=0, unit="score")

    def open(self, ctx):
        return RunningScale(
            self.source, ctx, self.floor, lambda scores_B, mean, deviation: (scores_B - mean) / deviation + mean
        )


@hookimpl
def register_components(register):
    register(Whitened)
