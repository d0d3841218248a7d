"""Critics: where they start, what is trained, and that they look at no later token."""

import pytest
import torch
from tiny_world import component, encoder, plain_scalars, tokens_of

from rlhf_lab.errors import ModelError
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


# Other critics


def built(open_stage, value, policy=None, seed=0):
    cfg, ctx = open_stage(
        "rl", {"reward": "words", "critic": value, "policy": {"name": "causal_lm", **(policy or {})}}, seed=seed
    )
    actor = cfg.policy.build(ctx)
    return cfg.critic.build(ctx, actor), actor


def test_from_scratch_the_weights_are_drawn_anew_from_the_seed(open_stage, world):
    """The policy's architecture, nobody's weights."""
    one, same, other = (built(open_stage, {"name": "value_model", "init": None}, seed=s)[0].module for s in (0, 0, 1))
    pairs = list(zip(one.state_dict().items(), same.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for (_, a), b, _ in pairs)
    drawn = [(a, c) for (name, a), _, c in pairs if "norm" not in name and name != "head.bias"]
    assert drawn and not any(torch.equal(a, c) for a, c in drawn)
    backbone = load_backbone(world / "sft")
    assert type(one.backbone) is type(backbone)
    assert not torch.equal(one.backbone.get_input_embeddings().weight, backbone.get_input_embeddings().weight)


def test_a_shared_trunk_starts_at_0_everywhere(open_stage):
    critic, _ = built(open_stage, "shared_trunk")
    assert (critic.values(ROLLOUT) == 0).all() and set(dict(critic.module.named_parameters())) == {"weight", "bias"}


@pytest.mark.parametrize("policy", [{}, {"adaptation": "lora", "lora_rank": 2}], ids=["full", "lora"])
def test_a_shared_trunk_reads_the_policys_hidden_states(open_stage, world, policy):
    """w·h + b of a plain forward pass of each unpadded sequence, by the backbone that both start from."""
    critic, _ = built(open_stage, {"name": "shared_trunk", "scale": 1.0}, policy)
    backbone = load_backbone(world / "sft")
    got_BT = critic.values(ROLLOUT)
    for b, (prompt, response) in enumerate(tokens_of(ROLLOUT)):
        with torch.no_grad():
            hidden = backbone(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, len(prompt) - 1 : -1]
        expected = (hidden.double() @ critic.module.weight.double().T).squeeze(1) + critic.module.bias.double()
        assert got_BT[b, : len(response)].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_value_loss_moves_the_shared_trunk_but_not_through_a_head_of_0(open_stage):
    for scale, moved in ((0.0, False), (1.0, True)):
        critic, actor = built(open_stage, {"name": "shared_trunk", "scale": scale})
        critic.values(ROLLOUT)[ROLLOUT.mask_BT].sum().backward()
        gradients = [p.grad for p in actor.module.parameters() if p.grad is not None]
        assert any(g.abs().max() > 0 for g in gradients) == moved
        assert critic.module.weight.grad.abs().max() > 0


def test_a_shared_trunk_is_saved_without_its_head(run_stage):
    done = run_stage("rl", {"reward": "words", "critic": "shared_trunk", "steps": 1, "batch_size": 4, "response_length": 3})
    assert not [name for name in done.weights() if "value" in name]


@pytest.mark.parametrize("combine", ["mean", "min"])
def test_an_ensemble_of_heads_by_hand(open_stage, world, combine):
    """On the reward model's network; each head against a plain forward pass, then their mean or minimum."""
    critic, _ = built(open_stage, {"name": "value_ensemble", "heads": 3, "combine": combine})
    backbone = load_scalar_model(world / "reward_model").backbone
    heads_HBT, values_BT = critic.heads(ROLLOUT), critic.values(ROLLOUT)
    weight, bias = critic.module.head.weight.double(), critic.module.head.bias.double()
    assert heads_HBT.shape == (3, *ROLLOUT.mask_BT.shape) and len(weight.unique(dim=0)) == 3
    for b, (prompt, response) in enumerate(tokens_of(ROLLOUT)):
        with torch.no_grad():
            hidden = backbone(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, len(prompt) - 1 : -1].double()
        by_head = hidden @ weight.T + bias
        assert heads_HBT[:, b, : len(response)].T.tolist() == [pytest.approx(row, abs=1e-5) for row in by_head.tolist()]
        combined = by_head.mean(1) if combine == "mean" else by_head.min(1).values
        assert values_BT[b, : len(response)].tolist() == pytest.approx(combined.tolist(), abs=1e-5)


def test_a_table_of_values_wants_a_table_of_logits(open_stage):
    with pytest.raises(ModelError, match="set policy: tabular"):
        built(open_stage, "tabular")


@pytest.mark.parametrize(
    "critic",
    [
        "shared_trunk",
        {"name": "value_ensemble", "heads": 3, "combine": "min", "init": None},
        {"name": "value_model", "init": None},
        {"name": "value_model", "init": "sft"},
    ],
    ids=str,
)
def test_each_learns_what_the_policy_earns(run_stage, critic):
    """With the policy held still it explains more of the returns at the end than at the start."""
    chosen = {"learning_rate": 0.02, **({"name": critic} if isinstance(critic, str) else critic)}
    parameters = {"reward": "words", "critic": chosen,
                  "objective": [{"name": "ppo_clip", "weight": 0.0}, {"name": "value_plain", "weight": 1.0}], "batch_size": 64,
                  "steps": 8, "critic_warmup": 8, "response_length": 4, "kl": "none", "schedule": "constant",
                  "evaluation": {"every": 8}}  # fmt: skip
    rows = run_stage("rl", parameters).rows("train")
    assert rows[-1]["explained_variance"] > rows[0]["explained_variance"] and rows[-1]["explained_variance"] > 0.1
    assert all(abs(row["kl"]) < 1e-5 for row in rows)
