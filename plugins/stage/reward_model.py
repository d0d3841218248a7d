"""The reward model: a scalar head on the supervised model, trained on rankings."""

import itertools
import math
from typing import Literal

import torch

from rlhf_lab.contracts import StageRef, hookimpl, param, slot
from rlhf_lab.errors import DataError
from rlhf_lab.lm.files import load_backbone, load_causal_lm, load_encoder, merged
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.sampling import rollout
from rlhf_lab.lm.scalar import Pooling, ScalarModel
from rlhf_lab.lm.tokens import microbatch_rows, trim
from rlhf_lab.lm.training import AdaptationParameters, FitParameters, fit, prepared
from rlhf_lab.streams import shuffled_batches
from rlhf_lab_plugins.stage.comparisons import given_rankings

PARTS = 4  # of a batch, each padded to its own longest: of sentences, two fifths of one rectangle would be padding


class RewardModel(AdaptationParameters, FitParameters):
    """r(x, y) = gain · pool(w·h + b) + bias, trained so that preferred responses score higher.

    All completions of a prompt are in one batch element and pass the network once each (Ouyang et al. 2022, eq. 1).
    Steps rows: `loss`, `accuracy` (share of untied pairs in the right order), `accuracy_margin_<m>` on pairs whose
    ratings differ by more than m; `correlation` of score and rating.
    """

    kind, name = "stage", "reward_model"
    init: StageRef = param("sft", "the stage that the backbone comes from")
    comparisons: StageRef | list[StageRef] | None = param(
        None, "a stage that made rankings, or several whose rankings are put together; default: those of the data"
    )
    share: tuple[float, float] = param((0.0, 1.0), "the part of the training rankings that is used, as fractions of the list")
    examples: int | None = param(None, "use the first so many rankings of that part; default: all", ge=1)
    loss: slot("reward_loss") = param("kwise", "what is minimised")
    pooling: Pooling = param("last", "where the score is read: at the last response token, or mean or sum over the response")
    normalize: Literal["none", "demonstrations", "policy_samples"] = param(
        "policy_samples",
        "bias so that demonstrations score 0 on average (Ouyang et al. 2022, C.2), or gain and bias so "
        "that samples of `init` have mean 0 and standard deviation 1 (Ziegler et al. 2019)",
    )
    normalize_examples: int = param(256, "demonstrations or samples used for that", ge=2)
    sample_length: int = param(28, "longest response sampled for that", ge=1, unit="tokens")
    sample_temperature: float = param(1.0, "temperature of those samples", gt=0)
    margins: list[float] = param([1.0], "rating differences for which accuracy is reported apart")
    validation_examples: int = param(256, "rankings that are validated on, at most", ge=1)
    validate_at_start: bool = param(False, "also measure the untrained model")

    def run(self, ctx):
        encoder = load_encoder(ctx.input(self.init), ctx.template)
        backbone = prepared(self, ctx, load_backbone(ctx.input(self.init)))
        model = ScalarModel(backbone, self.pooling, ctx.torch_rng("head")).to(ctx.device)
        train, held_out = self.rankings(ctx, "train"), self.rankings(ctx, "validation")[: self.validation_examples]
        examples = self.loss.examples(train)

        def gradient(step, index):
            batch = [examples[i] for i in index]
            return {"loss": self.accumulate(ctx, model, encoder, batch), "rankings": len(batch)}

        def validate(step):
            if held_out and step % per_epoch == 0:
                ctx.log(step, "validation", **self.validation(ctx, model, encoder, held_out), epoch=step // per_epoch)

        per_epoch = self.steps_per_epoch(len(examples))
        if self.validate_at_start:
            validate(0)
        fit(self, ctx, model, len(examples), gradient, validate, dropout=self.dropout)
        model.backbone = merged(model.backbone)
        self.normalise(ctx, model, encoder)
        model.save(ctx.folder, encoder.tokenizer)

    def rankings(self, ctx, split):
        """The rankings of a split; of the training split only the share that this reward model may see."""
        rankings = given_rankings(ctx, self.comparisons, split)
        if split == "train":
            first, last = (round(edge * len(rankings)) for edge in self.share)
            rankings = rankings[first:last][: self.examples]
            if not rankings:
                raise DataError(f"stage {ctx.stage}: share {list(self.share)} leaves no rankings to train on")
        return rankings

    def accumulate(self, ctx, model, encoder, batch):
        """Adds the gradient of the mean loss over the prompts of a batch; returns that mean."""
        total = 0.0
        for first in range(0, len(batch), self.microbatch_size or len(batch)):
            part = batch[first : first + (self.microbatch_size or len(batch))]
            with ctx.accelerator.autocast():
                scores_BK, ratings_BK, mask_BK = score_rankings(ctx, model, encoder, part)
            loss = self.loss.losses(scores_BK, ratings_BK, mask_BK).sum() / len(batch)
            loss.backward()
            total += loss.item()
        return total

    @torch.no_grad()
    def validation(self, ctx, model, encoder, rankings):
        parts = []
        size = self.microbatch_size or self.batch_size
        for first in range(0, len(rankings), size):
            with ctx.accelerator.autocast():
                parts.append(score_rankings(ctx, model, encoder, rankings[first : first + size]))
        losses_B = torch.cat([self.loss.losses(*part) for part in parts])
        pairs = [pair for part in parts for pair in compared(*part)]
        row = {"loss": losses_B.mean().item(), "accuracy": accuracy(pairs, 0.0), "pairs": len(pairs)}
        scores, ratings = (torch.cat([part[i][part[2]] for part in parts]) for i in (0, 1))
        row["correlation"] = torch.corrcoef(torch.stack([scores, ratings]))[0, 1].item()
        return row | {f"accuracy_margin_{margin:g}": accuracy(pairs, margin) for margin in self.margins}

    @torch.no_grad()
    def normalise(self, ctx, model, encoder):
        """Sets gain and bias, and logs what they are."""
        if self.normalize == "demonstrations":
            demonstrations = ctx.data.demonstrations("train")[: self.normalize_examples]
            reference = encoder.encode([d.prompt for d in demonstrations], [d.completion for d in demonstrations])
            model.bias = -raw_scores(ctx, model, reference, self.batch_size).mean().item()
        elif self.normalize == "policy_samples":
            raw_B = raw_scores(ctx, model, self.samples(ctx, encoder), self.batch_size)
            model.gain = 1 / raw_B.std().item()
            model.bias = -raw_B.mean().item() * model.gain
        if not (math.isfinite(model.gain) and math.isfinite(model.bias)):
            raise DataError(
                f"stage {ctx.stage}: the reward model scores all of its reference samples alike and cannot be normalised"
            )
        ctx.log(self.epochs, "normalization", gain=model.gain, bias=model.bias)

    def samples(self, ctx, encoder):
        policy, prompts = ready(load_causal_lm(ctx.input(self.init)), ctx, frozen=True), ctx.data.prompts("train")
        chosen = shuffled_batches(len(prompts), self.normalize_examples, 0, ctx.seed, "normalization.prompts")
        with ctx.accelerator.autocast():
            return rollout(
                policy,
                encoder,
                [prompts[i] for i in chosen],
                ctx.rng("normalization"),
                response_length=self.sample_length,
                temperature=self.sample_temperature,
            )


def score_rankings(ctx, model, encoder, rankings):
    """scores_BK, ratings_BK and mask_BK (K padded) of B rankings: one forward pass per completion, like lengths together."""
    flat = encoder.encode(
        [r.prompt for r in rankings for _ in r.completions],
        [completion for r in rankings for completion in r.completions],
        [ended for r in rankings for ended in r.ended or (True,) * len(r.completions)],
    )
    parts = microbatch_rows(flat, math.ceil(len(flat) / PARTS))
    scores = torch.cat([model.scores(trim(flat.rows(rows)).to(ctx.device)).float() for rows in parts])
    scores = scores[torch.cat(parts).argsort()]
    sizes = [len(r.completions) for r in rankings]
    padded = torch.nn.utils.rnn.pad_sequence
    scores_BK = padded(list(scores.split(sizes)), batch_first=True)
    ratings_BK = padded([torch.tensor(r.ratings, dtype=torch.float32) for r in rankings], batch_first=True)
    mask_BK = padded([torch.ones(size, dtype=torch.bool) for size in sizes], batch_first=True)
    return scores_BK, ratings_BK.to(scores.device), mask_BK.to(scores.device)


def raw_scores(ctx, model, batch, size):
    with ctx.accelerator.autocast():
        return torch.cat(
            [model.raw_scores(trim(batch.rows(rows)).to(ctx.device)).float() for rows in torch.arange(len(batch)).split(size)]
        )


def compared(scores_BK, ratings_BK, mask_BK):
    """(score difference, rating difference) of every untied pair, the better one first."""
    for scores_K, ratings_K, mask_K in zip(scores_BK, ratings_BK, mask_BK, strict=True):
        for i, j in itertools.combinations(mask_K.nonzero().squeeze(1).tolist(), 2):
            margin = (ratings_K[i] - ratings_K[j]).item()
            if margin != 0:
                yield math.copysign(1, margin) * (scores_K[i] - scores_K[j]).item(), abs(margin)


def accuracy(pairs, margin):
    """Share of the pairs with more than `margin` between their ratings whose scores are in the right order; NaN without any."""
    right = [difference > 0 for difference, rated in pairs if rated > margin]
    return sum(right) / len(right) if right else math.nan


@hookimpl
def register_components(register):
    register(RewardModel)
