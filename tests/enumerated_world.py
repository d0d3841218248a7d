"""The enumerable world with everything that is known about it, for tests of policies by enumeration."""

from dataclasses import dataclass

import torch
from tiny_world import component

from rlhf_lab.lm.tokens import Encoder
from rlhf_lab.proof import exact
from rlhf_lab_plugins.model.tabular import ContextTable
from rlhf_lab_plugins.reward.table import Table

BETA = 0.5
DATA = {"name": "enumerable", "words": 3, "length": 3}
TINY = {"name": "scratch", "hidden_size": 16, "layers": 1, "heads": 2}
RL = {
    "policy": "tabular", "critic": "none", "reward": "table", "advantage": "monte_carlo", "objective": ["ppo_clip"],
    "kl": {"name": "fixed", "beta": BETA}, "aggregation": "constant", "whiten_advantages": "none", "max_grad_norm": None,
    "learning_rate": 0.05, "response_length": 3, "batch_size": 64, "evaluation": {"every": 10_000, "log_samples": 0},
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """Everything about the world's prompts: the reference's law and the rewards, each of shape (X, N)."""

    world: object
    encoder: Encoder
    everything: list
    ref_XN: torch.Tensor
    rewards_XN: torch.Tensor

    def law(self, model) -> torch.Tensor:
        return torch.stack([
            exact.response_logprobs(exact.next_token_logprobs(model, rollout, self.world.space), self.world.space)
            for rollout in self.everything
        ])  # fmt: skip

    def kl_and_reward(self, law_XN) -> tuple[float, float]:
        return exact.kl(law_XN, self.ref_XN).mean().item(), exact.expectation(law_XN, self.rewards_XN).mean().item()

    def gap(self, law_XN) -> float:
        """How far the policy lies below the frontier."""
        kl, reward = self.kl_and_reward(law_XN)
        return exact.frontier(self.ref_XN, self.rewards_XN, kl) - reward


def known(reference=None, data=DATA, reward=Table()) -> Known:  # noqa: B008
    """The world with a reference model; default: the table that wrote its demonstrations."""
    world = component("data", data).open(None)
    encoder = Encoder(world.tokenizer(), component("template", "none"), world.context)
    everything = [exact.all_responses(encoder, prompt, world.space) for prompt in world.prompts("validation")]
    rewards_XN = torch.stack([reward.open(None)(rollout).scores_B.double() for rollout in everything])
    blank = Known(world, encoder, everything, rewards_XN, rewards_XN)
    return Known(world, encoder, everything, blank.law(reference or ContextTable(world.language().float())), rewards_XN)
