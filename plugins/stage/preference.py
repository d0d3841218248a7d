"""Learning from comparisons directly, without reward model and without rollouts: DPO and its kin."""

import math
from collections import Counter
from dataclasses import replace
from typing import Literal

import torch
from pydantic import model_validator
from safetensors.torch import load, save

from rlhf_lab.contracts import Preferences, StageRef, hookimpl, param, slot
from rlhf_lab.errors import DataError
from rlhf_lab.lm.tokens import in_microbatches, trim
from rlhf_lab.lm.training import FitParameters, fit, order_of_epoch
from rlhf_lab.rl.evaluation import Evaluator
from rlhf_lab.store.files import write_atomically
from rlhf_lab_plugins.stage.comparisons import given_rankings
from rlhf_lab_plugins.stage.evaluate import MeasuredParameters, measured_actors


class Preference(MeasuredParameters, FitParameters):
    """Minimises a loss of log-probs on comparisons (Rafailov et al. 2023); `loss` says which.

    Log-probs are sums over the response tokens, EOS included, in nats per sequence. Those of the reference are computed
    once, before the first step, and kept in the stage's folder; a loss that does not need them never asks for them.
    Steps rows: `train` has `loss`, `accuracy` (share of the batch that costs less than with the opposite verdict), and the
    mean log-prob and log-ratio of the chosen and of the rejected responses; `validation` is measured as RL's is (KL, proxy,
    gold, entropy, length, EOS rate, win rate, samples), with `loss` and `accuracy` on held-out comparisons. Call the stage
    `rl`, and it stands in the figures beside what RL trains.
    """

    kind, name = "stage", "preference"
    seed: int | Literal["run"] = param("run", "'run': the seed of the run; a number: the same in every run")
    policy: slot("policy") = param("causal_lm", "what is trained")
    comparisons: StageRef | list[StageRef] | None = param(
        None, "a stage that made rankings, or several whose rankings are put together; default: those of the data"
    )
    examples: int | None = param(None, "use the first so many rankings; default: all", ge=1)
    validation_examples: int = param(256, "held-out pairs (or responses) that are validated on, at most", ge=0)
    loss: slot("preference_loss") = param("dpo", "what is minimised")
    learning_rate: float = param(3e-4, "at the top of the schedule", gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _batches_have_neighbours(self):
        if "mismatched" in self.loss.needs and self.batch_size < 2:
            raise ValueError(f"{self.loss.name} pairs each prompt with a neighbour's response; set batch_size: 2 or more")
        return self

    def run(self, ctx):
        actors = measured_actors(self, ctx, beta=getattr(self.loss, "beta", math.nan))
        evaluator = Evaluator(self, ctx, actors, ctx.data.prompts("validation"))
        policy, train = actors.policy, self.judged(ctx, "train")
        held_out = self.judged(ctx, "validation")[: self.validation_examples]
        self.refuse_batches(ctx, train)
        train_ref_EK, held_out_ref_EK = (
            self.reference(ctx, policy, examples, split) for examples, split in ((train, "train"), (held_out, "validation"))
        )

        def gradient(step, index):
            return self.gradient(ctx, policy, [train[i] for i in index], rows(train_ref_EK, index))

        @torch.no_grad()
        def evaluate(step):
            if step % self.evaluation.every == 0 or step == total:
                with ctx.accelerator.autocast():
                    usable = bool(held_out) and len(set(preferred(held_out).flatten().tolist())) == 2
                    more = self.pass_over(ctx, policy, held_out, held_out_ref_EK) if usable else {}
                    evaluator.measure(step, actors, **{name: more[name] for name in ("loss", "accuracy") if more})

        total = self.epochs * self.steps_per_epoch(len(train))
        evaluate(0)
        fit(self, ctx, policy.module, len(train), gradient, evaluate)
        policy.save(ctx.folder / "policy")

    def judged(self, ctx, split):
        """The examples of a split. Raises DataError where there is nothing to train on."""
        rankings = given_rankings(ctx, self.comparisons, split)
        rankings = rankings[: self.examples] if split == "train" else rankings
        examples = self.loss.examples(rankings)
        if split == "train" and not rankings:
            raise DataError(f"stage {ctx.stage}: there are no comparisons to learn from; name a `comparisons` stage")
        if split == "train" and not examples:
            raise DataError(f"stage {ctx.stage}: all {len(rankings)} rankings tie, so none says what to prefer; give others")
        return examples

    def refuse_batches(self, ctx, examples):
        """A loss that has something against a batch says so now, not in the middle of an epoch."""
        if "mismatched" in self.loss.needs:
            preferred_E = preferred(examples)[:, 0]
            for epoch in range(self.epochs):
                for index in torch.from_numpy(order_of_epoch(ctx, epoch, len(examples))).split(self.batch_size):
                    self.loss.baseline(torch.zeros(len(index)), preferred_E[index])

    @torch.no_grad()
    def reference(self, ctx, policy, examples, split):
        """ref_logprobs_EK, from the stage's folder if an earlier process has put them there; None where nobody needs them."""
        if "reference" not in self.loss.needs or not examples:
            return None
        path = ctx.folder / f"reference.{split}.safetensors"
        if not path.is_file():
            parts = []
            for first in range(0, len(examples), size := self.microbatch_size or self.batch_size):
                part = encoded(policy, examples[first : first + size])
                with ctx.accelerator.autocast():
                    logprobs_BT = policy.reference_logprobs(part, temperature=self.temperature)
                parts.append(summed(logprobs_BT, part.mask_BT).cpu())
            write_atomically(path, save({"logprobs_EK": torch.cat(parts).view(len(examples), -1)}))
        return load(path.read_bytes())["logprobs_EK"].to(ctx.device)

    def gradient(self, ctx, policy, examples, ref_BK):
        """Adds the gradient of the mean loss of a batch; returns what a row says of it."""
        return self.pass_over(ctx, policy, examples, ref_BK, lambda loss: loss.backward())

    def pass_over(self, ctx, policy, examples, ref_BK, with_loss=lambda loss: None):
        """Metrics of a batch. `with_loss` is given each micro-batch's share of its mean loss."""
        sequences, preferred_BK = encoded(policy, examples), preferred(examples).to(ctx.device)
        needs_baseline = "mismatched" in self.loss.needs
        baseline = self.baseline(ctx, policy, examples, preferred_BK) if needs_baseline else None
        row, k = Counter(), preferred_BK.shape[1]
        for part in torch.arange(len(examples)).split(self.microbatch_size or self.batch_size):
            sequences_n = trim(sequences.rows((part[:, None] * k + torch.arange(k)).flatten()))
            with ctx.accelerator.autocast():
                logprobs_nT = policy.forward(sequences_n, temperature=self.temperature).logprobs_BT
            sums = (x_n.view(-1, k) for x_n in (summed(logprobs_nT, sequences_n.mask_BT), sequences_n.mask_BT.sum(1)))
            batch = Preferences(*sums, preferred_BK[part], rows(ref_BK, part), baseline)
            losses_b = self.loss.losses(batch)
            with_loss(losses_b.sum() / len(examples))
            row.update(measures(self.loss, losses_b.detach(), batch, preferred_BK))
        return {name: float(value) for name, value in row.items()}

    @torch.no_grad()
    def baseline(self, ctx, policy, examples, preferred_BK):
        """What the loss makes of a batch's responses, each to the prompt of its neighbour."""
        turned = [
            replace(example, completions=before.completions, ended=before.ended)
            for before, example in zip([examples[-1], *examples], examples, strict=False)
        ]
        with ctx.accelerator.autocast():
            (log_ratios_BT,) = in_microbatches(
                lambda part: (
                    policy.forward(part, temperature=self.temperature).logprobs_BT
                    - policy.reference_logprobs(part, temperature=self.temperature),
                ),
                encoded(policy, turned),
                self.microbatch_size or self.batch_size,
            )
        return self.loss.baseline(log_ratios_BT.float().sum(1), preferred_BK[:, 0])


def preferred(examples):
    """preferred_EK: which of the responses were rated 1."""
    return torch.tensor([example.ratings for example in examples]) > 0.5


def rows(ref_EK, index):
    return None if ref_EK is None else ref_EK[index]


def summed(logprobs_BT, mask_BT):
    """Σ_t log π(y_t | x, y_<t) of each sequence, nats."""
    return logprobs_BT.float().masked_fill(~mask_BT, 0.0).sum(1)


def encoded(policy, examples):
    """All responses of the examples, one after the other, as one batch of sequences."""
    return policy.encode(
        [example.prompt for example in examples for _ in example.completions],
        [completion for example in examples for completion in example.completions],
        [ended for example in examples for ended in example.ended or (True,) * len(example.completions)],
    )


@torch.no_grad()
def measures(loss, losses_b, batch, preferred_BK):
    """Parts of a row that add up over the micro-batches of the batch that `preferred_BK` is of."""
    cheaper_b = losses_b < loss.losses(batch.swapped())
    row = {"loss": losses_b.sum() / len(preferred_BK), "accuracy": cheaper_b.sum() / len(preferred_BK)}
    for which, chosen_bK, n in (
        ("chosen", batch.preferred_BK, preferred_BK.sum()),
        ("rejected", ~batch.preferred_BK, (~preferred_BK).sum()),
    ):
        row[f"logprob_{which}"] = batch.logprobs_BK[chosen_bK].sum() / n
        if batch.ref_logprobs_BK is not None:
            row[f"log_ratio_{which}"] = batch.log_ratios_BK[chosen_bK].sum() / n
    return row


@hookimpl
def register_components(register):
    register(Preference)
