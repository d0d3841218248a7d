"""The reward–KL frontier and best-of-n by enumeration of every response, where the world is small enough."""

from typing import ClassVar

import torch

from rlhf_lab.contracts import Component, StageRef, hookimpl, param, slot
from rlhf_lab.errors import DataError
from rlhf_lab.lm.files import load_causal_lm, load_encoder
from rlhf_lab.lm.tokens import Encoder
from rlhf_lab.proof import exact
from rlhf_lab.rl.rewards import checked


class Enumeration(Component):
    """What `best_of_n` estimates from samples, as sums over all responses of data `enumerable`, in float64.

    Named `best_of_n` in a spec it stands in that stage's place: steps rows of split `validation` are best-of-n, with ties as
    they are (Beirami et al. 2024, lemma 1); of split `frontier` the highest reward that any policy can have at a KL, which
    gives the other stages' rows `reward_optimal_at_kl` and `frontier_gap`.
    """

    kind, name = "stage", "enumeration"
    seed: ClassVar[int] = 0
    policy: StageRef | None = param(None, "whose law is the reference; default: the model of the spec, such as tabular")
    reward: slot("reward") = param(..., "what is maximised, and chooses the best of n")
    n: list[int] = param([1, 2, 4, 8, 16, 32, 64, 128], "the values of n", min_length=1)
    temperature: float = param(1.0, "of the reference", gt=0)

    def run(self, ctx):
        if not hasattr(ctx.data, "space"):
            raise DataError(f"stage {ctx.stage} lists every response; set data: enumerable, or take stage best_of_n")
        space, (model, encoder), reward = ctx.data.space, self.reference(ctx), self.reward.open(ctx)
        everything = [exact.all_responses(encoder, prompt, space) for prompt in ctx.data.prompts("validation")]
        tables = [exact.next_token_logprobs(model, rollout, space, self.temperature) for rollout in everything]
        ref_XN = torch.stack([exact.response_logprobs(table_SV, space) for table_SV in tables])
        rewards_XN = torch.stack([checked(self.reward.name, reward(r), r).scores_B.double() for r in everything])
        for n in self.n:
            law_XN = torch.stack([exact.best_of_n(*pair, n) for pair in zip(ref_XN, rewards_XN, strict=True)])
            kl, proxy = exact.kl(law_XN, ref_XN).mean(), exact.expectation(law_XN, rewards_XN).mean()
            ctx.log(0, "validation", n=n, kl=kl, reward_proxy=proxy, reward_proxy_se=0.0)
        from rlhf_lab.frontier import exact_frontier  # pandas and scipy: not needed to plan

        points = exact_frontier(ref_XN, rewards_XN).table().drop_duplicates(["kl", "reward_proxy"])  # all alike as β → 0
        for place, point in enumerate(points.to_dict("records")):
            ctx.log(place, "frontier", **point)

    def reference(self, ctx):
        """The model and the encoder of the policy that is the reference."""
        if self.policy is not None:
            return load_causal_lm(ctx.input(self.policy)), load_encoder(ctx.input(self.policy), ctx.template)
        model, tokenizer = ctx.base_model
        return model.eval(), Encoder(tokenizer, ctx.template, ctx.data.context)


@hookimpl
def register_components(register):
    register(Enumeration)
