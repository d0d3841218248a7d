"""A causal language model as policy: all weights, or a low-rank adapter that is switched off for the reference."""

from __future__ import annotations

import copy
from typing import Literal

from rlhf_lab.contracts import Component, PolicyOutput, StageRef, hookimpl, param
from rlhf_lab.lm.adapters import with_adapter
from rlhf_lab.lm.files import freeze_embeddings, load_causal_lm, load_encoder, merged, save_causal_lm
from rlhf_lab.lm.logprobs import entropy, gather_logprobs, response_logits
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.sampling import rollout


class CausalLM(Component):
    """π(y|x) = Π_t softmax(z_t / τ)[y_t], started from a supervised stage.

    `full` trains every weight and keeps a frozen copy as reference. `lora` trains W + (α/r)·BA on the linear layers
    (Hu et al. 2022, eq. 3) with B = 0 at the start; with the adapter off it is the reference, at no memory.
    """

    kind, name = "policy", "causal_lm"
    init: StageRef = param("sft", "the stage whose model the policy starts from, and is compared with")
    adaptation: Literal["full", "lora"] = param("full", "what is trained")
    lora_rank: int = param(16, "r", ge=1, source="Hu et al. 2022")
    lora_alpha: float = param(32.0, "α; the update is scaled by α/r", gt=0)
    freeze_embeddings: bool = param(False, "with `full`: leave the embedding (and a tied output layer) as it is")

    def build(self, ctx):
        encoder = load_encoder(ctx.input(self.init), ctx.template)
        model = ready(load_causal_lm(ctx.input(self.init)), ctx, frozen=self.adaptation == "lora")
        if self.adaptation == "lora":
            return LowRankPolicy(with_adapter(model, self.lora_rank, self.lora_alpha, ctx.torch_rng("lora")), encoder)
        reference = copy.deepcopy(model).requires_grad_(False)
        if self.freeze_embeddings:
            freeze_embeddings(model)
        return FullPolicy(model, encoder, reference)


class FullPolicy:
    """Every weight is trained; the reference is a frozen copy."""

    def __init__(self, model, encoder, reference):
        self.module, self.encoder, self.frozen = model, encoder, reference

    def prompt_lengths(self, prompts):
        return [len(self.encoder.prompt_ids(prompt)) for prompt in prompts]

    def encode(self, prompts, responses):
        return self._placed(self.encoder.encode(prompts, responses))

    def encode_texts(self, texts):
        return self._placed(self.encoder.texts(texts))

    def rollout(self, prompts, rng, *, samples=1, greedy=False, response_length, temperature):
        return rollout(
            self.module,
            self.encoder,
            prompts,
            rng,
            samples=samples,
            greedy=greedy,
            response_length=response_length,
            temperature=temperature,
        )

    def forward(self, rollout, *, temperature, entropy=False):
        return output(self.module, rollout, temperature, entropy)

    def reference_logprobs(self, rollout, *, temperature):
        return output(self.frozen, rollout, temperature, False).logprobs_BT

    def save(self, folder):
        save_causal_lm(self.module, self.encoder.tokenizer, folder)

    def _placed(self, rollout):
        return rollout.to(self.module.device)


class LowRankPolicy(FullPolicy):
    """Only an adapter is trained; without it the model is the reference."""

    def __init__(self, adapted, encoder):
        super().__init__(adapted, encoder, adapted)

    def reference_logprobs(self, rollout, *, temperature):
        with self.module.disable_adapter():
            return super().reference_logprobs(rollout, temperature=temperature)

    def save(self, folder):
        save_causal_lm(merged(copy.deepcopy(self.module)), self.encoder.tokenizer, folder)


def output(model, rollout, temperature, with_entropy):
    """Log-probs of the response tokens (0 where masked), and the entropy in nats per token if asked for."""
    logits_BTV = response_logits(model, rollout)
    logprobs_BT = gather_logprobs(logits_BTV, rollout.response_ids_BT, temperature).masked_fill(~rollout.mask_BT, 0.0)
    return PolicyOutput(logprobs_BT, entropy(logits_BTV, temperature) if with_entropy else None)


@hookimpl
def register_components(register):
    register(CausalLM)
