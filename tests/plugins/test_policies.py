"""The causal language model as policy: what is trained, what is kept as reference, what is saved."""

import numpy as np
import pytest
import torch
from tiny_world import WORDS, component, plain_logprobs, tokens_of

from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab.lm.logprobs import response_logprobs

PROMPTS = ["w0", "w3 w1 w2 w5", "w7 w7"]
KINDS = {
    "full": {},
    "frozen_embeddings": {"freeze_embeddings": True},
    "lora": {"adaptation": "lora", "lora_rank": 4, "lora_alpha": 8.0},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def policy(kind, open_stage):
    return build(open_stage, kind)


def build(open_stage, kind, seed=0):
    cfg, ctx = open_stage("rl", {"reward": "words", "policy": {"name": "causal_lm", **KINDS[kind]}}, seed=seed)
    return cfg.policy.build(ctx)


def sampled(policy, temperature=1.0, samples=4):
    return policy.rollout(PROMPTS, np.random.default_rng(0), samples=samples, response_length=5, temperature=temperature)


def disturb(policy, size=0.3):
    """Moves every trainable weight."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (p for p in policy.module.parameters() if p.requires_grad):
            weight += size * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_at_the_start_policy_reference_and_sampler_are_one(policy, world, temperature):
    """And they are the saved model, sequence by sequence."""
    rollout, saved = sampled(policy, temperature), load_causal_lm(world / "sft")
    new = policy.forward(rollout, temperature=temperature).logprobs_BT
    assert torch.allclose(new, policy.reference_logprobs(rollout, temperature=temperature), atol=1e-6)
    assert torch.allclose(new, rollout.logprobs_BT, atol=1e-5)
    for b, (prompt, response) in enumerate(tokens_of(rollout)):
        assert new[b, : len(response)].tolist() == pytest.approx(plain_logprobs(saved, prompt, response, temperature), abs=1e-5)


@torch.no_grad()
def test_training_moves_the_policy_and_not_the_reference(policy, world):
    rollout, saved = sampled(policy), load_causal_lm(world / "sft")
    disturb(policy)
    assert torch.allclose(policy.reference_logprobs(rollout, temperature=1.0), response_logprobs(saved, rollout), atol=1e-5)
    assert (policy.forward(rollout, temperature=1.0).logprobs_BT - response_logprobs(saved, rollout)).abs().max() > 0.1


@torch.no_grad()
def test_what_is_saved_is_what_was_trained(policy, tmp_path):
    disturb(policy)
    rollout = sampled(policy)
    policy.save(tmp_path / "saved")
    assert torch.allclose(
        response_logprobs(load_causal_lm(tmp_path / "saved"), rollout),
        policy.forward(rollout, temperature=1.0).logprobs_BT,
        atol=1e-5,
    )
    assert {p.name for p in (tmp_path / "saved").iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert torch.allclose(sampled(policy).logprobs_BT, rollout.logprobs_BT)  # saving changed nothing in place


def test_gradients_reach_what_is_to_be_trained_and_nothing_else(policy, kind):
    rollout = sampled(policy)
    policy.forward(rollout, temperature=1.0).logprobs_BT.sum().backward()
    moved = {name for name, p in policy.module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    trainable = {name for name, p in policy.module.named_parameters() if p.requires_grad}
    if kind == "lora":
        assert trainable and all("lora_" in name for name in trainable)
        assert moved == {name for name in trainable if "lora_B" in name}  # B = 0 hides A at first
    else:
        assert moved == trainable
        assert any("embed" in name for name in trainable) == (kind == "full")


def test_the_reference_asks_for_no_gradient(policy, kind):
    rollout = sampled(policy)
    disturb(policy)
    reference = policy.reference_logprobs(rollout, temperature=1.0)
    assert not reference.requires_grad or kind == "lora"
    assert policy.forward(rollout, temperature=1.0).logprobs_BT.requires_grad


def test_entropy_only_for_those_who_ask(policy):
    rollout = sampled(policy, temperature=0.7)
    assert policy.forward(rollout, temperature=0.7).entropy_BT is None
    entropy_BT = policy.forward(rollout, temperature=0.7, entropy=True).entropy_BT
    assert (entropy_BT >= 0).all() and entropy_BT.shape == rollout.mask_BT.shape


def test_dropout_is_off(policy):
    assert not policy.module.training and not any(m.training for m in policy.module.modules())


def test_the_adapter_comes_from_the_seed_of_the_run(open_stage):
    one, same, other = (
        [p.detach().clone() for name, p in build(open_stage, "lora", seed).module.named_parameters() if "lora_A" in name]
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_adapter_is_alpha_over_r_times_b_a(open_stage):
    """On one layer, with B set: W x + (8 / 4) B A x (Hu et al. 2022, eq. 3)."""
    module = build(open_stage, "lora").module
    layer = next(m for m in module.modules() if hasattr(m, "lora_A"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape[0] == 4 and (b == 0).all()
    torch.nn.init.normal_(b, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, a.shape[1], generator=torch.Generator().manual_seed(1))
    assert torch.allclose(layer(x), x @ (layer.base_layer.weight + 8 / 4 * b @ a).T, atol=1e-5)


def test_an_sft_model_that_was_an_adapter_is_the_reference(run_stage, open_stage):
    """Trained with an adapter and dropout, merged and saved: KL at the start is still 0, with a fresh adapter on top."""
    sft = run_stage("sft", {"adaptation": "lora", "lora_rank": 4, "dropout": 0.3, "learning_rate": 0.02, "log_samples": 0})
    cfg, ctx = open_stage(
        "rl", {"reward": "words", "policy": {"name": "causal_lm", **KINDS["lora"]}}, inputs={"sft": sft.folder}
    )
    policy = cfg.policy.build(ctx)
    rollout, saved = sampled(policy), load_causal_lm(sft.folder)
    for logprobs_BT in (
        policy.forward(rollout, temperature=1.0).logprobs_BT,
        policy.reference_logprobs(rollout, temperature=1.0),
    ):
        assert torch.allclose(logprobs_BT, response_logprobs(saved, rollout), atol=1e-5)


@torch.no_grad()
def test_given_texts_and_their_log_probs(policy, world):
    rollout = policy.encode(["w0", "w1 w2"], ["w3", "w4 w5"])
    texts = policy.encode_texts([" ".join(WORDS[:4])])
    saved = load_causal_lm(world / "sft")
    for batch in (rollout, texts):
        got_BT = policy.forward(batch, temperature=1.0).logprobs_BT
        for b, (prompt, response) in enumerate(tokens_of(batch)):
            assert got_BT[b, : len(response)].tolist() == pytest.approx(plain_logprobs(saved, prompt, response), abs=1e-5)


def test_unknown_stages_are_refused():
    with pytest.raises(ValueError, match="no stage is called 'stf'"):
        component("policy", {"name": "causal_lm", "init": "stf"})
