"""Reward models and critics against plain forwards of single sequences."""

import dataclasses
import math

import pytest
import torch
from tiny_world import causal_lm, encoder, plain_scalars, tokenizer, tokens_of

from rlhf_lab.errors import ModelError
from rlhf_lab.lm.scalar import ScalarModel, load_scalar_model

PROMPTS = ["w0", "w3 w1 w2 w5", "w7 w7", "w4"]
RESPONSES = ["w4 w5 w6", "w2", "", "w1 w1 w9 w10"]
POOLINGS = {"last": lambda xs: xs[-1], "mean": lambda xs: sum(xs) / len(xs), "sum": sum}


def scalar_model(architecture="llama", pooling="last", seed=3):
    lm = causal_lm(architecture, seed=seed)
    model = ScalarModel(lm.base_model, pooling, torch.Generator().manual_seed(seed)).eval()
    model.head.bias.data.fill_(0.3)
    return model


def widened(rollout, left, right):
    pad = torch.nn.functional.pad
    return dataclasses.replace(
        rollout,
        prompt_ids_BP=pad(rollout.prompt_ids_BP, (left, 0), value=5),
        prompt_mask_BP=pad(rollout.prompt_mask_BP, (left, 0)),
        response_ids_BT=pad(rollout.response_ids_BT, (0, right), value=5),
        mask_BT=pad(rollout.mask_BT, (0, right)),
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("left, right", [(0, 0), (4, 3)])
@torch.no_grad()
def test_a_padded_batch_scores_like_single_texts(architecture, pooling, left, right):
    """Over the response tokens with their EOS; gain and bias after pooling."""
    model = scalar_model(architecture, pooling)
    rollout = encoder().encode(PROMPTS, RESPONSES)
    expected = [
        POOLINGS[pooling](plain_scalars(model, prompt + response)[len(prompt) :]) for prompt, response in tokens_of(rollout)
    ]
    wide = widened(rollout, left, right)
    assert model.raw_scores(wide).tolist() == pytest.approx(expected, abs=1e-5)
    model.gain, model.bias = 2.5, -1.0
    assert model.scores(wide).tolist() == pytest.approx([2.5 * s - 1 for s in expected], abs=1e-5)


@torch.no_grad()
def test_the_score_is_read_at_the_eos_even_where_it_is_the_padding():
    model = scalar_model()
    a, b = (model.raw_scores(encoder(pad).encode(PROMPTS, RESPONSES)) for pad in ("<pad>", "<eos>"))
    assert torch.allclose(a, b, atol=1e-5)


@torch.no_grad()
def test_poolings_differ():
    rollout = encoder().encode(PROMPTS, RESPONSES)
    scores = [scalar_model(pooling=pooling).raw_scores(rollout)[0].item() for pooling in POOLINGS]
    assert min(abs(scores[i] - scores[j]) for i in range(3) for j in range(i)) > 1e-2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_a_value_is_read_before_its_token(architecture):
    model = scalar_model(architecture)
    model.gain, model.bias = 2.0, 0.5
    rollout = encoder().encode(PROMPTS, RESPONSES)
    values_BT = model.values(widened(rollout, 2, 2))
    for b, (prompt, response) in enumerate(tokens_of(rollout)):
        read = plain_scalars(model, prompt + response)[len(prompt) - 1 : -1]
        assert values_BT[b, : len(response)].tolist() == pytest.approx([2 * x + 0.5 for x in read], abs=1e-5)


@torch.no_grad()
def test_values_are_causal():
    """Another token t changes no value up to t, and some later one."""
    model = scalar_model()
    base = model.values(encoder().encode(["w0 w1"], ["w4 w5 w6 w7"]))[0]
    for t in range(4):
        words = ["w4", "w5", "w6", "w7"]
        words[t] = "w11"
        changed = model.values(encoder().encode(["w0 w1"], [" ".join(words)]))[0]
        assert torch.allclose(changed[: t + 1], base[: t + 1], atol=1e-6)
        assert (changed[t + 1 :] - base[t + 1 :]).abs().min() > 1e-4


def test_the_head_starts_at_one_over_d_plus_1_in_variance():
    """d = 1024 draws: standard error of the deviation 2.2 %, of the mean 0.001; the bias is 0."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(vocab_size=4, hidden_size=1024, intermediate_size=4, num_hidden_layers=0, num_attention_heads=1)
    head = ScalarModel(LlamaModel(config), generator=torch.Generator().manual_seed(0)).head
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(1025), rel=4 * 0.022)
    assert abs(head.weight.mean().item()) < 4 / math.sqrt(1025) / 32 and head.bias.item() == 0


def test_the_head_comes_from_its_generator_alone():
    torch.manual_seed(5)
    one = scalar_model(seed=3).head.weight
    torch.manual_seed(6)
    assert torch.equal(one, scalar_model(seed=3).head.weight) and not torch.equal(one, scalar_model(seed=4).head.weight)


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_saving_and_loading_changes_no_bit(tmp_path, pooling):
    model, rollout = scalar_model(pooling=pooling), encoder().encode(PROMPTS, RESPONSES)
    model.gain, model.bias = 1 / 3, -0.1
    model.save(tmp_path, tokenizer())
    loaded = load_scalar_model(tmp_path)
    assert torch.equal(loaded.scores(rollout), model.scores(rollout)) and torch.equal(
        loaded.values(rollout), model.values(rollout)
    )
    assert (loaded.pooling, loaded.gain, loaded.bias) == (pooling, 1 / 3, -0.1)
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.pt"))


def test_what_is_no_reward_model_is_said(tmp_path):
    with pytest.raises(ModelError, match="no reward model"):
        load_scalar_model(tmp_path)
    scalar_model().save(tmp_path, tokenizer())
    causal_lm(width=32).model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not fit"):
        load_scalar_model(tmp_path)
