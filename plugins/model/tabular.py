"""A language model that is a table: a row of logits for each context."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_lab.contracts import Component, hookimpl
from rlhf_lab.errors import ModelError
from rlhf_lab.proof.exact import n_contexts


class Tabular(Component):
    """Softmax tables over all contexts of data `enumerable`, started from the law that wrote its demonstrations.

    So the reference is what supervised fine-tuning without error would give, and every policy can be reached. For policy
    `tabular`; stages that load a transformer from a folder (sft, best_of_n, …) want model `scratch` on the same data.
    """

    kind, name = "model", "tabular"

    def open(self, ctx):
        if not hasattr(ctx.data, "language"):
            raise ModelError("model 'tabular' needs a world whose contexts can be listed; set data: enumerable")
        return ContextTable(ctx.data.language().float()), ctx.data.tokenizer()


class ContextTable(nn.Module):
    """logits = table[context]: called like a causal language model of transformers, so that the code around is the same.

    A context is the string of real tokens so far, numbered in bijective base V; padding leaves it as it is. Strings longer
    than the table knows, which a sampler makes after an EOS, get its last row.
    """

    def __init__(self, logits_CV: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits_CV.clone())

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def context(self) -> int:
        """Tokens of the longest prompt and response that the table can write."""
        n_rows, vocabulary = self.table.shape
        longest = next(n for n in range(n_rows) if n_contexts(vocabulary, n) == n_rows)
        return longest + 1

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Any:
        """Logits after each of the last `logits_to_keep` positions (0: all); the cache is the code of the context."""
        code_B = input_ids.new_zeros(len(input_ids)) if past_key_values is None else past_key_values
        codes = []
        for ids_B, real_B in zip(input_ids.T, attention_mask[:, -input_ids.shape[1] :].T, strict=True):
            longer_B = (code_B * self.table.shape[1] + ids_B + 1).clamp(max=len(self.table) - 1)
            code_B = torch.where(real_B.bool(), longer_B, code_B)
            codes.append(code_B)
        return SimpleNamespace(logits=self.table[torch.stack(codes[-logits_to_keep:], 1)], past_key_values=code_B)

    def save_pretrained(self, folder: Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({"table": self.table.detach().cpu().contiguous()}, Path(folder) / "table.safetensors")


def load_table(folder: Path) -> ContextTable:
    """The table that policy `tabular` saved."""
    path = Path(folder) / "table.safetensors"
    if not path.is_file():
        raise ModelError(f"{folder} holds no table (table.safetensors is missing)")
    return ContextTable(load_file(path)["table"])


@hookimpl
def register_components(register):
    register(Tabular)
