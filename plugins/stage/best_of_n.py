"""Best-of-n from a policy, by the unbiased estimator: the yardstick beside which an optimiser is drawn."""

import math
from typing import Literal

import numpy as np

from rlhf_lab.best_of_n import best_of_n, best_of_n_kl
from rlhf_lab.contracts import Component, StageRef, hookimpl, param, slot
from rlhf_lab.lm.files import load_causal_lm, load_encoder
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.sampling import rollout
from rlhf_lab.rl.rewards import checked


class BestOfN(Component):
    """E[proxy] and E[gold] of the response that the proxy likes best among n, for each n at once from N samples.

    Unbiased for every n ≤ N (Nakano et al. 2021, appendix I); KL = log n − (n − 1)/n nats, exact for rewards without ties
    and otherwise an upper bound. Steps rows of split `validation`: n, kl, reward_proxy, reward_gold, and the standard errors
    of both over the prompts; of split `frontier`: the highest proxy that any policy can have at a KL, with its β, as far as
    the same samples can tell (`rlhf_lab.frontier`).
    """

    kind, name = "stage", "best_of_n"
    seed: int | Literal["run"] = param(0, "a number: the same in every run; 'run': the seed of the run")
    policy: StageRef = param("sft", "what is sampled from")
    reward: slot("reward") = param("reward_model", "what chooses")
    gold: slot("reward") | None = param(None, "what is also measured")
    prompts: int = param(64, "held-out prompts", ge=1)
    samples: int = param(256, "N, responses to each prompt", ge=2)
    n: list[int] = param([1, 2, 4, 8, 16, 32, 64, 128], "the values of n", min_length=1)
    response_length: int = param(28, "longest response", ge=1, unit="tokens")
    temperature: float = param(1.0, "of sampling", gt=0)

    def run(self, ctx):
        model = ready(load_causal_lm(ctx.input(self.policy)), ctx, frozen=True)
        encoder, reward = load_encoder(ctx.input(self.policy), ctx.template), self.reward.open(ctx)
        gold = self.gold.open(ctx) if self.gold else None
        rows, proxies = [], []
        for number, prompt in enumerate(prompts := ctx.data.prompts("validation")[: self.prompts]):
            with ctx.accelerator.autocast():
                sampled = rollout(
                    model,
                    encoder,
                    [prompt],
                    ctx.rng("best_of_n", number),
                    samples=self.samples,
                    response_length=self.response_length,
                    temperature=self.temperature,
                )
                proxy_N = checked(self.reward.name, reward(sampled), sampled).scores_B.cpu().numpy()
                gold_N = checked(self.gold.name, gold(sampled), sampled).scores_B.cpu().numpy() if gold else proxy_N * math.nan
            proxies.append(proxy_N)
            rows.append([(best_of_n(proxy_N, proxy_N, n), best_of_n(proxy_N, gold_N, n)) for n in self.sizes])
            ctx.report(number + 1, len(prompts), "")
        for n, values in zip(self.sizes, np.array(rows).transpose(1, 2, 0), strict=True):
            errors = values.std(1, ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else [math.nan, math.nan]
            ctx.log(
                0,
                "validation",
                n=n,
                kl=best_of_n_kl(n),
                reward_proxy=values[0].mean(),
                reward_gold=values[1].mean(),
                reward_proxy_se=errors[0],
                reward_gold_se=errors[1],
            )
        from rlhf_lab.frontier import estimated_frontier  # pandas and scipy: not needed to plan

        for place, point in enumerate(estimated_frontier(np.stack(proxies)).table().to_dict("records")):
            ctx.log(place, "frontier", **point)

    @property
    def sizes(self):
        return [n for n in self.n if n <= self.samples]


@hookimpl
def register_components(register):
    register(BestOfN)
