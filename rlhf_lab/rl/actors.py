"""The live slots of one run, and what of them goes into a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.context import StageContext
from rlhf_lab.rl.ema import WeightAverage
from rlhf_lab.rl.parameters import RLParameters
from rlhf_lab.store.checkpoint import Checkpoint, load_optimizer, optimizer_tensors


@dataclass
class Actors:
    """The live slots of one run: four models, and the state that goes from one iteration to the next.

    `baseline_gold_B`: gold of the answers that win rates are against, one per held-out prompt and sample.
    """

    policy: Any
    critic: Any
    reward: Any
    gold: Any
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    kl_state: dict[str, float]
    advantage_state: dict[str, float] = field(default_factory=dict)
    baseline_gold_B: Tensor | None = None


def open_actors(cfg: RLParameters, ctx: StageContext) -> Actors:
    policy = cfg.policy.build(ctx)
    critic = cfg.critic.build(ctx, policy) if "values" in cfg.asks_for else None
    return Actors(
        policy,
        critic,
        cfg.reward.open(ctx),
        cfg.gold.open(ctx) if cfg.gold else None,
        new_optimizer(cfg, policy, critic),
        WeightAverage(policy.module, cfg.ema),
        dict(cfg.kl.start()),
    )


def new_optimizer(cfg: RLParameters, policy: Any, critic: Any) -> torch.optim.Optimizer:
    """Adam over policy and critic, each at its own learning rate."""
    groups = [{"params": trainable(policy.module), "lr": cfg.learning_rate}]
    if critic is not None:
        groups.append({"params": trainable(critic.module), "lr": cfg.critic.learning_rate})
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.Adam(groups, betas=cfg.adam_betas, eps=cfg.adam_eps, fused=True)


def trainable(module: torch.nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def snapshot(actors: Actors) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that step n gives to step n + 1, as tensors and as JSON."""
    tensors = {f"average.{name}": value for name, value in actors.average.average.items()}
    for label, actor in (("policy", actors.policy), ("critic", actors.critic)):
        if actor is not None:
            tensors |= {f"{label}.{name}": p for name, p in actor.module.named_parameters() if p.requires_grad}
    if actors.baseline_gold_B is not None:
        tensors["baseline_gold_B"] = actors.baseline_gold_B
    scorers = {label: scorer.state_dict() for label, scorer in scorers_with_state(actors).items()}
    state = {"kl": actors.kl_state, "advantage": dict(actors.advantage_state), "scorers": scorers}
    return tensors | optimizer_tensors(actors.optimizer), state


@torch.no_grad()
def restore(actors: Actors, checkpoint: Checkpoint | None) -> int:
    """Puts a snapshot back; returns the step to go on with."""
    if checkpoint is None:
        return 0
    tensors = checkpoint.tensors
    for label, actor in (("policy", actors.policy), ("critic", actors.critic)):
        for name, parameter in actor.module.named_parameters() if actor is not None else ():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"{label}.{name}"])
    for name, value in actors.average.average.items():
        value.copy_(tensors[f"average.{name}"])
    load_optimizer(actors.optimizer, tensors)
    if "baseline_gold_B" in tensors:
        actors.baseline_gold_B = tensors["baseline_gold_B"].to(actors.policy.module.device)
    actors.kl_state, actors.advantage_state = dict(checkpoint.state["kl"]), dict(checkpoint.state["advantage"])
    for label, scorer in scorers_with_state(actors).items():
        scorer.load_state_dict(checkpoint.state["scorers"][label])
    return checkpoint.step


def scorers_with_state(actors: Actors) -> dict[str, Any]:
    """Reward sources that keep something between calls, such as running moments."""
    return {label: s for label, s in (("reward", actors.reward), ("gold", actors.gold)) if hasattr(s, "state_dict")}
