"""Step 5 of the loop: inner epochs of shuffled minibatches over one batch of rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import processes
from rlhf_lab.context import StageContext
from rlhf_lab.contracts import Minibatch, PolicyOutput, Rollout
from rlhf_lab.lm.tokens import microbatch_rows, trim
from rlhf_lab.rl import aggregation, masked, rewards
from rlhf_lab.rl.actors import Actors, trainable
from rlhf_lab.rl.not_finite import all_finite, may_step
from rlhf_lab.rl.parameters import RLParameters
from rlhf_lab.streams import shuffled_batches


@dataclass(frozen=True)
class Batch:
    """One batch of rollouts with everything that the update reads. `trained_B`: the sequences that count; None: all."""

    rollout: Rollout
    old_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    values_BT: Tensor | None
    scores_B: Tensor
    beta: float
    trained_B: Tensor | None = None


def update(cfg: RLParameters, ctx: StageContext, actors: Actors, batch: Batch, step: int) -> dict[str, float]:
    """Trains policy and critic on one batch; returns metrics averaged over the optimiser steps, and some of the first."""
    history: list[dict[str, float]] = []
    for epoch in range(cfg.inner_epochs):
        order = torch.from_numpy(ctx.rng("minibatches", step, epoch).permutation(len(batch.rollout)))
        for number, index in enumerate(order.chunk(cfg.minibatches)):
            if batch.trained_B is not None and not batch.trained_B[index].any():
                continue  # nothing in it counts (truncation: mask)
            position = ((step * cfg.inner_epochs + epoch) * cfg.minibatches + number) * len(index)
            history.append(optimizer_step(cfg, ctx, actors, batch, index, position, hold_policy=step < cfg.critic_warmup))
            actors.average.update()
    if not history:
        return {}
    mean = {name: sum(row[name] for row in history) / len(history) for name in history[0]}
    if left_out := sum(not all_finite(row) for row in history):
        mean["not_finite"] = left_out
    return mean | {f"first_{name}": history[0][name] for name in ("ratio", "clip_fraction", "approx_kl") if name in history[0]}


def optimizer_step(
    cfg: RLParameters,
    ctx: StageContext,
    actors: Actors,
    batch: Batch,
    index: Tensor,
    position: int,
    hold_policy: bool = False,
) -> dict[str, float]:
    """One step of Adam on the minibatch at `index`; its gradient does not depend on the micro-batches.

    `position` counts the episodes trained on so far: where the next pretraining texts are read, if a term wants them.
    `hold_policy`: its gradient is dropped, so that it and Adam's moments of it stay as they are.
    """
    metrics: dict[str, Tensor] = {}
    actors.optimizer.zero_grad(set_to_none=True)
    on_rollouts = [term for term in cfg.objective if "pretrain" not in term.needs]
    if on_rollouts:
        for rollout, part in microbatches(batch.rollout.rows(index), select(cfg, batch, index), cfg.microbatch_size):
            backward(cfg, ctx, actors, on_rollouts, rollout, part, metrics)
    for term in cfg.objective:
        if "pretrain" in term.needs:
            texts, minibatch = pretraining(cfg, ctx, actors, term.ratio * len(index), term.ratio * position)
            for rollout, part in microbatches(texts, minibatch, cfg.microbatch_size):
                backward(cfg, ctx, actors, [term], rollout, part, metrics)
    processes.add_up_gradients([p for group in actors.optimizer.param_groups for p in group["params"]])
    metrics = processes.add_up(metrics)
    if hold_policy:
        actors.policy.module.zero_grad(set_to_none=True)
    metrics |= clip_gradients(cfg, actors)
    row = {name: float(value) for name, value in metrics.items()}
    if may_step(row, cfg.on_nan, f"stage {ctx.stage}"):
        actors.optimizer.step()
    return row


def backward(
    cfg: RLParameters,
    ctx: StageContext,
    actors: Actors,
    terms: Sequence[Any],
    rollout: Rollout,
    part: Minibatch,
    metrics: dict[str, Tensor],
) -> None:
    """Adds the gradient of Σ weight · term on one micro-batch; adds each term and its metrics to `metrics`."""
    with ctx.accelerator.autocast():
        new = forward(cfg, actors, terms, rollout, part.mask_BT)
        losses = [(term, term.loss(new, part)) for term in terms]
    sum(term.weight * loss.value for term, loss in losses).backward()
    for term, loss in losses:
        for name, value in {f"loss_{term.name}": loss.value, **loss.metrics}.items():
            metrics[name] = metrics.get(name, 0.0) + value.detach()


def forward(cfg: RLParameters, actors: Actors, terms: Sequence[Any], rollout: Rollout, mask_BT: Tensor) -> PolicyOutput:
    """The differentiable quantities that the terms asked for, zero in masked places. Text of pretraining is at τ = 1."""
    needs = frozenset().union(*(term.needs for term in terms))
    temperature = 1.0 if "pretrain" in needs else cfg.scoring_temperature
    output = actors.policy.forward(rollout, temperature=temperature, entropy="entropy" in needs, kl="full_kl" in needs)
    values_BT = getattr(actors.critic, "heads", actors.critic.values)(rollout) if "values" in needs else None
    return PolicyOutput(
        output.logprobs_BT.masked_fill(~mask_BT, 0.0),
        output.entropy_BT.masked_fill(~mask_BT, 0.0) if "entropy" in needs else None,
        None if values_BT is None else rewards.held(values_BT, rollout).masked_fill(~rollout.places_BT, 0.0),
        output.kl_BT.masked_fill(~mask_BT, 0.0) if "full_kl" in needs else None,
    )


def select(cfg: RLParameters, batch: Batch, index: Tensor) -> Minibatch:
    """The minibatch at `index`, with the weights that its aggregation gives each token."""
    trained_B1 = True if batch.trained_B is None else batch.trained_B[index, None]
    mask_BT, places_BT = batch.rollout.mask_BT[index] & trained_B1, batch.rollout.places_BT[index] & trained_B1
    advantages_BT = batch.advantages_BT[index]
    if cfg.whiten_advantages == "minibatch":
        advantages_BT = masked.whiten(advantages_BT, mask_BT, **cfg.advantage_whitening)
    picked = {
        name: None if (value := getattr(batch, name)) is None else value[index]
        for name in ("old_logprobs_BT", "ref_logprobs_BT", "returns_BT", "scores_B", "values_BT")
    }
    clean = {
        name: value if value is None or value.dim() == 1 else value.masked_fill(~places_BT, 0.0)
        for name, value in picked.items()
    }
    return Minibatch(
        mask_BT=mask_BT,
        advantages_BT=advantages_BT.masked_fill(~mask_BT, 0.0),
        beta=batch.beta,
        weights_BT=aggregation.weights(mask_BT, cfg.aggregation, cfg.response_length),
        state_weights_BT=aggregation.weights(places_BT, cfg.aggregation, cfg.response_length),
        token_weights_BT=aggregation.weights(mask_BT, "token_mean", cfg.response_length),
        old_values_BT=clean.pop("values_BT"),
        **clean,
    )


def microbatches(rollout: Rollout, minibatch: Minibatch, size: int | None) -> Iterator[tuple[Rollout, Minibatch]]:
    """Parts of at most `size` of this process's sequences, each cut to its longest prompt and response."""
    mine = processes.share(len(rollout))
    for rows in (mine[rows] for rows in microbatch_rows(rollout.rows(mine), size) if len(rows)):
        part = trim(rollout.rows(rows))
        width = part.mask_BT.shape[1]
        cut = {
            name: value if not isinstance(value, Tensor) else value[rows] if value.dim() == 1 else value[rows, :width]
            for name, value in vars(minibatch).items()
        }
        yield part, Minibatch(**cut)


