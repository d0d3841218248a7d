"""Another estimator's advantages, whitened and then clipped."""

from typing import Literal

from rlhf_lab.contracts import Component, hookimpl, param, slot
from rlhf_lab.rl import masked


class NormalizedClipped(Component):
    """A ← clip((A − mean)/std, ±c), mean and std over all tokens of the batch; returns stay as they are.

    Whitens by itself, so `whiten_advantages: none`. Needs what its source needs.
    Source: Zheng et al. 2023 (PPO-max), section 5.3.1; c as in MOSS-RLHF's code.
    """

    kind, name = "advantage", "normalized_clipped"
    source: slot("advantage") = param("gae", "whose advantages")
    clip: float = param(0.5, "c", gt=0, unit="standard deviations", source="MOSS-RLHF, advantage_clip")
    ddof: Literal[0, 1] = param(0, "variance: 0 biased, 1 unbiased")

    @property
    def needs(self):
        return self.source.needs

    def estimate(self, batch, state):
        estimate = self.source.estimate(batch, state)
        white_BT = masked.whiten(estimate.advantages_BT, batch.mask_BT, ddof=self.ddof)
        return estimate._replace(advantages_BT=white_BT.clamp(-self.clip, self.clip))


@hookimpl
def register_components(register):
    register(NormalizedClipped)
