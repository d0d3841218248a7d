"""One optimiser step of the tiny world in this process, or in one of several: the gradients and metrics, to a file.

gradients.py WORLD OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT where there are several.
"""

import json
import sys
from pathlib import Path

import tiny_world
import torch
from safetensors.torch import save_file

from rlhf_lab import processes
from rlhf_lab.rl import loop, update
from rlhf_lab.rl.actors import open_actors
from rlhf_lab.rl.kl import sequence_kl

RL = {
    "reward": "words",
    "reward_model": "reward_model",
    "objective": [
        "ppo_clip",
        {"name": "value_clip", "weight": 0.5},
        {"name": "entropy", "weight": 0.01},
        {"name": "pretrain_mix", "weight": 0.3},
    ],
    "batch_size": 7,
    "minibatches": 1,
    "microbatch_size": 2,
    "response_length": 6,
    "max_grad_norm": None,
    "aggregation": "token_mean",
}


def main(world, out):
    torch.set_num_threads(1)
    processes.connect()
    parameters = {key: value for key, value in RL.items() if key != "reward_model"}
    ctx = tiny_world.context("rl", parameters, Path(out).parent, Path(world))
    cfg = ctx.config.stages["rl"]
    actors = open_actors(cfg, ctx)
    batch = rolled_out(cfg, ctx, actors)
    metrics = update.optimizer_step(cfg, ctx, actors, batch, torch.arange(7), 0)
    named = {
        f"{label}.{name}": p for label in ("policy", "critic") for name, p in getattr(actors, label).module.named_parameters()
    }
    if processes.rank() == 0:
        save_file({name: p.grad for name, p in named.items() if p.grad is not None}, out)
        Path(out).with_suffix(".json").write_text(json.dumps(metrics))


def rolled_out(cfg, ctx, actors):
    """Rollouts with made-up advantages and returns; in every process the same."""
    prompts = ctx.data.prompts("train")[:7]
    with torch.no_grad():
        rollout = actors.policy.rollout(prompts, ctx.rng("rollout", 0), response_length=6, temperature=cfg.temperature)
        old = loop.measured(cfg, actors.policy, rollout).logprobs_BT
        values_BT, _ = loop.state_values(cfg, actors, rollout)
    noise = torch.Generator().manual_seed(3)
    advantages_BT, returns_BT = (torch.randn(rollout.mask_BT.shape, generator=noise) * rollout.mask_BT for _ in range(2))
    assert torch.isfinite(sequence_kl(old, old, rollout.mask_BT)).all()
    return update.Batch(rollout, old, old - 0.1, advantages_BT, returns_BT, values_BT, torch.zeros(7), 0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
