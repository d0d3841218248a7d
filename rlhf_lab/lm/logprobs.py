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


def response_logits(model: Any, rollout: Rollout) -> Tensor:
    """logits_BTV in fp32: those for response token t stand at the position before it."""
    ids_BL, mask_BL = sequence(rollout)
    n_response = rollout.response_ids_BT.shape[1]
    output = model(
        input_ids=ids_BL,
        attention_mask=mask_BL.long(),
        position_ids=position_ids(mask_BL),
        use_cache=False,
        logits_to_keep=n_response + 1,
    )
    return output.logits[:, :-1].float()


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


def gather_logprobs(logits_BTV: Tensor, ids_BT: Tensor, temperature: float) -> Tensor:
    """log softmax(z / τ)[y], shape (B, T): the law that the sampler draws from."""
    scaled_BTV = logits_BTV if temperature == 1 else logits_BTV / temperature
    chosen_BT = scaled_BTV.gather(-1, ids_BT[..., None]).squeeze(-1)
    return chosen_BT - scaled_BTV.logsumexp(-1)


def entropy(logits_BTV: Tensor, temperature: float) -> Tensor:
    """Entropy of softmax(z / τ) at each position, nats per token, shape (B, T)."""
    logprobs_BTV = (logits_BTV / temperature).log_softmax(-1)
    return -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)


def response_logprobs(model: Any, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """logprobs_BT of the response tokens given everything before them; 0 in masked places."""
    logprobs_BT = gather_logprobs(response_logits(model, rollout), rollout.response_ids_BT, temperature)
    return logprobs_BT.masked_fill(~rollout.mask_BT, 0.0)


def make_head_input_contiguous(model: Any) -> None:
    """Hands the output layer contiguous hidden states.

    With `logits_to_keep` it would get a slice; on the CPU that falls into a batched product which copies the whole
    vocabulary matrix for each sequence, more than half of a small model's forward time.
    """
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
