"""TODO: one line on what this loss does."""

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import Ranking


class Skeleton(Component):
    """L = max(0, margin − (D_w − D_l)), D = log π(y|x) − log ref(y|x), nats per sequence. TODO: your equation.

    `examples` makes pairs, rated (1, 0) in this order, or single responses rated 1 or 0. `needs` lists what is read beyond the
    log-probs: "reference", and "mismatched" for a baseline of the whole batch. If a constant added to both log-probs of a
    pair changes the loss, say so here. Source: TODO (author, year, equation).
    """

    kind, name, needs = "preference_loss", "skeleton", frozenset({"reference"})
    margin: float = param(1.0, "TODO: what this parameter does", gt=0, allow_inf_nan=False, unit="nats per sequence")

    def examples(self, rankings):
        return [
            Ranking(r.prompt, (r.completions[w], r.completions[n]), (1.0, 0.0), r.ended and (r.ended[w], r.ended[n]))
            for r in rankings
            for w in range(len(r.completions))
            for n in range(len(r.completions))
            if r.ratings[w] > r.ratings[n]
        ]

    def losses(self, batch):
        preferred_B, other_B = batch.log_ratios_BK.unbind(1)
        return (self.margin - (preferred_B - other_B)).clamp(min=0.0)


@hookimpl
def register_components(register):
    register(Skeleton)
