"""Models between stages: folders of safetensors, config and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rlhf_lab.errors import ModelError
from rlhf_lab.lm.logprobs import make_head_input_contiguous
from rlhf_lab.lm.tokens import Encoder


def model_folder(folder: Path) -> Path:
    """Where in a stage's folder its model is: stages that train a policy keep it in `policy`."""
    return folder / "policy" if (folder / "policy").is_dir() else folder


def _pretrained(loader: Any, folder: Path) -> Any:
    """Loads strictly: a checkpoint of another architecture is an error, not a half-random model."""
    folder = model_folder(folder)
    try:
        model, info = loader.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} holds no model that can be loaded: {' '.join(str(error).split())}") from None
    unfit = {key: sorted(map(str, info[key])) for key in ("missing_keys", "mismatched_keys") if info.get(key)}
    if unfit:
        raise ModelError(f"the weights in {folder} are those of another architecture than its config.json: {unfit}")
    return model.eval()


def load_causal_lm(folder: Path) -> Any:
    """The causal language model of a stage, in fp32, dropout off, on the CPU."""
    from transformers import AutoModelForCausalLM

    model = _pretrained(AutoModelForCausalLM, folder)
    make_head_input_contiguous(model)
    return model


def load_backbone(folder: Path) -> Any:
    """The same without its output layer."""
    from transformers import AutoModel

    return _pretrained(AutoModel, folder)


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(folder), local_files_only=True, trust_remote_code=False)


def load_encoder(folder: Path, template: Any) -> Encoder:
    """The tokenizer of a stage with the run's template."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_folder(folder), local_files_only=True, trust_remote_code=False).get_text_config()
    return Encoder(load_tokenizer(folder), template, context=getattr(config, "max_position_embeddings", 10**9))


def save_causal_lm(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def merged(model: Any) -> Any:
    """The model with its adapter, if it has one, added into the weights."""
    return model.float().merge_and_unload() if hasattr(model, "merge_and_unload") else model


def freeze_embeddings(model: Any) -> None:
    """Keeps the input embedding (and the output layer where they are tied) as it is: most of a small model's weights."""
    model.get_input_embeddings().weight.requires_grad_(False)


def set_dropout(model: Any, rate: float) -> None:
    """Dropout as modules and as configuration, since transformers models read both."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
    for key in ("attention_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop", "hidden_dropout", "dropout"):
        if hasattr(model.config, key):
            setattr(model.config, key, rate)
        for module in model.modules():
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, rate)
