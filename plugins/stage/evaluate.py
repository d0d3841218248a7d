"""A policy that another stage made, measured as those are that RL trains."""

import math
from typing import Literal

from rlhf_lab.contracts import Component, hookimpl, param, slot
from rlhf_lab.rl.actors import Actors
from rlhf_lab.rl.ema import WeightAverage
from rlhf_lab.rl.evaluation import Evaluator
from rlhf_lab.rl.parameters import Evaluation


class MeasuredParameters(Component):
    """What a stage without rollouts to train on says of the policy that it measures."""

    policy: slot("policy") = param("causal_lm", "what is measured (`init`), and against which reference")
    reward: slot("reward") | None = param(None, "the proxy that an optimiser would maximise; here only measured")
    gold: slot("reward") | None = param(None, "what is really wanted; measured on held-out prompts, never trained on")
    response_length: int = param(28, "longest response that is sampled to evaluate", ge=1, unit="tokens")
    temperature: float = param(1.0, "of every log-prob, and of the samples that are evaluated", gt=0)
    evaluation: Evaluation = param(Evaluation(), "when, and on what, the policy is measured")

    @property
    def sampling(self):
        """How responses are sampled."""
        return {"response_length": self.response_length, "temperature": self.temperature}


def measured_actors(cfg, ctx, beta=math.nan):
    """Policy, proxy and gold as the evaluator wants them."""
    policy = cfg.policy.build(ctx)
    return Actors(
        policy=policy,
        critic=None,
        reward=cfg.reward.open(ctx) if cfg.reward else None,
        gold=cfg.gold.open(ctx) if cfg.gold else None,
        optimizer=None,
        average=WeightAverage(policy.module, None),
        kl_state={"beta": beta},
    )


class Evaluate(MeasuredParameters):
    """One row of split `validation` for the policy of any stage: KL, proxy, gold, entropy, length, EOS rate, win rate.

    So a fine-tuned or distilled model stands in the same table and figure as a trained policy: give the stage the name that
    theirs has (`rl: {name: evaluate, policy: {init: distilled, reference: sft}}`). `evaluation.every` means nothing here.
    """

    kind, name = "stage", "evaluate"
    seed: int | Literal["run"] = param("run", "'run': the seed of the run; a number: the same in every run")
    microbatch_size: int | None = param(None, "sequences per forward pass; changes memory, not numbers", ge=1)
    on_nan: Literal["fail", "continue"] = param(
        "fail", "what a score that is not finite does: `fail` the run, or stand in the tables as NaN"
    )

    def run(self, ctx):
        actors = measured_actors(self, ctx)
        evaluator = Evaluator(self, ctx, actors, ctx.data.prompts("validation"))
        with ctx.accelerator.autocast():
            evaluator.measure(0, actors)


@hookimpl
def register_components(register):
    register(Evaluate)
