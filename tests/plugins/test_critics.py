"""Critics: where they start, what is trained, and that they look at no later token."""

import pytest
import torch
from tiny_world import component, encoder, plain_scalars, tokens_of

from rlhf_lab.lm.files import load_backbone
from rlhf_lab.lm.scalar import load_scalar_model

ROLLOUT = encoder().encode(["w0", "w3 w1 w2 w5", "w7 w7"], ["w4 w5 w6", "w2", ""])


def critic(open_stage, seed=0, **parameters):
    cfg, ctx = open_stage("rl", {"reward": "words", "critic": {"name": "value_model", **parameters}}, seed=seed)
    return cfg.critic.build(ctx, None)


def test_from_a_reward_model_it_starts_as_the_reward_model(open_stage, world):
    """Gain and bias included: at the last token but one it says what the reward model would say there."""
    reward = load_scalar_model(world / "reward_model")
    reward.gain, reward.bias = 3.0, -0.5
    values = critic(open_stage)
    values.module.gain, values.module.bias = 3.0, -0.5
    got_BT = values.values(ROLLOUT)
    for b, (prompt, response) in enumerate(tokens_of(ROLLOUT)):
        expected = [3 * x - 0.5 for x in plain_scalars(reward, prompt + response)[len(prompt) - 1 : -1]]
        assert got_BT[b, : len(response)].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_normalisation_of_the_reward_model_comes_along(open_stage, world, tmp_path):
    reward = load_scalar_model(world / "reward_model")
    reward.gain, reward.bias = 3.0, -0.5
    reward.save(tmp_path / "rm", encoder().tokenizer)
    cfg, ctx = open_stage("rl", {"reward": "words"}, inputs={"reward_model": tmp_path / "rm"})
    module = cfg.critic.build(ctx, None).module
    assert (module.gain, module.bias) == (3.0, -0.5)


def test_from_a_language_model_it_gets_a_fresh_head(open_stage, world):
    one, same, other = (critic(open_stage, seed, init="sft").module for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, same.head.weight) and not torch.equal(one.head.weight, other.head.weight)
    assert one.head.bias.item() == 0 and (one.gain, one.bias) == (1.0, 0.0)
    backbone = load_backbone(world / "sft").state_dict()
    assert all(torch.equal(value, backbone[key]) for key, value in one.backbone.state_dict().items())


@pytest.mark.parametrize(
    "parameters, untouched",
    [
        ({}, ()),
        ({"freeze_embeddings": True}, ("embed_tokens",)),
        ({"adaptation": "lora", "lora_rank": 2}, ("base_layer", "embed_tokens", "norm")),
    ],
)
def test_gradients_reach_what_is_to_be_trained(open_stage, parameters, untouched):
    values = critic(open_stage, **parameters)
    (values.values(ROLLOUT) * ROLLOUT.mask_BT).sum().backward()
    trainable = {name for name, p in values.module.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} < trainable
    assert not [name for name in trainable if any(part in name for part in untouched)]
    moved = {name for name, p in values.module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {name for name in trainable if "lora_A" not in name}


def test_it_shares_nothing_with_the_policy(open_stage):
    cfg, ctx = open_stage("rl", {"reward": "words", "critic": {"name": "value_model", "init": "sft"}})
    policy = cfg.policy.build(ctx)
    critic = cfg.critic.build(ctx, policy)
    pointers = {p.data_ptr() for p in policy.module.parameters()}
    assert not pointers & {p.data_ptr() for p in critic.module.parameters()}


def test_none_builds_nothing(open_stage):
    assert component("critic", "none").build(None, None) is None


@pytest.mark.parametrize(
    "needy",
    [{"advantage": "gae", "objective": ["ppo_clip"]}, {"advantage": "monte_carlo", "objective": ["ppo_clip", "value_clip"]}],
)
def test_none_is_refused_where_values_are_needed(open_stage, needy):
    with pytest.raises(ValueError, match="need values, but critic is 'none'"):
        open_stage("rl", {"reward": "words", "critic": "none", **needy})
