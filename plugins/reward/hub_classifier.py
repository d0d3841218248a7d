"""A sequence classifier as reward: a sentiment model, somebody's published reward model."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import model_validator

from rlhf_lab.contracts import Component, Scores, hookimpl, param
from rlhf_lab.declaration.consent import outside
from rlhf_lab.errors import ModelError
from rlhf_lab.lm.precision import ready
from rlhf_lab_plugins.model.hf import check_fit, existing_folder, folder_hashes, hub_commit, one_line


class HubClassifier(Component):
    """z_label, log p_label or p_label of a classifier (transformers' AutoModelForSequenceClassification) read as text.

    A model with one label is a reward model; its score is the logit. No code that comes with weights is run.
    """

    kind, name = "reward", "hub_classifier"
    folder: str | None = param(None, "a local folder, relative to the spec")
    hub: str | None = param(None, "a name on the Hugging Face Hub, such as siebert/sentiment-roberta-large-english")
    revision: str = param("main", "with `hub`: branch, tag or, best, commit")
    label: str | None = param(None, "the label that is scored, by the name in the model's config; none with a single one")
    output: Literal["logit", "log_prob", "prob"] = param("logit", "what is read")
    include_prompt: bool = param(False, "score prompt and response, joined by a blank, instead of the response alone")
    max_tokens: int = param(512, "longer texts are cut at the end", ge=1)
    microbatch_size: int = param(64, "texts per forward pass; changes memory, not numbers", ge=1)

    @model_validator(mode="after")
    def _one_source(self):
        if (self.folder is None) == (self.hub is None):
            raise ValueError("give either `folder` or `hub`")
        return self

    def asks(self, spec_folder):
        return outside(spec_folder, self.folder)

    def fingerprint(self, spec_folder):
        """blake2b of each file of the folder, or the commit on the hub."""
        return {"commit": hub_commit(self.hub, self.revision)} if self.hub else folder_hashes(Path(spec_folder) / self.folder)

    def open(self, ctx):
        model, tokenizer = load(self, ctx)
        column = label_column(self, model.config)

        @torch.no_grad()
        def score(rollout):
            texts = [f"{x} {y}" if self.include_prompt else y for x, y in zip(rollout.prompts, rollout.responses, strict=True)]
            parts = [texts[i : i + self.microbatch_size] for i in range(0, len(texts), self.microbatch_size)]
            return Scores(torch.cat([self.read(model, tokenizer, part)[:, column] for part in parts]))

        return score

    def read(self, model, tokenizer, texts):
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        logits_BC = model(**encoded.to(model.device)).logits.float()
        return {"logit": logits_BC, "log_prob": logits_BC.log_softmax(1), "prob": logits_BC.softmax(1)}[self.output]


def load(cfg, ctx):
    """Model and tokenizer, dropout off; ModelError where they cannot be loaded or do not fit each other."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = (
        hub_source(cfg) if cfg.hub else {"pretrained_model_name_or_path": existing_folder(Path(ctx.spec_folder) / cfg.folder)}
    )
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            **source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{cfg.hub or cfg.folder} holds no classifier that can be loaded: {one_line(error)}") from None
    check_fit(info, cfg.hub or cfg.folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    return ready(model.eval().requires_grad_(False), ctx, frozen=True), tokenizer


def hub_source(cfg):
    return {"pretrained_model_name_or_path": cfg.hub, "revision": hub_commit(cfg.hub, cfg.revision)}


def label_column(cfg, config):
    """The index of the label that is scored. Raises ModelError where there is a choice and none is made, and vice versa."""
    names = {str(name): int(index) for index, name in config.id2label.items()}
    if len(names) == 1 and cfg.label is None:
        if cfg.output != "logit":
            raise ModelError(f"a classifier with a single label has no {cfg.output}; set output: logit")
        return 0
    if cfg.label not in names:
        raise ModelError(f"label must be one of {', '.join(names)} of this classifier, not {cfg.label!r}")
    return names[cfg.label]


@hookimpl
def register_components(register):
    register(HubClassifier)
