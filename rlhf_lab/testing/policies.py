"""The laws of policies and critics, in the kit's small world."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.contracts import Rollout
from rlhf_lab.lm.tokens import trim
from rlhf_lab.testing import world
from rlhf_lab.testing.every_kind import differ, each_parameter_counts
from rlhf_lab.testing.sentences import require, same

PROMPTS = ["w0", "w3 w1 w2 w5", "w7 w7", "w4"]
RESPONSES = ["w4 w5 w6", "w2", "", "w1 w1 w9 w10"]
ENDS = ["w4 w5 w7", "w2", "w3 w3 w3", "w1 w1 w9 w2"]
TEMPERATURE, TOLERANCE = 0.7, 1e-5


def built(policy: Any) -> Any:
    return policy.build(world.context())


def sampled(live: Any, seed: int = 1, **changes: Any) -> Rollout:
    options = {"samples": 2, "response_length": 5, "temperature": TEMPERATURE, **changes}
    with torch.no_grad():
        return live.rollout(PROMPTS, np.random.default_rng(seed), **options)


def logprobs(live: Any, rollout: Rollout, temperature: float = TEMPERATURE) -> Tensor:
    with torch.no_grad():
        return live.forward(rollout, temperature=temperature).logprobs_BT.masked_fill(~rollout.mask_BT, 0.0)


def trained(live: Any) -> dict[str, Tensor]:
    return {name: p for name, p in live.module.named_parameters() if p.requires_grad}


def move(live: Any) -> None:
    """Another point in weight space: each trained weight gets noise that is always the same."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trained(live).values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator).to(weight)


def through_safetensors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    from safetensors.torch import load, save

    return load(save({name: weight.detach().contiguous() for name, weight in weights.items()}))


