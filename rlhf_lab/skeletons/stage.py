"""TODO: one line on what this stage computes."""

import json

import numpy as np

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import StageRef
from rlhf_lab.lm.files import load_causal_lm, load_encoder
from rlhf_lab.lm.sampling import rollout


class Skeleton(Component):
    """Samples from the policy of a stage and logs how long its responses are. TODO: what is computed, and what is written.

    All that the stage makes goes into `ctx.folder`; it is a function of its parameters, `ctx.seed`, the data and its inputs,
    so it is computed once however many runs share it. Rows of the steps table: `ctx.log(step, split, **numbers)`.
    """

    kind, name = "stage", "skeleton"
    seed: int | str = param(0, "a number: the same in every run; 'run': the seed of the run")
    policy: StageRef = param("sft", "whose responses are measured")
    prompts: int = param(8, "held-out prompts", ge=1)
    response_length: int = param(8, "longest response", ge=1, unit="tokens")

    def run(self, ctx):
        model = load_causal_lm(ctx.input(self.policy)).to(ctx.device)
        encoder = load_encoder(ctx.input(self.policy), ctx.template)
        chosen = ctx.data.prompts("validation")[: self.prompts]
        sampled = rollout(model, encoder, chosen, ctx.rng("skeleton"), response_length=self.response_length, temperature=1.0)
        lengths = sampled.mask_BT.sum(1).tolist()
        ctx.log(0, "validation", response_length=float(np.mean(lengths)), eos_rate=sampled.ended_B.float().mean().item())
        (ctx.folder / "lengths.json").write_text(json.dumps(lengths), encoding="utf-8")


@hookimpl
def register_components(register):
    register(Skeleton)
