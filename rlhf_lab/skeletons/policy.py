"""TODO: one line on what is trained here."""

import copy

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import PolicyOutput, StageRef
from rlhf_lab.lm import sampling
from rlhf_lab.lm.files import load_causal_lm, load_encoder, save_causal_lm
from rlhf_lab.lm.logprobs import entropy, placed, placed_logprobs, token_logits


class Skeleton(Component):
    """A causal language model of which only the last blocks are trained. TODO: what yours is, with its equation.

    `build(ctx)` returns the live policy below. Log-probs are at the sampling temperature; before the first update those of
    the reference are those of the policy, so that KL starts at 0. Source: TODO (author, year, section).
    """

    kind, name = "policy", "skeleton"
    init: StageRef = param("sft", "the stage that the policy starts from, and is compared with")
    trained_blocks: int = param(1, "transformer blocks that are trained, counted from the end", ge=1)

    def build(self, ctx):
        model = load_causal_lm(ctx.input(self.init)).to(ctx.device).requires_grad_(False)
        reference = copy.deepcopy(model)
        blocks = next(m for m in model.modules() if type(m).__name__ == "ModuleList")
        for block in list(blocks)[-self.trained_blocks :]:
            block.requires_grad_(True)
        return LivePolicy(model, reference, load_encoder(ctx.input(self.init), ctx.template))


class LivePolicy:
    """What the loop talks to."""

    def __init__(self, module, reference, encoder):
        self.module, self.reference, self.encoder = module, reference, encoder

    def rollout(self, prompts, rng, *, samples=1, greedy=False, response_length, temperature):
        return sampling.rollout(
            self.module,
            self.encoder,
            prompts,
            rng,
            samples=samples,
            greedy=greedy,
            response_length=response_length,
            temperature=temperature,
        )

    def prompt_lengths(self, prompts):
        return [len(self.encoder.prompt_ids(prompt)) for prompt in prompts]

    def encode(self, prompts, responses):
        return self.encoder.encode(prompts, responses).to(self.module.device)

    def encode_texts(self, texts):
        return self.encoder.texts(texts).to(self.module.device)

    def forward(self, rollout, *, temperature, entropy=False):
        return measured(self.module, rollout, temperature, entropy)

    def reference_logprobs(self, rollout, *, temperature):
        return measured(self.reference, rollout, temperature, False).logprobs_BT

    def save(self, folder):
        save_causal_lm(self.module, self.encoder.tokenizer, folder)


def measured(model, rollout, temperature, with_entropy):
    """Log-probs of the response tokens, 0 where masked, and the entropy in nats per token if asked for."""
    logits_NV = token_logits(model, rollout)
    logprobs_BT = placed_logprobs(logits_NV, rollout, temperature)
    return PolicyOutput(logprobs_BT, placed(entropy(logits_NV, temperature), rollout.mask_BT) if with_entropy else None)


@hookimpl
def register_components(register):
    register(Skeleton)
