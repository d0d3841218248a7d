"""Supervised training, as SFT and reward models share it: epochs of shuffled batches under a learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from rlhf_lab.checkpoint import Checkpoint, load_optimizer, optimizer_tensors
from rlhf_lab.context import StageContext
from rlhf_lab.contracts import Component, param
from rlhf_lab.errors import NumericsError
from rlhf_lab.lm.adapters import with_adapter
from rlhf_lab.lm.files import freeze_embeddings, set_dropout
from rlhf_lab.lm.precision import ready
from rlhf_lab.schedule import Schedule, rate, set_rates


class SupervisedParameters(Component):
    """The parameters that every supervised stage has."""

    seed: int | Literal["run"] = param(0, "a number: the same in every run; 'run': the seed of the run")
    epochs: int = param(1, "passes over the examples", ge=1)
    batch_size: int = param(32, "examples per optimiser step", ge=1)
    microbatch_size: int | None = param(None, "examples per forward pass; changes memory, not numbers", ge=1)
    learning_rate: float = param(1e-3, "at the top of the schedule", gt=0, allow_inf_nan=False)
    schedule: Schedule = param("cosine", "of the learning rate over all epochs")
    floor: float = param(
        0.1, "the schedule ends at this share of the learning rate", ge=0, le=1, source="Ouyang et al. 2022, C.1"
    )
    warmup_steps: int = param(0, "optimiser steps of linear warm-up from 0", ge=0)
    adam_betas: tuple[float, float] = param((0.9, 0.95), "Adam β1, β2", source="Ouyang et al. 2022, C")
    adam_eps: float = param(1e-8, "Adam ε", gt=0)
    weight_decay: float = param(0.0, "decoupled weight decay", ge=0)
    max_grad_norm: float | None = param(1.0, "clip of the gradient norm; null for none", gt=0)
    dropout: float = param(0.0, "residual and attention dropout while training", ge=0, lt=1)
    adaptation: Literal["full", "lora"] = param("full", "what is trained; an adapter is merged when the stage is saved")
    lora_rank: int = param(16, "r", ge=1)
    lora_alpha: float = param(32.0, "α; the update is scaled by α/r", gt=0)
    freeze_embeddings: bool = param(False, "with `full`: leave the embedding (and a tied output layer) as it is")


def prepared(cfg: SupervisedParameters, ctx: StageContext, model: Any) -> Any:
    """The model with what is to be trained made trainable."""
    if cfg.dropout:
        set_dropout(model, cfg.dropout)
    model = ready(model, ctx, frozen=cfg.adaptation == "lora")
    if cfg.adaptation == "lora":
        return with_adapter(model, cfg.lora_rank, cfg.lora_alpha, ctx.torch_rng("lora"))
    if cfg.freeze_embeddings:
        freeze_embeddings(model)
    return model


def fit(
    cfg: SupervisedParameters,
    ctx: StageContext,
    module: nn.Module,
    n_examples: int,
    gradient: Callable[[int, np.ndarray], Mapping[str, float]],
    after_epoch: Callable[[int, int], None],
) -> None:
    """Adam on all examples, `cfg.epochs` times. `gradient(step, index)` accumulates the gradient of a batch and returns
    metrics; `after_epoch(epoch, step)` validates. The last batch of an epoch may be smaller.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=cfg.learning_rate, betas=cfg.adam_betas, eps=cfg.adam_eps, weight_decay=cfg.weight_decay, fused=True
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = cfg.learning_rate
    per_epoch = math.ceil(n_examples / cfg.batch_size)
    total = cfg.epochs * per_epoch
    start = restore(module, optimizer, ctx.resume())
    for epoch in range(start // per_epoch, cfg.epochs):
        order = ctx.rng("examples", epoch).permutation(n_examples)
        for batch in range(max(0, start - epoch * per_epoch), per_epoch):
            step = epoch * per_epoch + batch
            set_rates(optimizer, rate(step, total, cfg.schedule, warmup=cfg.warmup_steps, floor=cfg.floor))
            optimizer.zero_grad(set_to_none=True)
            with dropout_on(cfg, ctx, module, step):
                metrics = dict(gradient(step, order[batch * cfg.batch_size : (batch + 1) * cfg.batch_size]))
            norm = nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm or math.inf)
            if not math.isfinite(metrics["loss"]):
                raise NumericsError(f"stage {ctx.stage}: the loss is {metrics['loss']} at step {step}; lower the learning rate")
            optimizer.step()
            ctx.log(step, "train", **metrics, grad_norm=norm.item(), learning_rate=optimizer.param_groups[0]["lr"])
            ctx.report(step + 1, total, f"loss {metrics['loss']:.3f}")
            if batch + 1 < per_epoch:
                ctx.step_done(step + 1, lambda: (snapshot(module, optimizer), {}))
        after_epoch(epoch, (epoch + 1) * per_epoch)
        if epoch + 1 < cfg.epochs:
            ctx.step_done((epoch + 1) * per_epoch, lambda: (snapshot(module, optimizer), {}))


def snapshot(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    weights = {f"weights.{name}": p for name, p in module.named_parameters() if p.requires_grad}
    return weights | optimizer_tensors(optimizer)


@torch.no_grad()
def restore(module: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint | None) -> int:
    """Puts a snapshot back; returns the step to go on with."""
    if checkpoint is None:
        return 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(checkpoint.tensors[f"weights.{name}"])
    load_optimizer(optimizer, checkpoint.tensors)
    return checkpoint.step


class dropout_on:
    """Inside, the module trains with dropout drawn from the stage's stream; without dropout it stays in eval mode."""

    def __init__(self, cfg: SupervisedParameters, ctx: StageContext, module: nn.Module, step: int) -> None:
        self.rate, self.module = cfg.dropout, module
        self.seed = int(ctx.rng("dropout", step).integers(2**63)) if cfg.dropout else 0

    def __enter__(self) -> None:
        if self.rate:
            self.fork = torch.random.fork_rng()
            self.fork.__enter__()
            torch.manual_seed(self.seed)
            self.module.train()

    def __exit__(self, *error: Any) -> None:
        if self.rate:
            self.module.eval()
            self.fork.__exit__(*error)
