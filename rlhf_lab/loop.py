"""Reinforcement learning from a reward: the loop, in six numbered steps.

The loop knows the slots of `contracts.py` and nothing else; each variant is a component behind one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from rlhf_lab import masked, rewards
from rlhf_lab.aggregation import Aggregation
from rlhf_lab.checkpoint import Checkpoint, load_optimizer, optimizer_tensors
from rlhf_lab.context import StageContext
from rlhf_lab.contracts import AdvantageInputs, Component, PolicyOutput, Rollout, Scores, StageRef, param, slot
from rlhf_lab.ema import WeightAverage
from rlhf_lab.errors import DataError, NumericsError
from rlhf_lab.evaluation import Evaluator
from rlhf_lab.kl import sequence_kl, standard_error
from rlhf_lab.lm.tokens import in_microbatches
from rlhf_lab.schedule import Schedule, rate, set_rates
from rlhf_lab.streams import shuffled_batches
from rlhf_lab.update import Batch, new_optimizer, update


class Evaluation(BaseModel):
    """When and on how many held-out prompts the policy is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    every: int = Field(5, ge=1, description="steps between evaluations; the first step and the last are always evaluated")
    prompts: int = Field(64, ge=1, description="held-out prompts, the first ones of the validation split")
    samples: int = Field(1, ge=1, description="responses per prompt")
    log_samples: int = Field(8, ge=0, description="responses that go into the samples table")
    baseline: StageRef | None = Field(
        None, description="win rates are against this stage; default: what the policy starts from"
    )
    temperature: float | None = Field(None, gt=0, description="default: the temperature of the rollouts")


class RL(Component):
    """Maximises E[score] − β·KL(π‖ref) on the prompts of the data (Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2)."""

    kind, name = "stage", "rl"
    seed: int | Literal["run"] = param("run", "'run': the seed of the run; a number: the same in every run")

    policy: slot("policy") = param("causal_lm", "what is trained")
    critic: slot("critic") = param("value_model", "values for estimators that need them")
    reward: slot("reward") = param("reward_model", "what is maximised: the proxy")
    gold: slot("reward") | None = param(None, "what is really wanted; measured on held-out prompts, never trained on")
    kl: slot("kl_controller") = param("fixed", "chooses β")
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = param("k1", "estimator of the KL inside the token rewards")
    advantage: slot("advantage") = param("gae", "token rewards to advantages")
    objective: list[slot("objective")] = param(["ppo_clip", "value_clip"], "terms of the loss", min_length=1)

    steps: int = param(100, "iterations of rollout and update", ge=1)
    batch_size: int = param(64, "episodes per iteration", ge=1)
    samples_per_prompt: int = param(1, "G, responses to each prompt of a batch", ge=1)
    minibatches: int = param(1, "optimiser steps per inner epoch", ge=1)
    inner_epochs: int = param(4, "passes over each batch", ge=1, source="Ziegler et al. 2019; 1 in Ouyang et al. 2022")
    microbatch_size: int | None = param(None, "sequences per forward pass; changes memory, not numbers", ge=1)

    response_length: int = param(28, "longest response", ge=1, unit="tokens")
    max_prompt_tokens: int | None = param(
        None, "longer prompts are dropped; default: a prompt that does not fit is an error", ge=1
    )
    temperature: float = param(1.0, "of sampling and of every log-prob", gt=0, source="Ouyang et al. 2022, C.4")

    learning_rate: float = param(3e-4, "of the policy", gt=0, allow_inf_nan=False)
    schedule: Schedule = param("linear", "of the learning rates over the steps", source="lm-human-preferences: linear to 0")
    warmup_steps: int = param(0, "iterations of learning-rate warm-up", ge=0)
    warmup_from: float = param(0.1, "factor on the learning rate at the first iteration of the warm-up", ge=0, le=1)
    adam_betas: tuple[float, float] = param((0.9, 0.999), "Adam β1, β2")
    adam_eps: float = param(1e-5, "Adam ε", gt=0, source="lm-human-preferences; Huang et al. 2024")
    max_grad_norm: float | None = param(1.0, "clip of the gradient norm, policy and critic each; null for none", gt=0)
    ema: float | None = param(None, "decay of the averaged weights, which are then evaluated and saved", gt=0, lt=1)

    aggregation: Aggregation = param("token_mean", "how per-token losses become one number")
    whiten_advantages: Literal["none", "rollout", "minibatch"] = param("rollout", "over which tokens advantages are whitened")
    whiten_rewards: bool = param(False, "divide token rewards by their standard deviation, keeping the mean")
    whiten_ddof: Literal[0, 1] = param(0, "variance: 0 biased (OpenAI), 1 unbiased (TRL, verl)")
    no_eos_score: float | None = param(None, "score of a response that did not end", source="−1 in Huang et al. 2024")
    no_eos_penalty: float = param(0.0, "what a response that did not end loses", ge=0, source="TRL, missing_eos_penalty")
    evaluation: Evaluation = Evaluation()

    @property
    def asks_for(self) -> frozenset[str]:
        """What the estimator and the terms need beyond the rollout."""
        return frozenset(self.advantage.needs).union(*(term.needs for term in self.objective))

    @model_validator(mode="after")
    def _fits_together(self) -> RL:
        if "values" in self.asks_for and self.critic.name == "none":
            needy = [c.name for c in (self.advantage, *self.objective) if "values" in c.needs]
            raise ValueError(f"{' and '.join(needy)} need values, but critic is 'none'; choose critic: value_model, or others")
        if "groups" in self.asks_for and self.samples_per_prompt < 2:
            raise ValueError(f"{self.advantage.name} compares samples of one prompt; set samples_per_prompt: 2 or more")
        if self.batch_size % (self.samples_per_prompt * self.minibatches):
            raise ValueError(
                f"batch_size {self.batch_size} must be divisible by samples_per_prompt × minibatches = "
                f"{self.samples_per_prompt * self.minibatches}"
            )
        if self.no_eos_score is not None and self.no_eos_penalty:
            raise ValueError("set no_eos_score or no_eos_penalty, not both")
        return self

    def run(self, ctx: StageContext) -> None:
        train(self, ctx)


