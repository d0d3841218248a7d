"""PPO-ptx: the language-model loss on pretraining text beside the policy loss."""

from rlhf_lab.contracts import Component, Loss, hookimpl, param


class PretrainMix(Component):
    """L = −E_{x ~ pretraining}[log π(x)], mean over the tokens of the batch's pretraining texts.

    Source: Ouyang et al. 2022, eq. 2 and C.4: the gradients are added per minibatch, this one times 27.8, with 8
    pretraining examples for each episode. Needs a data set with pretraining text.
    """

    kind, name, needs = "objective", "pretrain_mix", frozenset({"pretrain"})
    weight: float = param(27.8, "γ, weight of the pretraining gradient", ge=0, source="Ouyang et al. 2022, C.4")
    ratio: int = param(8, "pretraining texts per episode", ge=1, source="Ouyang et al. 2022, C.4")

    def fits(self, stage, run):
        if not getattr(run.data, "has", lambda part: True)("pretraining"):
            raise ValueError(f"{self.name} needs pretraining text, and data {run.data.name!r} has none; add `pretraining`")

    def loss(self, new, batch):
        return Loss(-batch.token_mean(new.logprobs_BT))


@hookimpl
def register_components(register):
    register(PretrainMix)
