"""Training on a fixed list of examples, which all stages but RL share: epochs of shuffled batches under a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from rlhf_lab.context import StageContext
from rlhf_lab.contracts import Component, param
from rlhf_lab.lm.adapters import with_adapter
from rlhf_lab.lm.files import freeze_embeddings, set_dropout
from rlhf_lab.lm.precision import ready
from rlhf_lab.rl.not_finite import ABOUT, OnNaN, may_step
from rlhf_lab.rl.schedule import Schedule, rate, set_rates
from rlhf_lab.store.checkpoint import Checkpoint, load_optimizer, optimizer_tensors

Decay = Annotated[float, Field(ge=0, lt=1)]


class FitParameters(Component):
    """The parameters of `fit`, which every stage that trains on a fixed list of examples has."""

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
    adam_betas: tuple[Decay, Decay] = param((0.9, 0.95), "Adam β1, β2", source="Ouyang et al. 2022, C")
    adam_eps: float = param(1e-8, "Adam ε", gt=0)
    weight_decay: float = param(0.0, "decoupled weight decay", ge=0)
    max_grad_norm: float | None = param(1.0, "clip of the gradient norm; null for none", gt=0)
    on_nan: OnNaN = param("fail", ABOUT)

    def steps_per_epoch(self, n_examples: int) -> int:
        """The last batch of an epoch may be smaller."""
        return math.ceil(n_examples / self.batch_size)


class AdaptationParameters(Component):
    """What of a model is trained, and how."""

    dropout: float = param(0.0, "residual and attention dropout while training", ge=0, lt=1)
    adaptation: Literal["full", "lora"] = param("full", "what is trained; an adapter is merged when the stage is saved")
    lora_rank: int = param(16, "r", ge=1)
    lora_alpha: float = param(32.0, "α; the update is scaled by α/r", gt=0)
    freeze_embeddings: bool = param(False, "with `full`: leave the embedding (and a tied output layer) as it is")


def prepared(cfg: AdaptationParameters, ctx: StageContext, model: Any) -> Any:
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
    cfg: FitParameters,
    ctx: StageContext,
    module: nn.Module,
    n_examples: int,
    gradient: Callable[[int, np.ndarray], Mapping[str, float]],
    after_step: Callable[[int], None],
    *,
    dropout: float = 0.0,
) -> None:
    """Adam on all examples, `cfg.epochs` times. `gradient(step, index)` accumulates the gradient of a batch and returns
    metrics; `after_step(n)` is called when n steps are done, and validates now and then.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=cfg.learning_rate, betas=cfg.adam_betas, eps=cfg.adam_eps, weight_decay=cfg.weight_decay, fused=True
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = cfg.learning_rate
    per_epoch = cfg.steps_per_epoch(n_examples)
    total = cfg.epochs * per_epoch
    start, order = restore(module, optimizer, ctx.resume()), np.empty(0)
    for step in range(start, total):
        epoch, batch = divmod(step, per_epoch)
        if batch == 0 or step == start:
            order = order_of_epoch(ctx, epoch, n_examples)
        set_rates(optimizer, rate(step, total, cfg.schedule, warmup=cfg.warmup_steps, floor=cfg.floor))
        optimizer.zero_grad(set_to_none=True)
        with dropout_on(dropout, ctx, module, step):
            metrics = dict(gradient(step, order[batch * cfg.batch_size : (batch + 1) * cfg.batch_size]))
        norm = nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm or math.inf)
        row = {**metrics, "grad_norm": norm.item(), "learning_rate": optimizer.param_groups[0]["lr"]}
        if may_step({name: row[name] for name in ("loss", "grad_norm")}, cfg.on_nan, f"stage {ctx.stage}, step {step}"):
            optimizer.step()
        else:
            row["not_finite"] = 1
        ctx.log(step, "train", **row)
        if "not_finite" in row and cfg.on_nan == "stop":
            break
        ctx.report(step + 1, total, f"loss {metrics['loss']:.3f}")
        after_step(step + 1)
        if step + 1 < total:
            ctx.step_done(step + 1, lambda: (snapshot(module, optimizer), {}))


def order_of_epoch(ctx: StageContext, epoch: int, n_examples: int) -> np.ndarray:
    """The order in which an epoch comes by its examples."""
    return ctx.rng("examples", epoch).permutation(n_examples)


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

    def __init__(self, rate: float, ctx: StageContext, module: nn.Module, step: int) -> None:
        self.rate, self.module = rate, module
        self.seed = int(ctx.rng("dropout", step).integers(2**63)) if rate else 0

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
