"""TODO: one line on what this term of the loss does."""

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import Loss


class Skeleton(Component):
    """L = −E[min(ρ, bound) A], ρ = π(y_t) / π_old(y_t) per token. TODO: your equation.

    Make a number per token and hand it to `batch.aggregate` (or `aggregate_values`, `token_mean`): these carry the weights
    of the whole minibatch, so that micro-batches add up. `needs` lists what is read beyond log-probs and advantages:
    "entropy", "values", "ref_logprobs", "pretrain". Metric: `bounded_fraction`. Source: TODO (author, year, equation).
    """

    kind, name, needs = "objective", "skeleton", frozenset()
    weight: float = param(1.0, "weight in the loss", ge=0)
    bound: float = param(2.0, "TODO: what this parameter does", gt=0, allow_inf_nan=False)

    def loss(self, new, batch):
        ratio_BT = (new.logprobs_BT - batch.old_logprobs_BT).exp()
        loss_BT = -ratio_BT.clamp(max=self.bound) * batch.advantages_BT
        return Loss(batch.aggregate(loss_BT), {"bounded_fraction": batch.token_mean((ratio_BT > self.bound).float())})


@hookimpl
def register_components(register):
    register(Skeleton)
