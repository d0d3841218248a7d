"""A language model with a scalar head: reward models and critics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_lab.contracts import Rollout
from rlhf_lab.errors import ModelError
from rlhf_lab.lm.logprobs import position_ids, sequence
from rlhf_lab.store.files import read_json, write_json

if TYPE_CHECKING:
    from rlhf_lab.context import StageContext

Pooling = Literal["last", "mean", "sum"]


class ScalarModel(nn.Module):
    """w·h + b at each position, times `gain` plus `bias` once it is normalised.

    The head starts at N(0, 1/(d+1)) in variance, bias 0 (lm-human-preferences; Huang et al. 2024, detail 5). With several
    `heads` each number has them as last dimension.
    """

    def __init__(
        self, backbone: nn.Module, pooling: Pooling = "last", generator: torch.Generator | None = None, heads: int = 1
    ) -> None:
        super().__init__()
        d_model = backbone.config.get_text_config().hidden_size
        self.backbone, self.pooling = backbone, pooling
        self.gain, self.bias = 1.0, 0.0
        self.head = nn.Linear(d_model, heads)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(heads, d_model, generator=generator) / math.sqrt(d_model + 1))
            self.head.bias.zero_()

    def hidden(self, rollout: Rollout) -> Tensor:
        """Hidden states of prompt and response, shape (B, P+T, d)."""
        ids_BL, mask_BL = sequence(rollout)
        output = self.backbone(
            input_ids=ids_BL, attention_mask=mask_BL.long(), position_ids=position_ids(mask_BL), use_cache=False
        )
        return output.last_hidden_state

    def read(self, hidden: Tensor) -> Tensor:
        """The head in fp32 wherever the backbone runs in bf16."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1)

    def raw_scores(self, rollout: Rollout) -> Tensor:
        """scores_B before normalisation: read at the last response token, or the mean or sum over the response tokens."""
        per_token_BT = self.read(self.hidden(rollout)[:, rollout.prompt_ids_BP.shape[1] :])
        length_B = rollout.mask_BT.sum(1)
        if self.pooling == "last":
            return per_token_BT.gather(1, (length_B - 1).clamp(min=0)[:, None]).squeeze(1)
        total_B = per_token_BT.masked_fill(~rollout.mask_BT, 0.0).sum(1)
        return total_B / length_B if self.pooling == "mean" else total_B

    def scores(self, rollout: Rollout) -> Tensor:
        return self.gain * self.raw_scores(rollout) + self.bias

    def values(self, rollout: Rollout) -> Tensor:
        """values_BT: what is read one position before response token t, that is, knowing the tokens before t only."""
        first = rollout.prompt_ids_BP.shape[1] - 1
        return self.gain * self.read(self.hidden(rollout)[:, first:-1]) + self.bias

    def save(self, folder: Path, tokenizer: Any) -> None:
        self.backbone.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_file({key: value.contiguous() for key, value in self.head.state_dict().items()}, folder / "head.safetensors")
        write_json(folder / "head.json", {"pooling": self.pooling, "gain": self.gain, "bias": self.bias})


def value_backbone(ctx: StageContext, stage: str | None, policy: Any) -> nn.Module:
    """The backbone of a stage, or, with None, one of the policy's architecture whose weights are drawn from the seed."""
    from transformers import AutoModel

    from rlhf_lab.lm.files import load_backbone

    if stage is not None:
        return load_backbone(ctx.input(stage))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(ctx.rng("critic").integers(2**63)))
        return AutoModel.from_config(policy.module.config, dtype=torch.float32).eval()


def load_scalar_model(folder: Path) -> ScalarModel:
    """A saved reward model or critic. Raises ModelError where the folder holds none, or the head does not fit."""
    from rlhf_lab.lm.files import load_backbone

    if not (folder / "head.json").is_file():
        raise ModelError(f"{folder} holds no reward model (head.json is missing)")
    settings = read_json(folder / "head.json")
    model = ScalarModel(load_backbone(folder), settings["pooling"])
    try:
        model.head.load_state_dict(load_file(folder / "head.safetensors"))
    except RuntimeError as error:
        raise ModelError(f"the head in {folder} does not fit the model beside it: {error}") from None
    model.gain, model.bias = settings["gain"], settings["bias"]
    return model
