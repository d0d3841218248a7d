"""The parameters of reinforcement learning: which component stands in each slot, and every convention as a named field."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlhf_lab.contracts import AdamBetas, Component, Seed, StageRef, param, slot
from rlhf_lab.rl.aggregation import Aggregation
from rlhf_lab.rl.kl import Estimator
from rlhf_lab.rl.not_finite import ABOUT, OnNaN
from rlhf_lab.rl.schedule import Schedule


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


class RLParameters(Component):
    """Maximises E[score] − β·KL(π‖ref) on the prompts of the data (Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2)."""

    seed: Seed = param("run", "'run': the seed of the run; a number: the same in every run")

    policy: slot("policy") = param("causal_lm", "what is trained")
    critic: slot("critic") = param("value_model", "values for estimators that need them")
    reward: slot("reward") = param("reward_model", "what is maximised: the proxy")
    gold: slot("reward") | None = param(None, "what is really wanted; measured on held-out prompts, never trained on")
    kl: slot("kl_controller") = param("fixed", "chooses β")
    kl_estimator: Estimator = param("k1", "estimator of the KL inside the token rewards; full: exact over the vocabulary")
    kl_placement: Literal["reward", "loss", "both"] = param(
        "reward", "where β times the KL is: in the token rewards, in a term of the objective, or in both"
    )
    kl_unit: Literal["sequence", "token"] = param(
        "sequence", "what the controller is told: mean KL per sequence, or per token", source="sequence: Ziegler et al. 2019"
    )
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
    logprob_temperature: Literal["sampling", "one"] = param(
        "sampling",
        "of log-probs: that of sampling, or 1, under which KL and ratios are of a law that nobody sampled from",
        source="sampling: lm-human-preferences policy.py; one: a mistake of several systems before they divided (trl#3029)",
    )

    learning_rate: float = param(3e-4, "of the policy", gt=0, allow_inf_nan=False)
    schedule: Schedule = param("linear", "of the learning rates over the steps", source="lm-human-preferences: linear to 0")
    warmup_steps: int = param(0, "iterations of learning-rate warm-up", ge=0)
    critic_warmup: int = param(0, "iterations in which only the critic is trained; policy and β stay as they are", ge=0)
    warmup_from: float = param(0.1, "factor on the learning rate at the first iteration of the warm-up", ge=0, le=1)
    adam_betas: AdamBetas = param((0.9, 0.999), "Adam β1, β2")
    adam_eps: float = param(1e-5, "Adam ε", gt=0, source="lm-human-preferences; Huang et al. 2024")
    max_grad_norm: float | None = param(1.0, "clip of the gradient norm, policy and critic each; null for none", gt=0)
    ema: float | None = param(None, "decay of the averaged weights, which are then evaluated and saved", gt=0, lt=1)

    aggregation: Aggregation = param("token_mean", "how per-token losses become one number")
    whiten_advantages: Literal["none", "rollout", "minibatch"] = param("rollout", "over which tokens advantages are whitened")
    whiten_rewards: bool = param(False, "divide token rewards by their standard deviation, keeping the mean")
    whiten_ddof: Literal[0, 1] = param(0, "variance: 0 biased (OpenAI), 1 unbiased (TRL, verl)")
    advantages_shift_mean: bool = param(True, "whitened advantages have mean 0; false: they keep their mean")
    rewards_shift_mean: bool = param(
        False, "whitened rewards have mean 0; false: they keep their mean", source="false: lm-human-preferences"
    )
    baseline: Literal["after_kl", "before_kl"] = param(
        "after_kl",
        "what an estimator that compares the samples of a prompt compares: returns with the KL in them, or scores alone, each "
        "token's KL to go coming after",
        source="after_kl: TRL, verl; before_kl: OpenRLHF",
    )
    score_at: Literal["eos", "post_eos", "last"] = param(
        "eos",
        "where the score is: at the last response token, one place later, or at the last of response_length places",
        source="eos: OpenRLHF, verl; post_eos: Huang et al. 2024, TRL; last: lm-human-preferences",
    )
    truncation: Literal["terminal", "bootstrap", "mask"] = param(
        "terminal",
        "a response that was cut off: scored like one that ended; continued by the critic's value, which stands in place of "
        "its score; or left out of the loss",
        source="terminal: all systems by default; bootstrap: Pardo et al. 2018; mask: Yu et al. 2025, overlong filtering",
    )
    no_eos_score: float | None = param(None, "score of a response that did not end", source="−1 in Huang et al. 2024")
    no_eos_penalty: float = param(0.0, "what a response that did not end loses", ge=0, source="TRL, missing_eos_penalty")
    sampler_gap_limit: float = param(
        0.05,
        "mean |log π(sampler) − log π(training)| beyond which a step raises an alarm",
        ge=0,
        unit="nats per token",
    )
    on_nan: OnNaN = param("fail", ABOUT)
    evaluation: Evaluation = param(Evaluation(), "when and on what the policy is measured")

    @property
    def asks_for(self) -> frozenset[str]:
        """What the estimator and the terms need beyond the rollout."""
        return frozenset(self.advantage.needs).union(*(term.needs for term in self.objective))

    @property
    def sampling(self) -> dict[str, Any]:
        """How responses are sampled, in training and in evaluation."""
        return {"response_length": self.response_length, "temperature": self.temperature}

    @property
    def scoring_temperature(self) -> float:
        """Of log-probs and entropies, of policy and reference."""
        return self.temperature if self.logprob_temperature == "sampling" else 1.0

    @property
    def reward_whitening(self) -> dict[str, Any]:
        return {"shift_mean": self.rewards_shift_mean, "ddof": self.whiten_ddof}

    @property
    def advantage_whitening(self) -> dict[str, Any]:
        return {"shift_mean": self.advantages_shift_mean, "ddof": self.whiten_ddof}

    @property
    def without_eos(self) -> dict[str, Any]:
        """What a response that did not end scores, for `rewards.without_eos`."""
        return {"score": 0.0 if self.truncation == "bootstrap" else self.no_eos_score, "penalty": self.no_eos_penalty}

    @model_validator(mode="after")
    def _fits_together(self) -> RLParameters:
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
        if self.truncation == "bootstrap" and (self.no_eos_score is not None or self.no_eos_penalty):
            raise ValueError("with truncation: bootstrap a response that was cut off has no score; leave no_eos_… out")
        if self.truncation == "bootstrap" and "values" not in self.advantage.needs:
            raise ValueError(
                f"truncation: bootstrap needs an estimator with values, such as the default, not {self.advantage.name}"
            )
        if self.whiten_advantages == "none" and not self.advantages_shift_mean:
            raise ValueError("advantages_shift_mean: false is of whitened advantages; set whiten_advantages, or leave it out")
        if self.rewards_shift_mean and not self.whiten_rewards:
            raise ValueError("rewards_shift_mean: true is of whitened rewards; set whiten_rewards, or leave it out")
        if self.baseline == "before_kl" and ("groups" not in self.advantage.needs or self.whiten_rewards):
            raise ValueError("baseline: before_kl needs an estimator that compares samples of a prompt, and no whiten_rewards")
        if self.critic_warmup and "values" not in self.asks_for:
            raise ValueError("critic_warmup needs a critic that is trained; nothing here asks for values")
        return self

    @model_validator(mode="after")
    def _kl_is_where_it_is_said_to_be(self) -> RLParameters:
        in_loss = [term.name for term in self.objective if "beta" in term.needs]
        if in_loss and self.kl_placement == "reward":
            raise ValueError(
                f"{in_loss[0]} puts β times a KL into the loss, and kl_placement: reward puts it into the reward; "
                "set kl_placement: loss, or both if that is meant"
            )
        if self.kl_placement != "reward" and not in_loss:
            raise ValueError(
                f"kl_placement: {self.kl_placement} needs a term of the objective that has the KL, such as kl_loss"
            )
        return self
