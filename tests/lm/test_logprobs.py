"""Log-probs and entropies against plain forwards of single, unpadded sequences."""

import dataclasses

import pytest
import torch
from tiny_world import EOS, VOCABULARY, causal_lm, encoder, next_laws, plain_logprobs, tokens_of

from rlhf_lab.contracts import Rollout
from rlhf_lab.lm.logprobs import (
    entropy,
    gather_logprobs,
    make_head_input_contiguous,
    position_ids,
    response_logits,
    response_logprobs,
)

PROMPTS = ["w0", "w3 w1 w2 w5", "w7 w7", "w4"]
RESPONSES = ["w4 w5 w6", "w2", "", "w1 w1 w9 w10"]
TOLERANCE = 1e-5


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return causal_lm(request.param)


def shifted(rollout: Rollout, left: int, right: int, filler: int) -> Rollout:
    """The same sequences with more padding on both sides."""
    pad = torch.nn.functional.pad
    return dataclasses.replace(
        rollout,
        prompt_ids_BP=pad(rollout.prompt_ids_BP, (left, 0), value=filler),
        prompt_mask_BP=pad(rollout.prompt_mask_BP, (left, 0)),
        response_ids_BT=pad(rollout.response_ids_BT, (0, right), value=filler),
        mask_BT=pad(rollout.mask_BT, (0, right)),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("left, right", [(0, 0), (5, 0), (0, 4), (3, 2)])
def test_padding_left_right_or_none(model, temperature, left, right):
    """Every response token, the first one and the EOS included, as if its sequence stood alone."""
    rollout = encoder().encode(PROMPTS, RESPONSES)
    got_BT = response_logprobs(model, shifted(rollout, left, right, EOS), temperature)
    assert got_BT.isfinite().all()
    for b, (prompt, response) in enumerate(tokens_of(rollout)):
        expected = plain_logprobs(model, prompt, response, temperature)
        assert got_BT[b, : len(response)].tolist() == pytest.approx(expected, abs=TOLERANCE)
        assert (got_BT[b, len(response) :] == 0).all()


def test_what_the_padding_is_changes_nothing(model):
    rollouts = [encoder(pad).encode(PROMPTS, RESPONSES) for pad in ("<pad>", "<eos>", None)]
    first, *others = [response_logprobs(model, rollout) for rollout in rollouts]
    assert all(torch.allclose(first, other, atol=TOLERANCE) for other in others)


def test_the_effect_that_position_ids_guard_against_is_large():
    """Without them a left-padded GPT-2 is off by far more than the tolerance above."""
    model = causal_lm("gpt2")
    prompt, response = tokens_of(encoder().encode(["w3"], ["w2 w4"]))[0]
    padded = torch.tensor([[EOS] * 6 + prompt + response])
    mask = torch.tensor([[0] * 6 + [1] * 4])
    with torch.no_grad():
        wrong = model(input_ids=padded, attention_mask=mask, position_ids=torch.arange(10)[None]).logits[0, 6:].log_softmax(-1)
    right = next_laws(model, prompt + response).float()
    assert (wrong - right).abs().max() > 0.1


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]]


def test_logits_for_token_t_stand_before_it(model):
    rollout = encoder().encode(PROMPTS, RESPONSES)
    logits_BTV = response_logits(model, rollout)
    assert logits_BTV.dtype == torch.float32 and logits_BTV.shape == (*rollout.response_ids_BT.shape, len(VOCABULARY))
    for b, (prompt, response) in enumerate(tokens_of(rollout)):
        laws = next_laws(model, prompt + response)[len(prompt) - 1 : -1]
        assert torch.allclose(logits_BTV[b, : len(response)].double().log_softmax(-1), laws, atol=TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_gathering_divides_by_the_temperature_before_the_softmax(temperature):
    logits = torch.tensor([[[0.0, 1.0, -2.0]]], dtype=torch.float64)
    weights = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64).div(temperature).exp()
    got = gather_logprobs(logits, torch.tensor([[1]]), temperature)
    assert got.item() == pytest.approx((weights[1] / weights.sum()).log().item(), abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_entropy_is_that_of_the_law_that_is_sampled(temperature):
    logits = torch.tensor([[[0.3, 1.0, -2.0, 0.1]]], dtype=torch.float64)
    expected = torch.distributions.Categorical(logits=logits / temperature).entropy()
    assert torch.allclose(entropy(logits, temperature), expected, atol=1e-12)


def test_entropy_of_a_uniform_and_of_a_sharp_law():
    assert entropy(torch.zeros(1, 1, 16), 1.0).item() == pytest.approx(2.772588722, abs=1e-6)
    assert entropy(torch.tensor([[[200.0, 0.0, -200.0]]]), 1.0).item() == 0.0


def test_only_the_path_before_a_token_matters(model):
    """Log-probs of the first tokens do not know the later ones, nor other rows of the batch."""
    one = response_logprobs(model, encoder().encode(["w0", "w1"], ["w4 w5 w6", "w2"]))
    two = response_logprobs(model, encoder().encode(["w0", "w9 w9 w9 w9"], ["w4 w5 w11", "w3 w3 w3 w3 w3"]))
    assert torch.allclose(one[0, :2], two[0, :2], atol=TOLERANCE) and abs(one[0, 2] - two[0, 2]) > 1e-3


def test_the_head_sees_contiguous_states_and_says_the_same():
    model, rollout = causal_lm(), encoder().encode(PROMPTS, RESPONSES)
    before = response_logprobs(model, rollout)
    make_head_input_contiguous(model)
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].is_contiguous()))
    assert torch.allclose(response_logprobs(model, rollout), before, atol=1e-6) and seen == [True]
