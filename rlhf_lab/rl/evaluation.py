"""The policy on held-out prompts: what was maximised, what was wanted, and how far it has moved."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.context import StageContext
from rlhf_lab.contracts import Rollout, Scores
from rlhf_lab.lm.files import load_causal_lm, load_encoder
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.sampling import rollout
from rlhf_lab.lm.tokens import in_microbatches
from rlhf_lab.rl import masked, rewards
from rlhf_lab.rl.actors import Actors
from rlhf_lab.rl.kl import k3, sequence_kl, standard_error
from rlhf_lab.rl.not_finite import OnNaN
from rlhf_lab.rl.parameters import RLParameters


class Evaluator:
    """Samples the same prompts with the same noise each time, so that differences between steps are not luck.

    Win rates compare, prompt by prompt, with what the baseline says: another stage's model, or the policy at step 0.
    """

    def __init__(self, cfg: RLParameters, ctx: StageContext, actors: Actors, prompts: list[str]) -> None:
        self.cfg, self.ctx, self.settings = cfg, ctx, cfg.evaluation
        self.prompts = prompts[: cfg.evaluation.prompts]
        if cfg.evaluation.baseline:
            actors.baseline_gold_B = self._baseline(actors)

    @property
    def sampling(self) -> dict[str, Any]:
        return {"samples": self.settings.samples, **self.cfg.sampling}

    @torch.no_grad()
    def _baseline(self, actors: Actors) -> Tensor | None:
        """Gold of another stage's answers to the same prompts, with the same noise."""
        if actors.gold is None:
            return None
        folder = self.ctx.input(self.settings.baseline)
        model, encoder = ready(load_causal_lm(folder), self.ctx, frozen=True), load_encoder(folder, self.ctx.template)
        with self.ctx.accelerator.autocast():
            sampled = rollout(model, encoder, self.prompts, self.ctx.rng("evaluation"), **self.sampling)
            return scored(self.cfg.gold, actors.gold, sampled).scores_B

    @torch.no_grad()
    def measure(self, step: int, actors: Actors, **more: float) -> None:
        """Logs one row of split `validation`, with `more` in it, and some samples."""
        answers = actors.policy.rollout(self.prompts, self.ctx.rng("evaluation"), **self.sampling)
        on_nan = self.cfg.on_nan
        proxy = scored(self.cfg.reward, actors.reward, answers, on_nan)
        gold = scored(self.cfg.gold, actors.gold, answers, on_nan)
        gold_B, columns = gold.scores_B, {**{f"gold_{k}": v for k, v in gold.columns.items()}, **proxy.columns}
        if actors.baseline_gold_B is None:
            actors.baseline_gold_B = gold_B
        logprobs_BT, entropy_BT, ref_logprobs_BT = in_microbatches(
            lambda part: self._logprobs(actors.policy, part), answers, self.cfg.microbatch_size
        )
        log_ratio_BT = (logprobs_BT - ref_logprobs_BT).masked_fill(~answers.mask_BT, 0.0)
        kl_B = sequence_kl(logprobs_BT, ref_logprobs_BT, answers.mask_BT)
        row: dict[str, Any] = {
            "kl": kl_B.mean(),
            "kl_se": standard_error(kl_B),
            "kl_k3": k3(log_ratio_BT).sum(1).mean(),
            "reward_proxy": proxy.scores_B.mean(),
            "reward_gold": gold_B.mean(),
            "entropy": masked.masked_mean(entropy_BT, answers.mask_BT),
            "response_length": answers.mask_BT.sum(1).float().mean(),
            "eos_rate": answers.ended_B.float().mean(),
            "win_rate": win_rate(gold_B, actors.baseline_gold_B),
            "beta": actors.kl_state["beta"],
            **{name: values.mean() for name, values in columns.items()},
            **more,
        }
        self.ctx.log(step, "validation", **row)
        self.ctx.log_samples(step, sample_rows(answers, proxy.scores_B, gold_B, self.settings.log_samples, kl_B))

    def _logprobs(self, policy: Any, part: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """At the temperature of these samples, so that the mean log-ratio is a KL."""
        output = policy.forward(part, temperature=self.cfg.temperature, entropy=True)
        return output.logprobs_BT, output.entropy_BT, policy.reference_logprobs(part, temperature=self.cfg.temperature)


def scored(source: Any, scorer: Any, answers: Rollout, on_nan: OnNaN = "fail") -> Scores:
    """The scores of a reward source, which is left as it was; NaN where there is none."""
    if scorer is None:
        return Scores(torch.full((len(answers),), math.nan, device=answers.mask_BT.device))
    return rewards.checked(source.name, rewards.undisturbed(scorer, answers), answers, on_nan)


def win_rate(gold_B: Tensor, baseline_B: Tensor) -> Tensor:
    """Share of prompts on which gold prefers the policy to the baseline; a tie counts half; NaN without gold."""
    won_B = (gold_B > baseline_B).float() + (gold_B == baseline_B).float() / 2
    return won_B.mean() if gold_B.isfinite().all() else torch.tensor(math.nan)


def sample_rows(rollout: Rollout, proxy_B: Tensor, gold_B: Tensor, n: int, kl_B: Tensor | None = None) -> list[dict[str, Any]]:
    """Rows of the samples table for the first `n` sequences."""
    kl_B = torch.full_like(proxy_B, math.nan) if kl_B is None else kl_B
    return [
        {
            "prompt": rollout.prompts[i],
            "response": rollout.responses[i],
            "reward_proxy": float(proxy_B[i]),
            "reward_gold": float(gold_B[i]),
            "kl": float(kl_B[i]),
        }
        for i in range(min(n, len(rollout)))
    ]