@dataclass
class Actors:
    """The live slots of one run: four models, and the state that goes from one iteration to the next."""

    policy: Any
    critic: Any
    reward: Any
    gold: Any
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    kl_state: dict[str, float]
    advantage_state: dict[str, float] = field(default_factory=dict)


def open_actors(cfg: RL, ctx: StageContext) -> Actors:
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


def train(cfg: RL, ctx: StageContext) -> None:
    """The whole of RLHF's third stage. Rows of step s describe the policy after s updates."""
    actors = open_actors(cfg, ctx)
    policy, prompts = actors.policy, usable_prompts(cfg, ctx, actors.policy, "train")
    evaluator = Evaluator(cfg, ctx, actors, usable_prompts(cfg, ctx, policy, "validation"))
    start = restore(actors, evaluator, ctx.resume())
    prompts_per_step = cfg.batch_size // cfg.samples_per_prompt
    if start == 0:
        with ctx.accelerator.autocast():
            evaluator.measure(0, actors)
    for step in range(start, cfg.steps):
        set_rates(actors.optimizer, rate(step, cfg.steps, cfg.schedule, warmup=cfg.warmup_steps, warmup_from=cfg.warmup_from))
        beta = actors.kl_state["beta"]
        with torch.no_grad(), ctx.accelerator.autocast():
            # 1. rollout: sample responses to the next prompts, at the sampling temperature
            chosen = shuffled_batches(len(prompts), prompts_per_step, step * prompts_per_step, ctx.seed, "prompts")
            rollout = policy.rollout(
                [prompts[i] for i in chosen],
                ctx.rng("rollout", step),
                samples=cfg.samples_per_prompt,
                response_length=cfg.response_length,
                temperature=cfg.temperature,
            )

            # 2. scores: one number per response, changed only where there is no EOS
            proxy = rewards.checked(cfg.reward.name, actors.reward(rollout), rollout)
            scores_B = rewards.without_eos(proxy.scores_B, rollout.ended_B, score=cfg.no_eos_score, penalty=cfg.no_eos_penalty)

            # 3. KL and shaping: token rewards are −β·KL, plus the score once, at the last token
            old = measured(cfg, policy, rollout)
            ref_logprobs_BT = reference(cfg, policy, rollout)
            rewards_BT = rewards.token_rewards(
                scores_B, old.logprobs_BT, ref_logprobs_BT, rollout.mask_BT, beta, cfg.kl_estimator
            )
            if cfg.whiten_rewards:
                rewards_BT = masked.whiten(rewards_BT, rollout.mask_BT, shift_mean=False, ddof=cfg.whiten_ddof)

            # 4. advantages and returns
            values_BT = state_values(cfg, actors, rollout)
            inputs = AdvantageInputs(rewards_BT, rollout.mask_BT, scores_B, rollout.group_B, rollout.ended_B, values_BT)
            advantages_BT, returns_BT, actors.advantage_state = cfg.advantage.estimate(inputs, actors.advantage_state)
            if cfg.whiten_advantages == "rollout":
                advantages_BT = masked.whiten(advantages_BT, rollout.mask_BT, ddof=cfg.whiten_ddof)

        # 5. update: inner epochs of shuffled minibatches; then β
        batch = Batch(rollout, old.logprobs_BT, ref_logprobs_BT, advantages_BT, returns_BT, values_BT, scores_B, beta)
        metrics = update(cfg, ctx, actors, batch, step)
        kl_B = sequence_kl(old.logprobs_BT, ref_logprobs_BT, rollout.mask_BT)
        actors.kl_state = dict(cfg.kl.update(actors.kl_state, kl_B.mean().item(), len(rollout)))

        # 6. record
        row = describe(batch, proxy, old.entropy_BT, rewards_BT, kl_B) | metrics
        if step == 0:
            assert_on_policy(row, tolerance=1e-3 if ctx.config.precision == "fp32" else 3e-2)
        ctx.log(step, "train", **row)
        if (step + 1) % cfg.evaluation.every == 0 or step + 1 == cfg.steps:
            with actors.average.applied(), ctx.accelerator.autocast():
                evaluator.measure(step + 1, actors)
        ctx.report(step + 1, cfg.steps, f"kl {row['kl']:.2f}  reward {row['reward_proxy']:.2f}")
        ctx.step_done(step + 1, lambda: snapshot(actors, evaluator))
    with actors.average.applied():
        policy.save(ctx.folder / "policy")


