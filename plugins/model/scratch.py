"""A new model with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab.declaration.consent import outside
from rlhf_lab.errors import ModelError
from rlhf_lab_plugins.model.hf import existing_folder, folder_hashes, load_tokenizer, one_line, usable


class Scratch(Component):
    """A causal language model of any architecture that transformers has, initialised from the seed of the stage.

    The tokenizer is that of the data, if the data brings one, or that of a folder.
    """

    kind, name = "model", "scratch"
    architecture: str = param("llama", "a model type of transformers, such as llama, gpt2, qwen2")
    hidden_size: int = param(64, "width of the residual stream", ge=1)
    layers: int = param(2, "transformer blocks", ge=1)
    heads: int = param(4, "attention heads (as many for keys and values)", ge=1)
    intermediate_size: int | None = param(None, "width inside the feed-forward blocks; default: 4 · hidden_size", ge=1)
    tie_embeddings: bool = param(True, "the output layer is the input embedding")
    context: int = param(128, "longest sequence", ge=2, unit="tokens")
    tokenizer: str | None = param(None, "folder of a tokenizer, relative to the spec; default: that of the data")

    def open(self, ctx: Any) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM

        tokenizer = self._tokenizer(ctx)
        config = build_config(self, tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            try:
                return AutoModelForCausalLM.from_config(config).eval(), tokenizer
            except (ValueError, RuntimeError) as error:
                raise ModelError(f"no {self.architecture} model can be built with these sizes: {one_line(error)}") from None

    def asks(self, spec_folder: Path) -> list[tuple[str, str]]:
        return outside(spec_folder, self.tokenizer)

    def fingerprint(self, spec_folder: Path) -> dict[str, str]:
        """blake2b of each file of the tokenizer's folder."""
        return {} if self.tokenizer is None else folder_hashes(Path(spec_folder) / self.tokenizer)

    def _tokenizer(self, ctx: Any) -> Any:
        if self.tokenizer is not None:
            return load_tokenizer(existing_folder(Path(ctx.spec_folder) / self.tokenizer))
        tokenizer = ctx.data.tokenizer()
        if tokenizer is None:
            raise ModelError("a model from scratch needs a tokenizer and the data brings none: set `model.tokenizer: FOLDER`")
        return usable(tokenizer, "the data")


def build_config(cfg: Scratch, tokenizer: Any) -> Any:
    """The configuration of the asked-for architecture; a size that this architecture does not have is an error."""
    from transformers import AutoConfig

    if cfg.hidden_size % cfg.heads:
        raise ModelError(f"hidden_size {cfg.hidden_size} must be a multiple of heads ({cfg.heads})")
    try:
        standard = AutoConfig.for_model(cfg.architecture)
    except ValueError:
        raise ModelError(f"transformers has no architecture {cfg.architecture!r}; use llama, gpt2 or qwen2, say") from None
    wanted = sizes(cfg, standard)
    if unknown := sorted(key for key in wanted if not hasattr(standard, key)):
        raise ModelError(f"the architecture {cfg.architecture!r} has no {', '.join(unknown)}; choose another, or leave it out")
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return AutoConfig.for_model(cfg.architecture, vocab_size=len(tokenizer), **ids, **wanted)


def sizes(cfg: Scratch, standard: Any) -> dict[str, Any]:
    """The parameters under the names that configurations of transformers have for them."""
    wanted = {
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "max_position_embeddings": cfg.context,
        "tie_word_embeddings": cfg.tie_embeddings,
    }
    derived = {
        "num_key_value_heads": cfg.heads,
        "head_dim": cfg.hidden_size // cfg.heads,
        "intermediate_size": 4 * cfg.hidden_size,
    }
    wanted |= {key: value for key, value in derived.items() if hasattr(standard, key)}
    if cfg.intermediate_size is not None:
        wanted["n_inner" if hasattr(standard, "n_inner") else "intermediate_size"] = cfg.intermediate_size
    return wanted


@hookimpl
def register_components(register):
    register(Scratch)
