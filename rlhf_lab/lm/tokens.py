"""Text to padded tensors and back. Prompts are padded on the left, responses on the right; masks come from lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.contracts import Rollout
from rlhf_lab.errors import DataError, ModelError


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """ids_NL and mask_NL (bool) of ragged rows."""
    lengths = torch.tensor([len(row) for row in rows])
    width = max(1, int(lengths.max()))
    place = torch.arange(width).expand(len(rows), width)
    mask_NL = place >= width - lengths[:, None] if left else place < lengths[:, None]
    ids_NL = torch.full((len(rows), width), value)
    ids_NL[mask_NL] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return ids_NL, mask_NL


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and a prompt template, with the one rule of how text becomes tokens.

    tokens(x, y) = [BOS, if the tokenizer adds one] + tokens(template(x)) + tokens(y) + [EOS]. Prompt and response are
    tokenised apart, so that the boundary never moves; the EOS is part of the response.
    """

    tokenizer: Any
    template: Any
    context: int

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no EOS token; set one (tokenizer.eos_token) and save it with the model")

    @property
    def eos(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def pad(self) -> int:
        """EOS where the tokenizer has no padding token: what stands in masked places changes nothing."""
        return self.eos if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    def prompt_ids(self, prompt: str) -> list[int]:
        text = self.template.format(prompt, self.tokenizer)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if getattr(self.tokenizer, "add_bos_token", False) and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        if not ids:
            raise DataError(f"the prompt {prompt!r} has no tokens; a policy needs at least one token to continue from")
        return ids

    def response_ids(self, response: str, eos: bool = True) -> list[int]:
        ids = self.tokenizer(response, add_special_tokens=False)["input_ids"]
        return [*ids, self.eos] if eos else ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompts(self, prompts: Sequence[str], room: int) -> tuple[Tensor, Tensor]:
        """prompt_ids_BP and prompt_mask_BP, left-padded. Raises DataError where `room` more tokens do not fit the context."""
        rows = [self.prompt_ids(prompt) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) + room > self.context:
                raise DataError(
                    f"a prompt of {len(row)} tokens and a response of {room} exceed the model's context of "
                    f"{self.context} tokens; shorten the response or drop the prompt that begins {prompt[:60]!r}"
                )
        return pad(rows, self.pad, left=True)

    def encode(self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None) -> Rollout:
        """Given text as a rollout: what a data file holds, scored like what a policy sampled. All end with EOS by default."""
        ends = [True] * len(responses) if ended is None else list(ended)
        response_rows = [self.response_ids(response, eos) for response, eos in zip(responses, ends, strict=True)]
        prompt_ids_BP, prompt_mask_BP = self.prompts(prompts, max(len(row) for row in response_rows))
        response_ids_BT, mask_BT = pad(response_rows, self.pad)
        n = len(response_rows)
        return Rollout(
            tuple(prompts),
            tuple(responses),
            prompt_ids_BP,
            prompt_mask_BP,
            response_ids_BT,
            mask_BT,
            ended_B=torch.tensor(ends),
            group_B=torch.arange(n),
        )

    def texts(self, texts: Sequence[str]) -> Rollout:
        """Whole texts as rollouts: the first token (BOS, if the tokenizer adds one) is the prompt, the rest the response."""
        bos = [self.tokenizer.bos_token_id] if getattr(self.tokenizer, "add_bos_token", False) else []
        rows = [(bos + self.response_ids(text))[: self.context] for text in texts]
        prompt_ids_BP, prompt_mask_BP = pad([row[:1] for row in rows], self.pad, left=True)
        response_ids_BT, mask_BT = pad([row[1:] for row in rows], self.pad)
        n = len(rows)
        return Rollout(
            ("",) * n,
            tuple(texts),
            prompt_ids_BP,
            prompt_mask_BP,
            response_ids_BT,
            mask_BT,
            ended_B=torch.ones(n, dtype=torch.bool),
            group_B=torch.arange(n),
        )


def trim(rollout: Rollout) -> Rollout:
    """The same sequences without columns that are padding for all of them."""
    start = rollout.prompt_ids_BP.shape[1] - int(rollout.prompt_mask_BP.sum(1).max())
    stop = max(1, int(rollout.places_BT.sum(1).max()))
    return Rollout(
        rollout.prompts,
        rollout.responses,
        rollout.prompt_ids_BP[:, start:],
        rollout.prompt_mask_BP[:, start:],
        rollout.response_ids_BT[:, :stop],
        rollout.mask_BT[:, :stop],
        rollout.ended_B,
        rollout.group_B,
        None if rollout.logprobs_BT is None else rollout.logprobs_BT[:, :stop],
        None if rollout.states_BT is None else rollout.states_BT[:, :stop],
    )


def microbatch_rows(rollout: Rollout, size: int | None) -> tuple[Tensor, ...]:
    """Row numbers of parts of at most `size` sequences: short responses together, so that little of a part is padding."""
    n = len(rollout)
    if size is None or size >= n:
        return (torch.arange(n),)
    return rollout.places_BT.sum(1).cpu().argsort(stable=True).split(size)


def in_microbatches(function: Callable[[Rollout], Sequence[Tensor]], rollout: Rollout, size: int | None) -> list[Tensor]:
    """`function(part) -> tensors (b, t)` over parts of at most `size` sequences, each trimmed; put together as (B, T)."""
    width, rows = rollout.mask_BT.shape[1], microbatch_rows(rollout, size)
    parts = [function(trim(rollout.rows(index))) for index in rows]
    back = torch.cat(rows).argsort()
    return [
        torch.cat([torch.nn.functional.pad(x_bt, (0, width - x_bt.shape[1])) for x_bt in column])[back]
        for column in zip(*parts, strict=True)
    ]
