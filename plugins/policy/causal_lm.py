"""A causal language model as policy: all weights, or a low-rank adapter that is switched off for the reference."""

from __future__ import annotations

import copy
from typing import Literal

import torch

from rlhf_lab.contracts import Component, PolicyOutput, StageRef, hookimpl, param
from rlhf_lab.lm.adapters import with_adapter
from rlhf_lab.lm.files import freeze_embeddings, load_causal_lm, load_encoder, merged, save_causal_lm
from rlhf_lab.lm.logprobs import entropy as entropy_of
from rlhf_lab.lm.logprobs import hidden_states, placed, placed_logprobs, token_logits
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.sampling import rollout
from rlhf_lab.rl.kl import full


class CausalLM(Component):
    """π(y|x) = Π_t softmax(z_t / τ)[y_t], started from a supervised stage.

    `full` trains every weight and keeps a frozen copy as reference. `lora` trains W + (α/r)·BA on the linear layers
    (Hu et al. 2022, eq. 3) with B = 0 at the start; with the adapter off it is the reference, at no memory.
    """

    kind, name = "policy", "causal_lm"
    init: StageRef = param("sft", "the stage whose model the policy starts from")
    reference: StageRef | None = param(None, "the stage whose model it is compared with; default: the one it starts from")
    adaptation: Literal["full", "lora"] = param("full", "what is trained")
    lora_rank: int = param(16, "r", ge=1, source="Hu et al. 2022")
    lora_alpha: float = param(32.0, "α; the update is scaled by α/r", gt=0)
    freeze_embeddings: bool = param(False, "with `full`: leave the embedding (and a tied output layer) as it is")

    def build(self, ctx):
        encoder = load_encoder(ctx.input(self.init), ctx.template)
        model = ready(load_causal_lm(ctx.input(self.init)), ctx, frozen=self.adaptation == "lora")
        other = self.another_reference(ctx)
        if self.adaptation == "lora":
            adapted = with_adapter(model, self.lora_rank, self.lora_alpha, ctx.torch_rng("lora"))
            return LowRankPolicy(adapted, encoder, other)
        reference = other or copy.deepcopy(model).requires_grad_(False)
        if self.freeze_embeddings:
            freeze_embeddings(model)
        return FullPolicy(model, encoder, reference, starts_at_reference=other is None)

    def another_reference(self, ctx):
        """The frozen model of another stage than the policy starts from; None where it is the same."""
        if self.reference in (None, self.init):
            return None
        return ready(load_causal_lm(ctx.input(self.reference)), ctx, frozen=True).requires_grad_(False)


class FullPolicy:
    """Every weight is trained; the reference is a frozen copy, or another frozen model."""

    def __init__(self, model, encoder, reference, starts_at_reference=True):
        self.module, self.encoder, self.frozen = model, encoder, reference
        self.starts_at_reference = starts_at_reference

    def prompt_lengths(self, prompts):
        return [len(self.encoder.prompt_ids(prompt)) for prompt in prompts]

    def encode(self, prompts, responses, ended=None):
        return self._placed(self.encoder.encode(prompts, responses, ended))

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

    def forward(self, rollout, *, temperature, entropy=False, kl=False):
        logits_NV = token_logits(self.module, rollout)
        with torch.no_grad():
            ref_logits_NV = self.reference_logits(rollout) if kl else None
        return PolicyOutput(
            placed_logprobs(logits_NV, rollout, temperature),
            placed(entropy_of(logits_NV, temperature), rollout.mask_BT) if entropy else None,
            kl_BT=placed(full(logits_NV, ref_logits_NV, temperature), rollout.mask_BT) if kl else None,
        )

    def reference_logits(self, rollout):
        return token_logits(self.frozen, rollout)

    def reference_logprobs(self, rollout, *, temperature):
        return placed_logprobs(self.reference_logits(rollout), rollout, temperature)

    def hidden(self, rollout):
        """What a value head on this trunk reads, shape (B, T, d): the hidden state one position before each response token."""
        return hidden_states(self.module, rollout)

    def save(self, folder):
        save_causal_lm(self.module, self.encoder.tokenizer, folder)

    def _placed(self, rollout):
        return rollout.to(self.module.device)


class LowRankPolicy(FullPolicy):
    """Only an adapter is trained; without it the model is the reference, unless there is another one."""

    def __init__(self, adapted, encoder, other=None):
        super().__init__(adapted, encoder, other or adapted, starts_at_reference=other is None)

    def reference_logits(self, rollout):
        if not self.starts_at_reference:
            return super().reference_logits(rollout)
        with self.module.disable_adapter():
            return super().reference_logits(rollout)

    def save(self, folder):
        save_causal_lm(merged(copy.deepcopy(self.module)), self.encoder.tokenizer, folder)


@hookimpl
def register_components(register):
    register(CausalLM)
