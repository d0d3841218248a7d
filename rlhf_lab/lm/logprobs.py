"""Log-probabilities of given tokens under a causal language model, at the sampling temperature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_lab.contracts import Rollout


def position_ids(mask_NL: Tensor) -> Tensor:
    """Positions counted from the first real token, so that left padding changes nothing."""
    return (mask_NL.long().cumsum(1) - 1).clamp(min=0)


def sequence(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """ids and mask of prompt and response together, shape (B, P+T)."""
    return (
        torch.cat([rollout.prompt_ids_BP, rollout.response_ids_BT], 1),
        torch.cat([rollout.prompt_mask_BP, rollout.mask_BT], 1),
    )


def token_logits(model: Any, rollout: Rollout) -> Tensor:
    """logits_NV in fp32 of the N real response tokens, row after row: those for token t stand at the position before it."""
    return _logits_at(model, rollout, rollout.mask_BT)


def response_logits(model: Any, rollout: Rollout) -> Tensor:
    """logits_BTV in fp32 at every response place, the masked ones included."""
    everywhere_BT = torch.ones_like(rollout.mask_BT)
    return _logits_at(model, rollout, everywhere_BT).unflatten(0, everywhere_BT.shape)


def _logits_at(model: Any, rollout: Rollout, at_BT: Tensor) -> Tensor:
    """The output layer sees only what is asked for: with a large vocabulary it, and what follows, is much of a forward pass."""
    ids_BL, mask_BL = sequence(rollout)
    at_BL = torch.nn.functional.pad(at_BT, (rollout.prompt_ids_BP.shape[1] - 1, 1))
    seen = []

    def choose(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(module)
        return (inputs[0][at_BL][None],)

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    hook = head.register_forward_pre_hook(choose) if head is not None else None
    try:
        logits = model(
            input_ids=ids_BL, attention_mask=mask_BL.long(), position_ids=position_ids(mask_BL), use_cache=False
        ).logits
    finally:
        if hook is not None:
            hook.remove()
    return (logits[0] if seen else logits[at_BL]).float()


def hidden_states(model: Any, rollout: Rollout) -> Tensor:
    """Last hidden states in fp32, after the final norm, one position before each response token, shape (B, T, d)."""
    ids_BL, mask_BL = sequence(rollout)
    output = model(
        input_ids=ids_BL,
        attention_mask=mask_BL.long(),
        position_ids=position_ids(mask_BL),
        use_cache=False,
        logits_to_keep=1,
        output_hidden_states=True,
    )
    return output.hidden_states[-1][:, rollout.prompt_ids_BP.shape[1] - 1 : -1].float()


def gather_logprobs(logits_NV: Tensor, ids_N: Tensor, temperature: float) -> Tensor:
    """log softmax(z / τ)[y], shape (N,) or that of the ids: the law that the sampler draws from."""
    scaled_NV = logits_NV if temperature == 1 else logits_NV / temperature
    chosen_N = scaled_NV.gather(-1, ids_N[..., None]).squeeze(-1)
    return chosen_N - scaled_NV.logsumexp(-1)


def entropy(logits_NV: Tensor, temperature: float) -> Tensor:
    """Entropy of softmax(z / τ), nats per token, shape (N,) or that of the logits without the vocabulary."""
    logprobs_NV = (logits_NV / temperature).log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def placed(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """What was computed for the real tokens at their places, 0 elsewhere, shape (B, T)."""
    return values_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N)


def response_logprobs(model: Any, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """logprobs_BT of the response tokens given everything before them; 0 in masked places."""
    return placed_logprobs(token_logits(model, rollout), rollout, temperature)


def placed_logprobs(logits_NV: Tensor, rollout: Rollout, temperature: float) -> Tensor:
    """logprobs_BT from what `token_logits` gave."""
    return placed(gather_logprobs(logits_NV, rollout.response_ids_BT[rollout.mask_BT], temperature), rollout.mask_BT)


def make_head_input_contiguous(model: Any) -> None:
    """Hands the output layer contiguous hidden states.

    With `logits_to_keep` it would get a slice; on the CPU that falls into a batched product which copies the whole
    vocabulary matrix for each sequence, more than half of a small model's forward time.
    """
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
