"""New comparisons: responses of a policy, ranked by a labeller."""

import itertools
import json
from typing import Literal

from rlhf_lab.contracts import Component, Ranking, StageRef, hookimpl, param, slot
from rlhf_lab.errors import DataError
from rlhf_lab.lm.files import load_causal_lm, load_encoder
from rlhf_lab.lm.precision import ready
from rlhf_lab.rl.rewards import checked
from rlhf_lab.store.files import write_atomically
from rlhf_lab_plugins.stage.sampled_prompts import sampled_prompts


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
            batches = sampled_prompts(self, ctx, model, encoder, split, n, self.completions)
            rankings = [ranking for batch in batches for ranking in self.rank(ctx, labeler, *batch)]
            if n and not rankings:
                raise DataError(f"stage {ctx.stage}: the labeler {self.labeler.name!r} finds all responses alike")
            write_rankings(ctx.folder / f"rankings.{split}.jsonl", rankings)
            ctx.log(0, split, rankings=len(rankings))

    def rank(self, ctx, labeler, counters, prompts, sampled):
        with ctx.accelerator.autocast():
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


def read_rankings(folder, split):
    with open(folder / f"rankings.{split}.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Ranking(row["prompt"], *(tuple(row[key]) for key in ("completions", "ratings", "ended"))) for row in rows]


def given_rankings(ctx, stages, split):
    """The rankings that a stage of this kind wrote, or several, one after the other; without any, those of the data."""
    if stages is None:
        return ctx.data.rankings(split)
    named = [stages] if isinstance(stages, str) else stages
    return [ranking for stage in named for ranking in read_rankings(ctx.input(stage), split)]


@hookimpl
def register_components(register):
    register(Comparisons)
