"""Reinforcement learning from a reward: the loop, in six numbered steps.

The loop knows the slots of `contracts.py` and nothing else; each variant is a component behind one of them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.context import StageContext
from rlhf_lab.contracts import AdvantageInputs, PolicyOutput, Rollout, Scores
from rlhf_lab.errors import DataError, NumericsError
from rlhf_lab.lm.tokens import in_microbatches
from rlhf_lab.rl import kl, masked, rewards
from rlhf_lab.rl.actors import Actors, open_actors, restore, snapshot
from rlhf_lab.rl.evaluation import Evaluator
from rlhf_lab.rl.not_finite import kept
from rlhf_lab.rl.parameters import RLParameters
from rlhf_lab.rl.schedule import rate, set_rates
from rlhf_lab.rl.update import Batch, update
from rlhf_lab.streams import shuffled_batches

LOG = logging.getLogger(__name__)


def train(cfg: RLParameters, ctx: StageContext) -> None:
    """The whole of RLHF's third stage. Rows of step s describe the policy after s updates."""
    actors = open_actors(cfg, ctx)
    policy, prompts = actors.policy, usable_prompts(cfg, ctx, actors.policy, "train")
    evaluator = Evaluator(cfg, ctx, actors, usable_prompts(cfg, ctx, policy, "validation"))
    start = restore(actors, ctx.resume())
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
            asked = [prompts[i] for i in chosen]
            rollout = policy.rollout(asked, ctx.rng("rollout", step), samples=cfg.samples_per_prompt, **cfg.sampling)
            rollout = rewards.with_states(rollout, cfg.score_at, cfg.response_length)

            # 2. scores: one number per response, changed only where there is no EOS
            proxy = rewards.checked(cfg.reward.name, actors.reward(rollout), rollout, cfg.on_nan)
            scores_B = rewards.without_eos(proxy.scores_B, rollout.ended_B, **cfg.without_eos)
            greedy_scores_B, greedy = greedy_scores(cfg, ctx, actors, asked, step)

            # 3. KL and shaping: token rewards are −β·KL, plus the score once, at the last token
            old, ref_logprobs_BT = measured(cfg, policy, rollout), reference(cfg, policy, rollout)
            kl_BT = kl.per_token(cfg.kl_estimator, old.logprobs_BT, ref_logprobs_BT, rollout.mask_BT, old.kl_BT)
            beta_in_reward = 0.0 if cfg.kl_placement == "loss" else beta
            rewards_BT = rewards.token_rewards(scores_B, kl_BT, rollout.mask_BT, beta_in_reward, rollout.states_BT)
            if cfg.whiten_rewards:
                rewards_BT = masked.whiten(rewards_BT, rollout.places_BT, **cfg.reward_whitening)

            # 4. advantages and returns
            values_BT, after_B = state_values(cfg, actors, rollout)
            given = (rewards_BT, rollout.places_BT, scores_B, rollout.group_B, rollout.ended_B)
            inputs = AdvantageInputs(*given, values_BT, greedy_scores_B, after_B, old.logprobs_BT, ref_logprobs_BT)
            advantages_BT, returns_BT = estimated(cfg, actors, inputs, rollout, -beta_in_reward * kl_BT)
            trained_B = rewards.trained(rollout, cfg.truncation)
            if cfg.whiten_advantages == "rollout":
                trained_BT = rollout.mask_BT & trained_B[:, None]
                advantages_BT = masked.whiten(advantages_BT, trained_BT, **cfg.advantage_whitening)

        # 5. update: inner epochs of shuffled minibatches; then β
        batch = Batch(
            rollout, old.logprobs_BT, ref_logprobs_BT, advantages_BT, returns_BT, values_BT, scores_B, beta, trained_B
        )
        metrics = update(cfg, ctx, actors, batch, step)
        kl_B = kl.sequence_kl(old.logprobs_BT, ref_logprobs_BT, rollout.mask_BT)
        if step >= cfg.critic_warmup:
            observed = kl.mean(step_kl(cfg, ctx, policy, batch, kl_B), rollout.mask_BT, cfg.kl_unit)
            actors.kl_state = kept(actors.kl_state, cfg.kl.update(actors.kl_state, observed, len(rollout)))

        # 6. record
        row = describe(batch, proxy, old.entropy_BT, rewards_BT, kl_B) | greedy | metrics
        row |= sampler_alarm(cfg, ctx, step, row["sampler_gap"])
        if step == 0:
            elsewhere = {} if getattr(policy, "starts_at_reference", True) else {"kl": 0.0}
            assert_on_policy(row | elsewhere, tolerance=1e-3 if ctx.config.precision == "fp32" else 3e-2)
        ctx.log(step, "train", **row)
        if "not_finite" in row and cfg.on_nan == "stop":
            break
        if (step + 1) % cfg.evaluation.every == 0 or step + 1 == cfg.steps:
            with actors.average.applied(), ctx.accelerator.autocast():
                evaluator.measure(step + 1, actors)
        ctx.report(step + 1, cfg.steps, f"kl {row['kl']:.2f}  reward {row['reward_proxy']:.2f}")
        ctx.step_done(step + 1, lambda: snapshot(actors))
    with actors.average.applied():
        policy.save(ctx.folder / "policy")


def usable_prompts(cfg: RLParameters, ctx: StageContext, policy: Any, split: str) -> list[str]:
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