def put_back(live: Any, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in trained(live).items():
            weight.copy_(weights[name])


# ---------------------------------------------------------------------------------------------------------------
# Policies


def it_starts_as_its_reference(policy: Any) -> None:
    """Before the first update the log-probs of the reference are those of the policy: KL is 0, unless it says otherwise."""
    live = built(policy)
    if not getattr(live, "starts_at_reference", True):
        return
    rollout = sampled(live)
    for temperature in (1.0, TEMPERATURE):
        with torch.no_grad():
            reference_BT = live.reference_logprobs(rollout, temperature=temperature).masked_fill(~rollout.mask_BT, 0.0)
        same(reference_BT, logprobs(live, rollout, temperature), f"the reference's log-probs at τ = {temperature}", TOLERANCE)


def the_reference_stays(policy: Any) -> None:
    """After an update the policy says something else, and the reference what it said before."""
    live = built(policy)
    rollout = sampled(live)
    with torch.no_grad():
        before_BT, own_BT = live.reference_logprobs(rollout, temperature=1.0).clone(), logprobs(live, rollout)
        move(live)
        same(
            live.reference_logprobs(rollout, temperature=1.0),
            before_BT,
            "a log-prob of the reference after an update",
            TOLERANCE,
        )
    require(differ(logprobs(live, rollout), own_BT), "an update of the trained weights changes no log-prob of the policy")


def sampler_and_training_agree(policy: Any) -> None:
    """What the sampler recorded is what `forward` computes, at the sampling temperature, with no gradient missing."""
    live = built(policy)
    rollout = sampled(live)
    same(logprobs(live, rollout), rollout.logprobs_BT, "the log-prob in training", 10 * TOLERANCE)
    loss = live.forward(rollout, temperature=TEMPERATURE).logprobs_BT.masked_fill(~rollout.mask_BT, 0.0).sum()
    loss.backward()
    require(any(p.grad is not None and p.grad.any() for p in trained(live).values()), "no gradient reaches the trained weights")


def noise_is_the_streams(policy: Any) -> None:
    """The same stream gives the same responses, another one others; nothing is drawn from a global generator."""
    live = built(policy)
    first = sampled(live)
    torch.manual_seed(99)
    same(sampled(live).response_ids_BT, first.response_ids_BT, "the sample drawn again from the same stream")
    require(differ(sampled(live, seed=2).response_ids_BT, first.response_ids_BT), "another stream gives the same responses")


def padding_changes_nothing(policy: Any) -> None:
    """More padding on the left and on the right, with any token in it, changes no log-prob."""
    live = built(policy)
    rollout = live.encode(PROMPTS, RESPONSES)
    plain_BT = logprobs(live, rollout)
    for filler in (world.PAD, world.EOS):
        wide = world.padded(rollout, 3, 2, filler).to(plain_BT.device)
        same(
            logprobs(live, wide)[:, : plain_BT.shape[1]], plain_BT, "the log-prob with 3 + 2 more columns of padding", TOLERANCE
        )
    for i in range(len(PROMPTS)):
        alone = trim(rollout.rows(torch.tensor([i])))
        same(logprobs(live, alone)[0], plain_BT[i, : alone.mask_BT.shape[1]], f"the log-prob of response {i} alone", TOLERANCE)


def only_the_past_matters(policy: Any) -> None:
    """A token's log-prob depends on what stands before it only."""
    live = built(policy)
    one, two = (logprobs(live, live.encode(PROMPTS, texts)) for texts in (RESPONSES, ENDS))
    same(two[0, :2], one[0, :2], "the log-prob of w4 and w5 before another third word", TOLERANCE)
    same(two[3, :3], one[3, :3], "the log-prob of w1, w1 and w9 before another fourth word", TOLERANCE)


def probabilities_add_up(policy: Any) -> None:
    """Entropy is between 0 and log V, and the probabilities of all first tokens add up to 1."""
    live = built(policy)
    vocabulary = len(live.encoder.tokenizer) if hasattr(live, "encoder") else len(world.VOCABULARY)
    rollout = sampled(live)
    with torch.no_grad():
        entropy_BT = live.forward(rollout, temperature=TEMPERATURE, entropy=True).entropy_BT[rollout.mask_BT]
    low, high = entropy_BT.min().item(), entropy_BT.max().item()
    require(low >= -TOLERANCE and high <= math.log(vocabulary) + TOLERANCE, f"the entropy runs from {low:g} to {high:g} nats")
    one = rollout.rows(torch.zeros(vocabulary, dtype=torch.long))
    one.response_ids_BT[:, 0] = torch.arange(vocabulary)
    total = logprobs(live, one)[:, 0].double().exp().sum().item()
    require(abs(total - 1) < 1e-4, f"the probabilities of all first tokens add up to {total:g}")


def its_weights_survive_safetensors(policy: Any) -> None:
    """The trained weights, through safetensors into a fresh policy, say what the old one says; so does what `save` wrote."""
    live, fresh = built(policy), built(policy)
    rollout = sampled(live)
    move(live)
    put_back(fresh, through_safetensors(trained(live)))
    same(logprobs(fresh, rollout), logprobs(live, rollout), "the log-prob of the resumed policy")
    with tempfile.TemporaryDirectory() as folder:
        live.save(Path(folder) / "policy")
        require(list((Path(folder) / "policy").rglob("*.safetensors")), "save() wrote no .safetensors file")


def policy_outcome(policy: Any) -> list[Any]:
    """What is trained, what it says, and what it says after one step."""
    live = built(policy)
    rollout = live.encode(PROMPTS, RESPONSES)
    with torch.no_grad():
        before = [logprobs(live, rollout), live.reference_logprobs(rollout, temperature=1.0)]
    move(live)
    return [[(name, tuple(p.shape)) for name, p in trained(live).items()], before, logprobs(live, rollout)]


POLICY_LAWS = (
    it_starts_as_its_reference,
    the_reference_stays,
    sampler_and_training_agree,
    noise_is_the_streams,
    padding_changes_nothing,
    only_the_past_matters,
    probabilities_add_up,
    its_weights_survive_safetensors,
    each_parameter_counts(policy_outcome, tries=40),
)


# ---------------------------------------------------------------------------------------------------------------
# Critics


def beside_a_policy(critic: Any) -> Any:
    """The live critic; None where there is none to build."""
    from rlhf_lab.testing.settings import registry

    ctx = world.context()
    for name in registry().names("policy"):
        try:
            policy = registry().choose("policy", name).build(ctx)
        except Exception:
            continue
        return critic.build(ctx, policy)
    return critic.build(ctx, None)


def values(live: Any, rollout: Rollout) -> Tensor:
    with torch.no_grad():
        return live.values(rollout).masked_fill(~rollout.mask_BT, 0.0)


def values_know_only_the_past(critic: Any) -> None:
    """The value of place t depends on the prompt and the response tokens before t only."""
    live = beside_a_policy(critic)
    if live is None:
        return
    move(live)  # a head that starts at 0 knows nothing
    one, two = (values(live, world.encoded(PROMPTS, texts)) for texts in (RESPONSES, ENDS))
    same(two[0, :3], one[0, :3], "the values before the third word, which is another one", TOLERANCE)
    require(differ(two[0, 3], one[0, 3]), "the value after the third word does not know that it is another one")


def padding_changes_no_value(critic: Any) -> None:
    """More padding on the left and on the right, with any token in it, changes no value."""
    live = beside_a_policy(critic)
    if live is None:
        return
    rollout = world.encoded(PROMPTS, RESPONSES)
    plain_BT = values(live, rollout)
    require(
        plain_BT.shape == rollout.mask_BT.shape, f"values have shape {tuple(plain_BT.shape)} for {tuple(rollout.mask_BT.shape)}"
    )
    for filler in (world.PAD, world.EOS):
        wide_BT = values(live, world.padded(rollout, 3, 2, filler))[:, : plain_BT.shape[1]]
        same(wide_BT, plain_BT, "the value with 3 + 2 more columns of padding", TOLERANCE)


def its_values_survive_safetensors(critic: Any) -> None:
    """The trained weights, through safetensors into a fresh critic, give the same values."""
    live, fresh = beside_a_policy(critic), beside_a_policy(critic)
    if live is None:
        return
    move(live)
    put_back(fresh, through_safetensors(trained(live)))
    rollout = world.encoded(PROMPTS, RESPONSES)
    same(values(fresh, rollout), values(live, rollout), "the value of the resumed critic")


def critic_outcome(critic: Any) -> list[Any]:
    live = beside_a_policy(critic)
    if live is None:
        return []
    rollout = world.encoded(PROMPTS, RESPONSES)
    before_BT = values(live, rollout)
    move(live)
    return [[(name, tuple(p.shape)) for name, p in trained(live).items()], before_BT, values(live, rollout)]


CRITIC_LAWS = (
    values_know_only_the_past,
    padding_changes_no_value,
    its_values_survive_safetensors,
    each_parameter_counts(critic_outcome, tries=40, read_by_the_core=frozenset({"learning_rate"})),
)