def snapshot(actors: Actors, evaluator: Evaluator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that step n gives to step n + 1, as tensors and as JSON."""
    tensors = {f"average.{name}": value for name, value in actors.average.average.items()}
    for label, actor in (("policy", actors.policy), ("critic", actors.critic)):
        if actor is not None:
            tensors |= {f"{label}.{name}": p for name, p in actor.module.named_parameters() if p.requires_grad}
    if evaluator.baseline_gold_B is not None:
        tensors["baseline_gold_B"] = evaluator.baseline_gold_B
    scorers = {label: scorer.state_dict() for label, scorer in scorers_with_state(actors).items()}
    state = {"kl": actors.kl_state, "advantage": dict(actors.advantage_state), "scorers": scorers}
    return tensors | optimizer_tensors(actors.optimizer), state


@torch.no_grad()
def restore(actors: Actors, evaluator: Evaluator, checkpoint: Checkpoint | None) -> int:
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
        evaluator.baseline_gold_B = tensors["baseline_gold_B"].to(actors.policy.module.device)
    actors.kl_state, actors.advantage_state = dict(checkpoint.state["kl"]), dict(checkpoint.state["advantage"])
    for label, scorer in scorers_with_state(actors).items():
        scorer.load_state_dict(checkpoint.state["scorers"][label])
    return checkpoint.step


def scorers_with_state(actors: Actors) -> dict[str, Any]:
    """Reward sources that keep something between calls, such as running moments."""
    return {label: s for label, s in (("reward", actors.reward), ("gold", actors.gold)) if hasattr(s, "state_dict")}


def usable_prompts(cfg: RL, ctx: StageContext, policy: Any, split: str) -> list[str]:
    """The prompts of a split without those that the spec drops for their length."""
    prompts = ctx.data.prompts(split)
    if cfg.max_prompt_tokens is not None:
        lengths = policy.prompt_lengths(prompts)
        prompts = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= cfg.max_prompt_tokens]
    if not prompts:
        raise DataError(
            f"no {split} prompt has at most max_prompt_tokens: {cfg.max_prompt_tokens} tokens"
            if cfg.max_prompt_tokens
            else f"the data has no {split} prompts"
        )
    return prompts


def measured(cfg: RL, policy: Any, rollout: Rollout) -> PolicyOutput:
    """Log-probs and entropy of the rollout as the update will see them, not as the sampler did."""
    return PolicyOutput(
        *in_microbatches(
            lambda part: policy.forward(part, temperature=cfg.temperature, entropy=True)[:2], rollout, cfg.microbatch_size
        )
    )


def reference(cfg: RL, policy: Any, rollout: Rollout) -> Tensor:
    (logprobs_BT,) = in_microbatches(
        lambda part: (policy.reference_logprobs(part, temperature=cfg.temperature),), rollout, cfg.microbatch_size
    )
    return logprobs_BT


def state_values(cfg: RL, actors: Actors, rollout: Rollout) -> Tensor | None:
    if actors.critic is None:
        return None
    (values_BT,) = in_microbatches(lambda part: (actors.critic.values(part),), rollout, cfg.microbatch_size)
    return values_BT.masked_fill(~rollout.mask_BT, 0.0)


def describe(batch: Batch, proxy: Scores, entropy_BT: Tensor, rewards_BT: Tensor, kl_B: Tensor) -> dict[str, float]:
    """What a row of the steps table says of a training batch, from the tensors that the loss used."""
    rollout = batch.rollout
    mask_BT = rollout.mask_BT
    gap_BT = (rollout.logprobs_BT - batch.old_logprobs_BT).abs()
    row = {
        "kl": kl_B.mean(),
        "kl_se": standard_error(kl_B),
        "reward_proxy": proxy.scores_B.mean(),
        "reward_gold": math.nan,
        "score": batch.scores_B.mean(),
        "return": rewards_BT.sum(1).mean(),
        "entropy": masked.masked_mean(entropy_BT, mask_BT),
        "response_length": mask_BT.sum(1).float().mean(),
        "eos_rate": rollout.ended_B.float().mean(),
        "beta": batch.beta,
        "sampler_gap": masked.masked_mean(gap_BT, mask_BT),
        **{name: values.mean() for name, values in proxy.columns.items()},
    }
    if batch.values_BT is not None:
        errors = (batch.returns_BT - batch.values_BT)[mask_BT]
        row["explained_variance"] = 1 - errors.var(correction=0) / batch.returns_BT[mask_BT].var(correction=0)
    return {name: float(value) for name, value in row.items()}


def assert_on_policy(row: dict[str, float], tolerance: float = 1e-3) -> None:
    """Before the first update policy, reference and sampler are one: KL = 0, ratio = 1, nothing is clipped.

    Anything else is a seam: a temperature, a mask, position ids, dropout, an adapter that is not what it seems.
    """
    off = {
        "kl": abs(row["kl"]),
        "first_ratio": abs(row.get("first_ratio", 1.0) - 1),
        "first_clip_fraction": row.get("first_clip_fraction", 0.0),
        "first_approx_kl": row.get("first_approx_kl", 0.0),
    }
    wrong = {name: value for name, value in off.items() if not value <= tolerance}
    if wrong:
        raise NumericsError(f"at step 0 policy and reference must agree, but {wrong} (KL in nats, ratio as distance from 1)")