def measured(cfg: RLParameters, policy: Any, rollout: Rollout) -> PolicyOutput:
    """Log-probs and entropy of the rollout as the update will see them, not as the sampler did."""
    exact = cfg.kl_estimator == "full"

    def forward(part: Rollout) -> list[Tensor]:
        output = policy.forward(part, temperature=cfg.scoring_temperature, entropy=True, kl=exact)
        return [output.logprobs_BT, output.entropy_BT, *([output.kl_BT] if exact else [])]

    logprobs_BT, entropy_BT, *kl_BT = in_microbatches(forward, rollout, cfg.microbatch_size)
    return PolicyOutput(logprobs_BT, entropy_BT, kl_BT=kl_BT[0] if exact else None)


def reference(cfg: RLParameters, policy: Any, rollout: Rollout) -> Tensor:
    (logprobs_BT,) = in_microbatches(
        lambda part: (policy.reference_logprobs(part, temperature=cfg.scoring_temperature),), rollout, cfg.microbatch_size
    )
    return logprobs_BT


@torch.no_grad()
def greedy_scores(
    cfg: RLParameters, ctx: StageContext, actors: Actors, prompts: list[str], step: int
) -> tuple[Tensor | None, dict[str, float]]:
    """For each sequence of the rollout the score of the likeliest response to its prompt, if an estimator needs it.

    And what that is worth and costs, for the record: `greedy_score`, and `greedy_tokens` that had to be sampled for it.
    """
    if "greedy_scores" not in cfg.asks_for:
        return None, {}
    answers = actors.policy.rollout(prompts, ctx.rng("greedy", step), greedy=True, **cfg.sampling)
    scores = rewards.checked(cfg.reward.name, rewards.undisturbed(actors.reward, answers), answers, cfg.on_nan)
    scores_B = rewards.without_eos(scores.scores_B, answers.ended_B, **cfg.without_eos)
    row = {"greedy_score": scores_B.mean().item(), "greedy_tokens": answers.mask_BT.sum().item()}
    return scores_B.repeat_interleave(cfg.samples_per_prompt), row


def estimated(
    cfg: RLParameters, actors: Actors, inputs: AdvantageInputs, rollout: Rollout, penalties_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """advantages_BT and returns_BT. With `baseline: before_kl` the estimator compares scores alone, and what the KL costs from
    a token on is added to its advantage.
    """
    if cfg.baseline == "before_kl":
        alone_BT = rewards.token_rewards(inputs.scores_B, penalties_BT, rollout.mask_BT, 0.0, rollout.states_BT)
        inputs = replace(inputs, rewards_BT=alone_BT)
    advantages_BT, returns_BT, state = cfg.advantage.estimate(inputs, actors.advantage_state)
    actors.advantage_state = kept(actors.advantage_state, state)
    if cfg.baseline == "before_kl":
        advantages_BT = advantages_BT + rewards.to_go(penalties_BT, rollout.mask_BT)
    return advantages_BT, returns_BT


def state_values(cfg: RLParameters, actors: Actors, rollout: Rollout) -> tuple[Tensor | None, Tensor | None]:
    """values_BT, 0 in masked places; and, with `truncation: bootstrap`, after_B: what the critic expects of a response that
    was cut off, 0 for one that ended. None without a critic.
    """
    if actors.critic is None:
        return None, None
    bootstrap = cfg.truncation == "bootstrap"
    wide = rewards.with_states(rollout, "post_eos", math.inf) if bootstrap else rollout
    (values_BT,) = in_microbatches(lambda part: (rewards.held(actors.critic.values(part), part),), wide, cfg.microbatch_size)
    here_BT = values_BT[:, : rollout.mask_BT.shape[1]].masked_fill(~rollout.places_BT, 0.0)
    if not bootstrap:
        return here_BT, None
    return here_BT, values_BT.gather(1, rollout.mask_BT.sum(1, keepdim=True)).squeeze(1).masked_fill(rollout.ended_B, 0.0)


@torch.no_grad()
def step_kl(cfg: RLParameters, ctx: StageContext, policy: Any, batch: Batch, kl_B: Tensor) -> Tensor:
    """The KL that the controller sees: `kl_B`, to the reference, or, if that is what it needs, the one of the update."""
    if "step_kl" not in cfg.kl.needs:
        return kl_B
    with ctx.accelerator.autocast():
        (logprobs_BT,) = in_microbatches(
            lambda part: policy.forward(part, temperature=cfg.scoring_temperature)[:1], batch.rollout, cfg.microbatch_size
        )
    return kl.from_old(logprobs_BT, batch.old_logprobs_BT, batch.rollout.mask_BT)


def sampler_alarm(cfg: RLParameters, ctx: StageContext, step: int, gap: float) -> dict[str, float]:
    """1 where sampler and training disagree by more than `sampler_gap_limit`, with a line in the log; else 0."""
    if gap <= cfg.sampler_gap_limit:
        return {"sampler_alarm": 0.0}
    LOG.warning(
        "stage %s, step %d: sampler and training differ by %.2g nats per token (sampler_gap_limit: %g), so that ratios are not "
        "those of the law that was sampled from; look at precision, temperature and logits processors",
        ctx.stage,
        step,
        gap,
        cfg.sampler_gap_limit,
    )
    return {"sampler_alarm": 1.0}


def describe(batch: Batch, proxy: Scores, entropy_BT: Tensor, rewards_BT: Tensor, kl_B: Tensor) -> dict[str, float]:
    """What a row of the steps table says of a training batch, from the tensors that the loss used."""
    rollout = batch.rollout
    mask_BT = rollout.mask_BT
    gap_BT = (rollout.logprobs_BT - batch.old_logprobs_BT).abs()
    row = {
        "kl": kl_B.mean(),
        "kl_se": kl.standard_error(kl_B),
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
