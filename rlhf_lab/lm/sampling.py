"""Sampling with a key-value cache, by inverse transform from given uniform numbers.

One uniform number per sequence and position decides the token, so the noise does not depend on the vocabulary, the device
or the weights, and two policies that share a seed share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.contracts import Rollout
from rlhf_lab.lm.logprobs import position_ids
from rlhf_lab.lm.tokens import Encoder


def choose_tokens(logits_BV: Tensor, uniforms_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative law of softmax(z / τ) passes u, and its log-prob.

    A token of probability 0 is never chosen.
    """
    logprobs_BV = (logits_BV / temperature).log_softmax(-1)
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    threshold_B1 = uniforms_B[:, None] * cumulative_BV[:, -1:]
    ids_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True).clamp(max=logits_BV.shape[1] - 1)
    return ids_B1.squeeze(1), logprobs_BV.gather(1, ids_B1).squeeze(1)


def choose_greedily(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    logprobs_B, ids_B = logits_BV.log_softmax(-1).max(-1)
    return ids_B, logprobs_B


@torch.no_grad()
def sample(
    model: Any,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    uniforms_BT: Tensor | None,
    *,
    length: int,
    temperature: float,
    eos: int,
    pad: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Continues each prompt by at most `length` tokens; greedily where `uniforms_BT` is None.

    Returns response_ids_BT, mask_BT (up to and including EOS), logprobs_BT (at τ, 0 in masked places) and ended_B;
    T is the longest response that was needed.
    """
    attention = prompt_mask_BP.long()
    positions = position_ids(attention)
    ids, cache = prompt_ids_BP, None
    alive_B = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    tokens, masks, logprobs = [], [], []
    for t in range(length):
        output = model(
            input_ids=ids,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits_BV = output.past_key_values, output.logits[:, -1].float()
        if uniforms_BT is None:
            ids_B, logprobs_B = choose_greedily(logits_BV)
        else:
            ids_B, logprobs_B = choose_tokens(logits_BV, uniforms_BT[:, t], temperature)
        masks.append(alive_B)
        tokens.append(torch.where(alive_B, ids_B, pad))
        logprobs.append(torch.where(alive_B, logprobs_B, 0.0))
        alive_B = alive_B & (ids_B != eos)
        if not alive_B.any():
            break
        ids = tokens[-1][:, None]
        attention = torch.cat([attention, attention.new_ones(len(ids), 1)], 1)
        positions = positions[:, -1:] + 1
    return torch.stack(tokens, 1), torch.stack(masks, 1), torch.stack(logprobs, 1), ~alive_B


def rollout(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[str],
    rng: np.random.Generator,
    *,
    samples: int = 1,
    greedy: bool = False,
    response_length: int,
    temperature: float,
) -> Rollout:
    """`samples` responses to each prompt, next to each other. `rng` gives one uniform number per sequence and position."""
    repeated = tuple(prompt for prompt in prompts for _ in range(samples))
    prompt_ids_BP, prompt_mask_BP = (x.to(model.device) for x in encoder.prompts(repeated, response_length))
    uniforms_BT = torch.from_numpy(rng.random((len(repeated), response_length))).to(model.device)
    response_ids_BT, mask_BT, logprobs_BT, ended_B = sample(
        model,
        prompt_ids_BP,
        prompt_mask_BP,
        None if greedy else uniforms_BT,
        length=response_length,
        temperature=temperature,
        eos=encoder.eos,
        pad=encoder.pad,
    )
    responses = tuple(encoder.decode(ids[mask].tolist()) for ids, mask in zip(response_ids_BT, mask_BT, strict=True))
    group_B = torch.arange(len(repeated), device=model.device) // samples
    return Rollout(repeated, responses, prompt_ids_BP, prompt_mask_BP, response_ids_BT, mask_BT, ended_B, group_B, logprobs_BT)