def pretraining(cfg: RLParameters, ctx: StageContext, actors: Actors, n_texts: int, position: int) -> tuple[Rollout, Minibatch]:
    """The next pretraining texts, as a minibatch of their own with token-mean weights."""
    texts = ctx.data.pretraining("train")
    chosen = shuffled_batches(len(texts), n_texts, position, ctx.seed, "pretraining")
    rollout = actors.policy.encode_texts([texts[i] for i in chosen])
    mask_BT = rollout.mask_BT
    nothing_BT, nothing_B = torch.zeros_like(mask_BT, dtype=torch.float32), torch.zeros(len(rollout))
    weights_BT = aggregation.weights(mask_BT, "token_mean", cfg.response_length)
    return rollout, Minibatch(
        mask_BT,
        weights_BT,
        weights_BT,
        old_logprobs_BT=nothing_BT,
        advantages_BT=nothing_BT,
        returns_BT=nothing_BT,
        scores_B=nothing_B,
        beta=0.0,
    )


def clip_gradients(cfg: RLParameters, actors: Actors) -> dict[str, Tensor]:
    """Norms before the clip, of policy and critic each."""
    limit = float("inf") if cfg.max_grad_norm is None else cfg.max_grad_norm
    modules = {"policy": actors.policy, "critic": actors.critic}
    return {
        f"grad_norm_{name}": torch.nn.utils.clip_grad_norm_(trainable(actor.module), limit)
        for name, actor in modules.items()
        if actor is not None
    }
