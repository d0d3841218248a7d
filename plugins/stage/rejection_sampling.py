"""Demonstrations that a policy wrote itself: of many responses those that the reward likes."""

import json
from typing import Literal

from rlhf_lab.best_of_n import accepted
from rlhf_lab.contracts import Component, Demonstration, StageRef, hookimpl, param, slot
from rlhf_lab.errors import DataError
from rlhf_lab.lm.files import load_causal_lm, load_encoder
from rlhf_lab.lm.precision import ready
from rlhf_lab.rl.rewards import checked
from rlhf_lab.store.files import write_atomically
from rlhf_lab_plugins.stage.sampled_prompts import sampled_prompts


class RejectionSampling(Component):
    """Samples n responses to each prompt and keeps those that the reward accepts, as demonstrations for another `sft` stage.

    `best` keeps the highest of the n: `sft` on these is best-of-n distillation, which imitates a policy at a KL of at most
    log n − (n − 1)/n nats (Stiennon et al. 2020, G.3; as fine-tuning Touvron et al. 2023, 3.2.3; Dong et al. 2023).
    `boltzmann` keeps each with probability e^{(r − max r)/β}, so that they follow π e^{r/β} as n grows (Liu et al. 2024,
    RSO). A response without EOS is no demonstration and is not considered; a prompt without any other is left out.
    Writes demonstrations.<split>.jsonl; rows: `demonstrations`, their mean `reward_proxy`, and `acceptance`, their share.
    """

    kind, name = "stage", "rejection_sampling"
    seed: int | Literal["run"] = param(0, "a number: the same in every run; 'run': the seed of the run")
    policy: StageRef = param("sft", "what is sampled from")
    reward: slot("reward") = param("reward_model", "what chooses")
    prompts: int = param(1000, "prompts for training; beyond those of the data they come again", ge=1)
    validation_prompts: int = param(64, "prompts for validation", ge=0)
    samples: int = param(16, "n, responses to each prompt", ge=2)
    keep: Literal["best", "boltzmann"] = param("best", "which of them become demonstrations")
    beta: float = param(1.0, "β of `boltzmann`, in units of the reward", gt=0, allow_inf_nan=False)
    response_length: int = param(28, "longest response", ge=1, unit="tokens")
    temperature: float = param(1.0, "of sampling", gt=0)
    batch_size: int = param(256, "responses sampled at a time; decides which noise each gets", ge=1)

    def run(self, ctx):
        model = ready(load_causal_lm(ctx.input(self.policy)), ctx, frozen=True)
        encoder, reward = load_encoder(ctx.input(self.policy), ctx.template), self.reward.open(ctx)
        for split, n in (("train", self.prompts), ("validation", self.validation_prompts)):
            batches = sampled_prompts(self, ctx, model, encoder, split, n, self.samples)
            kept = [pair for batch in batches for pair in self.chosen(ctx, reward, *batch)]
            if n and not kept:
                raise DataError(f"stage {ctx.stage}: no response ends within response_length: {self.response_length} tokens")
            write_demonstrations(ctx.folder / f"demonstrations.{split}.jsonl", [demonstration for demonstration, _ in kept])
            scores = {"reward_proxy": sum(score for _, score in kept) / len(kept)} if kept else {}
            ctx.log(0, split, demonstrations=len(kept), acceptance=len(kept) / max(1, n * self.samples), **scores)

    def chosen(self, ctx, reward, counters, prompts, sampled):
        """(demonstration, its score) for each response of a batch that is kept."""
        with ctx.accelerator.autocast():
            scores_BK = checked(self.reward.name, reward(sampled), sampled).scores_B.float().cpu().view(-1, self.samples)
        uniforms_BK = ctx.rng(f"{self.name}.keep", *counters).random(scores_BK.shape)
        ended_BK = sampled.ended_B.cpu().view(-1, self.samples)
        for b, prompt in enumerate(prompts):
            candidates = ended_BK[b].nonzero().squeeze(1).tolist()
            if candidates:
                scores = scores_BK[b, candidates].numpy()
                for i in self.places(scores, uniforms_BK[b, candidates]):
                    response = sampled.responses[b * self.samples + candidates[i]]
                    yield Demonstration(prompt, response), float(scores[i])

    def places(self, scores_N, uniforms_N):
        if self.keep == "best":
            return [int(scores_N.argmax())]
        return accepted(scores_N, self.beta, uniforms_N).nonzero()[0].tolist()


def write_demonstrations(path, demonstrations):
    lines = [json.dumps(vars(demonstration)) for demonstration in demonstrations]
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def read_demonstrations(folder, split):
    with open(folder / f"demonstrations.{split}.jsonl", encoding="utf-8") as file:
        return [Demonstration(**json.loads(line)) for line in file]


@hookimpl
def register_components(register):
    register(RejectionSampling)
