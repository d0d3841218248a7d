"""How much a response repeats itself."""

import torch

from rlhf_lab.contracts import Component, Scores, hookimpl, param


def repeated_share(ids, n):
    """1 − (different n-grams)/(n-grams) of a list of tokens; 0 where it is shorter than n (Welleck et al. 2020, seq-rep-n)."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class Repetition(Component):
    """score = weight · share of n-grams that stood in the response before, from 0 to below 1; EOS is not counted.

    Source: Welleck et al. 2020 (seq-rep-4).
    """

    kind, name = "reward", "repetition"
    weight: float = param(-1.0, "score of nothing but repetitions", allow_inf_nan=False)
    n: int = param(4, "length of the n-grams", ge=1, unit="tokens", source="Welleck et al. 2020, seq-rep-4")

    def open(self, ctx):
        def score(rollout):
            lengths = (rollout.mask_BT.sum(1).long() - rollout.ended_B.long()).tolist()
            rows = zip(rollout.response_ids_BT.tolist(), lengths, strict=True)
            shares_B = torch.tensor([repeated_share(ids[:length], self.n) for ids, length in rows], dtype=torch.float32)
            return Scores(self.weight * shares_B.to(rollout.mask_BT.device))

        return score


@hookimpl
def register_components(register):
    register(Repetition)
