"""Supervised fine-tuning on demonstrations."""

import math

import torch

from rlhf_lab.contracts import StageRef, hookimpl, param, slot
from rlhf_lab.errors import DataError
from rlhf_lab.lm.files import load_causal_lm, load_encoder, merged, save_causal_lm
from rlhf_lab.lm.logprobs import make_head_input_contiguous, response_logprobs
from rlhf_lab.lm.sampling import rollout
from rlhf_lab.lm.tokens import Encoder, microbatch_rows, trim
from rlhf_lab.lm.training import AdaptationParameters, FitParameters, fit, prepared
from rlhf_lab.rl.evaluation import sample_rows
from rlhf_lab_plugins.stage.rejection_sampling import read_demonstrations


class SFT(AdaptationParameters, FitParameters):
    """L = −Σ_t m_t log π(y_t | x, y_<t) / Σ_t m_t, over the response tokens of a batch, EOS included.

    The sum over tokens is divided by the true number of tokens of the whole batch, however it is split. Steps rows:
    `loss` in nats per token, after each epoch `loss` and `perplexity` on the validation split. Samples: step 0 is the
    base model, the last step the fine-tuned one, on the same held-out prompts with the same noise.
    """

    kind, name = "stage", "sft"
    init: StageRef | None = param(None, "a stage to start from; default: the base model")
    model: slot("model") | None = param(None, "other weights than the run's, such as for a reward model of another size")
    demonstrations: StageRef | None = param(None, "a stage that wrote demonstrations; default: those of the data")
    examples: int | None = param(None, "use the first so many demonstrations; default: all", ge=1)
    pretraining_fraction: float = param(
        0.0,
        "pretraining texts added to each batch, as a share of it",
        ge=0,
        lt=1,
        source="Ouyang et al. 2022, C.3: 0.1 for the model that PPO starts from",
    )
    validation_examples: int = param(256, "demonstrations that are validated on, at most", ge=1)
    log_samples: int = param(8, "responses before and after, for the samples table", ge=0)
    sample_length: int = param(28, "longest response that is sampled for the table", ge=1, unit="tokens")
    sample_temperature: float = param(1.0, "temperature of those samples", gt=0)

    def run(self, ctx):
        model, encoder = start(ctx, self.init, self.model)
        demonstrations = self.shown(ctx, "train")[: self.examples]
        held_out = self.shown(ctx, "validation")[: self.validation_examples]
        if not demonstrations:
            raise DataError("there are no demonstrations to train on")
        log_samples(self, ctx, model, encoder, 0)
        trained = prepared(self, ctx, model)
        pretraining = ctx.data.pretraining("train") if self.pretraining_fraction else []

        def gradient(step, index):
            batch = encode(encoder, [demonstrations[i] for i in index])
            extra = round(self.pretraining_fraction * len(index))
            picked = ctx.rng("pretraining", step).choice(len(pretraining), extra) if extra else []
            parts = [batch, encoder.texts([pretraining[i] for i in picked])] if extra else [batch]
            return {"loss": token_mean_gradient(ctx, trained, parts, self.microbatch_size)}

        def validate(step):
            if step % per_epoch == 0:
                loss = mean_loss(ctx, trained, encoder, held_out, self.microbatch_size or self.batch_size)
                ctx.log(step, "validation", loss=loss, perplexity=math.exp(min(loss, 700.0)), epoch=step // per_epoch)

        per_epoch = self.steps_per_epoch(len(demonstrations))
        fit(self, ctx, trained, len(demonstrations), gradient, validate, dropout=self.dropout)
        final = merged(trained)
        log_samples(self, ctx, final, encoder, self.epochs * per_epoch)
        save_causal_lm(final, encoder.tokenizer, ctx.folder)

    def shown(self, ctx, split):
        """The demonstrations of a split."""
        if self.demonstrations is None:
            return ctx.data.demonstrations(split)
        return read_demonstrations(ctx.input(self.demonstrations), split)


def start(ctx, init, other=None):
    """The model to train and its encoder: the base model of the spec, or another stage's."""
    if init is not None:
        model, encoder = load_causal_lm(ctx.input(init)), load_encoder(ctx.input(init), ctx.template)
    else:
        model, tokenizer = ctx.base_model if other is None else other.open(ctx)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", 10**9)
        encoder = Encoder(tokenizer, ctx.template, context)
        make_head_input_contiguous(model)
    return model.eval().to(ctx.device), encoder


def encode(encoder, demonstrations):
    return encoder.encode([d.prompt for d in demonstrations], [d.completion for d in demonstrations])


def token_mean_gradient(ctx, model, parts, microbatch_size):
    """Accumulates the gradient of the token mean over all `parts`; returns the loss in nats per token."""
    n_tokens, total = sum(int(part.mask_BT.sum()) for part in parts), 0.0
    for part in parts:
        for rows in microbatch_rows(part, microbatch_size):
            rollout_bt = trim(part.rows(rows)).to(ctx.device)
            with ctx.accelerator.autocast():
                loss = -response_logprobs(model, rollout_bt).sum() / n_tokens
            loss.backward()
            total += loss.item()
    return total


@torch.no_grad()
def mean_loss(ctx, model, encoder, demonstrations, batch_size):
    """Nats per response token over all demonstrations; NaN without any."""
    total = n_tokens = 0.0
    for first in range(0, len(demonstrations), batch_size):
        batch = encode(encoder, demonstrations[first : first + batch_size]).to(ctx.device)
        with ctx.accelerator.autocast():
            total -= response_logprobs(model, batch).sum().item()
        n_tokens += int(batch.mask_BT.sum())
    return total / n_tokens if n_tokens else math.nan


def log_samples(cfg, ctx, model, encoder, step):
    if cfg.log_samples:
        prompts = ctx.data.prompts("validation")[: cfg.log_samples]
        with ctx.accelerator.autocast():
            sampled = rollout(
                model,
                encoder,
                prompts,
                ctx.rng("evaluation"),
                response_length=cfg.sample_length,
                temperature=cfg.sample_temperature,
            )
        unscored_B = torch.full((len(sampled),), math.nan)
        ctx.log_samples(step, sample_rows(sampled, unscored_B, unscored_B, cfg.log_samples))


@hookimpl
def register_components(register):
    register(SFT)
