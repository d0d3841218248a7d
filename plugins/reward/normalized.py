"""Another reward in units of the supervised policy: mean 0, standard deviation 1 on its samples."""

from rlhf_lab.contracts import Component, Scores, StageRef, hookimpl, param, slot
from rlhf_lab.errors import RewardError
from rlhf_lab.lm.files import load_causal_lm, load_encoder
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.sampling import rollout
from rlhf_lab.rl.rewards import checked
from rlhf_lab.streams import shuffled_batches, stream


class Normalized(Component):
    """(r − μ) / σ with μ and σ over `samples` responses of the stage `reference`, always the same ones.

    Ziegler et al. 2019, 2.1 normalise so on samples of the reference policy; Gao et al. 2023 report gold in such units.
    """

    kind, name = "reward", "normalized"
    source: slot("reward") = param(..., "the reward that is normalised")
    reference: StageRef = param("sft", "whose samples have mean 0 and standard deviation 1")
    samples: int = param(512, "how many", ge=2)
    response_length: int = param(28, "longest sample", ge=1, unit="tokens")
    temperature: float = param(1.0, "of those samples", gt=0)

    def open(self, ctx):
        source = self.source.open(ctx)
        reference = self.reference_samples(ctx)
        scores_B = checked(self.source.name, source(reference), reference).scores_B
        mean, deviation = scores_B.mean(), scores_B.std()
        if not deviation > 0:
            raise RewardError(
                f"reward {self.source.name!r} gives every sample of stage {self.reference!r} the same score, so it has no scale"
            )

        def score(rollout):
            scores = source(rollout)
            scores = scores if isinstance(scores, Scores) else Scores(scores)
            return Scores((scores.scores_B - mean) / deviation, {"raw": scores.scores_B, **scores.columns})

        return score

    def reference_samples(self, ctx):
        """The same for every seed of a sweep, so that all runs are measured in the same unit."""
        folder, prompts = ctx.input(self.reference), ctx.data.prompts("train")
        chosen = shuffled_batches(len(prompts), self.samples, 0, 0, "normalization.prompts")
        model, encoder = ready(load_causal_lm(folder), ctx, frozen=True), load_encoder(folder, ctx.template)
        with ctx.accelerator.autocast():
            return rollout(
                model,
                encoder,
                [prompts[i] for i in chosen],
                stream(0, "normalization"),
                response_length=self.response_length,
                temperature=self.temperature,
            )


@hookimpl
def register_components(register):
    register(Normalized)
