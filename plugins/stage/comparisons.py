"""New comparisons: responses of a policy, ranked by a labeller."""

import itertools
import json
from typing import Literal

from rlhf_lab.contracts import Component, Ranking, StageRef, hookimpl, param, slot
from rlhf_lab.errors import DataError
from rlhf_lab.lm.files import load_causal_lm, load_encoder
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.sampling import rollout
from rlhf_lab.rewards import checked
from rlhf_lab.store import write_atomically
from rlhf_lab.streams import shuffled_batches


class Comparisons(Component):
    """Samples K responses to each prompt and lets `labeler` rank them, with label noise.

    With probability `flip` two of the K ratings of a prompt are exchanged (for K = 2: the verdict is inverted, as in
    AlpacaFarm and Coste et al. 2023, 25 %). Prompts whose responses all tie are dropped. Writes rankings.<split>.jsonl.
    """

    kind, name = "stage", "comparisons"
    seed: int | Literal["run"] = param(0, "a number: the same in every run; 'run': the seed of the run")
    policy: StageRef = param("sft", "whose responses are ranked")
    labeler: slot("reward") = param(..., "the gold reward that ranks them")
    prompts: int = param(1000, "rankings for training", ge=1)
    validation_prompts: int = param(200, "rankings for validation", ge=0)
    completions: int = param(2, "K", ge=2, le=64)
    flip: float = param(0.1, "probability that a verdict is inverted", ge=0, le=0.5)
    response_length: int = param(28, "longest response", ge=1, unit="tokens")
    temperature: float = param(1.0, "of sampling", gt=0)
    batch_size: int = param(256, "responses sampled at a time; decides which noise each gets", ge=1)

    def run(self, ctx):
        model = ready(load_causal_lm(ctx.input(self.policy)), ctx, frozen=True)
        encoder, labeler = load_encoder(ctx.input(self.policy), ctx.template), self.labeler.open(ctx)
        for split, n in (("train", self.prompts), ("validation", self.validation_prompts)):
            rankings = [
                ranking for part in self.batches(ctx, split, n) for ranking in self.rank(ctx, model, encoder, labeler, *part)
            ]
            if n and not rankings:
                raise DataError(f"stage {ctx.stage}: the labeler {self.labeler.name!r} finds all responses alike")
            write_rankings(ctx.folder / f"rankings.{split}.jsonl", rankings)
            ctx.log(0, split, rankings=len(rankings))

    def batches(self, ctx, split, n):
        """(stream counters, prompts) of each batch."""
        prompts, per_batch = ctx.data.prompts(split), max(1, self.batch_size // self.completions)
        order = shuffled_batches(len(prompts), n, 0, ctx.seed, f"comparisons.{split}") if n else []
        for first in range(0, n, per_batch):
            ctx.report(first, n, split)
            yield (int(split == "validation"), first), [prompts[i] for i in order[first : first + per_batch]]

    def rank(self, ctx, model, encoder, labeler, counters, prompts):
        with ctx.accelerator.autocast():
            sampled = rollout(
                model,
                encoder,
                prompts,
                ctx.rng("comparisons", *counters),
                samples=self.completions,
                response_length=self.response_length,
                temperature=self.temperature,
            )
        scores_BK = checked(self.labeler.name, labeler(sampled), sampled).scores_B.view(-1, self.completions)
        noise = ctx.rng("label_noise", *counters)
        for b, scores_K in enumerate(scores_BK):
            ratings = swapped(scores_K.tolist(), noise) if noise.random() < self.flip else scores_K.tolist()
            if len(set(ratings)) > 1:
                rows = slice(b * self.completions, (b + 1) * self.completions)
                yield Ranking(prompts[b], sampled.responses[rows], tuple(ratings), tuple(sampled.ended_B[rows].tolist()))


def swapped(ratings, rng):
    """The ratings with two of them that differ, drawn from `rng`, exchanged."""
    untied = [(i, j) for i, j in itertools.combinations(range(len(ratings)), 2) if ratings[i] != ratings[j]]
    if not untied:
        return ratings
    i, j = untied[rng.integers(len(untied))]
    ratings = list(ratings)
    ratings[i], ratings[j] = ratings[j], ratings[i]
    return ratings


def write_rankings(path, rankings):
    lines = [json.dumps(vars(ranking)) for ranking in rankings]
    write_atomically(path, "".join(f"{line}\n" for line in lines))


@hookimpl
def register_components(register):
    register(Comparisons)
