"""The sampling law: inverse transform against sums by hand, frequencies against enumeration, rollouts token by token."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny_world import BOS, EOS, PAD, UNK, VOCABULARY, causal_lm, encoder, next_laws, plain_logprobs, tokens_of

from rlhf_lab.lm.logprobs import response_logprobs
from rlhf_lab.lm.sampling import choose_greedily, choose_tokens, rollout

PROMPTS = ["w0", "w3 w1 w2 w5", "w7 w7"]
LENGTH = 6


def rng(seed=0):
    return np.random.default_rng(seed)


def sampled(model, *, prompts=PROMPTS, seed=0, pad="<pad>", temperature=1.0, **keywords):
    return rollout(
        model,
        encoder(pad),
        prompts,
        rng(seed),
        **{"samples": 4, "response_length": LENGTH, **keywords},
        temperature=temperature,
    )


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return causal_lm(request.param)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_a_token_is_where_the_cumulative_law_passes_u(temperature):
    logits = [0.5, -1.0, 2.0, 0.0]
    weights = [math.exp(z / temperature) for z in logits]
    law = [w / sum(weights) for w in weights]
    edges = np.cumsum(law)
    inside = [u for i in range(4) for u in (edges[i] - law[i] + 1e-6, edges[i] - law[i] / 2, edges[i] - 1e-6)]
    ids, logprobs = choose_tokens(torch.tensor(logits).expand(12, 4), torch.tensor(inside, dtype=torch.float64), temperature)
    assert ids.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert logprobs.tolist() == pytest.approx([math.log(law[i]) for i in ids], abs=1e-6)


def test_u_0_and_the_last_u_below_1_choose_tokens_that_are_possible():
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    for u, token in ((0.0, 1), (0.4999999, 1), (0.5000001, 2), (1 - 2**-53, 2)):
        ids, logprobs = choose_tokens(logits, torch.tensor([u], dtype=torch.float64), 1.0)
        assert ids.item() == token and logprobs.item() == pytest.approx(-math.log(2))


def test_frequencies_are_the_law():
    """Over evenly spread u each token is chosen as often as its probability says, to within one; τ = 1.1 is another law."""
    logits = torch.tensor([1.0, 0.0, -2.0, 0.5, 1.5], dtype=torch.float64)
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    counts = torch.bincount(choose_tokens(logits.expand(len(u), 5), u, 0.8)[0], minlength=5)
    weights = {t: torch.exp(logits / t) for t in (0.8, 1.1)}
    off = {t: (counts - 40_000 * w / w.sum()).abs().max().item() for t, w in weights.items()}
    assert off[0.8] <= 1 and off[1.1] > 1000


def test_greedy_takes_the_mode():
    ids, logprobs = choose_greedily(torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]]))
    assert ids.tolist() == [1, 0]
    assert logprobs[0].item() == pytest.approx(3 - math.log(1 + math.exp(3) + math.exp(1)), abs=1e-6)


def by_hand(model, prompt, uniforms, temperature):
    """One sequence, no cache, no padding: u_t against the cumulative law after the t-th prefix, until EOS."""
    response = []
    for u in uniforms:
        law = next_laws(model, prompt + response, temperature)[-1].exp().tolist()
        token, cumulative = 0, law[0]
        while cumulative <= u:
            token, cumulative = token + 1, cumulative + law[token + 1]
        response.append(token)
        if token == EOS:
            break
    return response


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_a_rollout_token_by_token(model, temperature, pad):
    """`samples` responses next to each other, one uniform number per sequence and position, the EOS included."""
    got = sampled(model, pad=pad, temperature=temperature)
    uniforms = rng().random((len(PROMPTS) * 4, LENGTH))
    prompts = [encoder().prompt_ids(prompt) for prompt in PROMPTS for _ in range(4)]
    expected = [by_hand(model, prompt, row, temperature) for prompt, row in zip(prompts, uniforms, strict=True)]
    assert tokens_of(got) == list(zip(prompts, expected, strict=True))
    assert got.ended_B.tolist() == [response[-1] == EOS for response in expected]
    special = {BOS, EOS, UNK} | ({PAD} if pad == "<pad>" else set())
    assert got.responses == tuple(" ".join(VOCABULARY[t] for t in response if t not in special) for response in expected)
    assert got.group_B.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert got.ended_B.any() and not got.ended_B.all()  # both kinds are there


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_log_probs_are_those_of_the_sampling_law(model, temperature):
    """With the cache as without it, and at τ: log π(y_t) / τ scored at τ = 1 would be off by tenths."""
    got = sampled(model, temperature=temperature)
    assert torch.allclose(got.logprobs_BT, response_logprobs(model, got, temperature), atol=1e-5)
    for b, (prompt, response) in enumerate(tokens_of(got)):
        assert got.logprobs_BT[b, : len(response)].tolist() == pytest.approx(
            plain_logprobs(model, prompt, response, temperature), abs=1e-5
        )
    assert (got.logprobs_BT[~got.mask_BT] == 0).all()
    if temperature != 1:
        assert (got.logprobs_BT - response_logprobs(model, got, 1.0)).abs().max() > 0.1


@pytest.mark.parametrize("pad, filler", [("<pad>", PAD), ("<eos>", EOS)])
def test_the_mask_ends_with_the_eos(model, pad, filler):
    """One run of ones; at most one EOS inside, at its end; padding after it."""
    got = sampled(model, pad=pad, samples=16)
    for ids, mask, ended in zip(got.response_ids_BT, got.mask_BT, got.ended_B, strict=True):
        n = int(mask.sum())
        assert mask.tolist() == [True] * n + [False] * (len(mask) - n) and n >= 1
        assert (ids[:n] == EOS).nonzero().squeeze(1).tolist() == ([n - 1] if ended else [])
        assert ended or n == LENGTH
        assert (ids[n:] == filler).all()
    assert got.response_ids_BT.shape[1] == int(got.mask_BT.sum(1).max())


def test_it_stops_when_all_have_ended():
    model = causal_lm()
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    ended = [
        got
        for got in (sampled(model, prompts=["w0"], samples=1, seed=seed, response_length=20) for seed in range(12))
        if got.ended_B.all()
    ]
    lengths = [int(got.mask_BT.sum()) for got in ended]
    assert len(ended) > 3 and min(lengths) < 10
    assert [got.response_ids_BT.shape for got in ended] == [(1, n) for n in lengths]
    assert len(calls) == sum(lengths) + 20 * (12 - len(ended))


def test_greedy_rollouts_follow_the_mode_and_ignore_the_noise(model):
    one, two = (sampled(model, seed=seed, greedy=True, samples=1) for seed in (0, 1))
    assert tokens_of(one) == tokens_of(two)
    for prompt, response in tokens_of(one):
        for t, token in enumerate(response):
            assert next_laws(model, prompt + response[:t])[-1].argmax().item() == token


def test_sampling_is_not_greedy(model):
    assert len({tuple(response) for _, response in tokens_of(sampled(model, prompts=["w0"], samples=32))}) > 8


def test_the_noise_does_not_depend_on_the_weights():
    """The same numbers are drawn, however long the responses turn out, so that two policies share them."""
    generators = rng(3), rng(3)
    for seed, generator in zip((0, 1), generators, strict=True):
        rollout(causal_lm(seed=seed), encoder(), PROMPTS, generator, samples=4, response_length=LENGTH, temperature=1.0)
    assert generators[0].random() == generators[1].random()


def test_nearly_equal_policies_say_nearly_the_same():
    """Independent noise would make most of the responses differ."""
    model = causal_lm()
    one = tokens_of(sampled(model, samples=16))
    with torch.no_grad():
        model.get_input_embeddings().weight *= 1.0001
    two = tokens_of(sampled(model, samples=16))
    assert sum(a == b for a, b in zip(one, two, strict=True)) >= 46


def test_the_rest_of_the_batch_changes_nothing(model):
    """Row 0 with short neighbours, with long neighbours, and alone."""
    alone = sampled(model, prompts=["w0"], samples=1)
    for others in (["w1", "w2"], ["w1 w2 w3 w4 w5 w6 w7 w8", "w2"]):
        among = sampled(model, prompts=["w0", *others], samples=1)
        assert tokens_of(among)[0] == tokens_of(alone)[0]
        n = int(alone.mask_BT.sum())
        assert torch.allclose(among.logprobs_BT[0, :n], alone.logprobs_BT[0, :n], atol=1e-5)


def test_exact_law_of_whole_responses():
    """Over responses of two tokens, frequencies of 6000 samples against enumeration; χ² over the pooled likely ones."""
    model = causal_lm(spread=0.5)
    got = rollout(model, encoder(), ["w3"], rng(), samples=6000, response_length=2, temperature=1.0)
    laws = {}
    first = next_laws(model, encoder().prompt_ids("w3"))[-1].exp()
    for a in range(len(VOCABULARY)):
        if a == EOS:
            laws[(a,)] = first[a].item()
            continue
        second = next_laws(model, [*encoder().prompt_ids("w3"), a])[-1].exp()
        laws |= {(a, b): (first[a] * second[b]).item() for b in range(len(VOCABULARY))}
    assert sum(laws.values()) == pytest.approx(1, abs=1e-9)
    counts = dict.fromkeys(laws, 0)
    for _, response in tokens_of(got):
        counts[tuple(response)] += 1
    likely = [y for y, p in laws.items() if p * 6000 >= 5]
    observed = [*(counts[y] for y in likely), sum(n for y, n in counts.items() if y not in set(likely))]
    expected = [*(laws[y] * 6000 for y in likely), 6000 * (1 - sum(laws[y] for y in likely))]
    assert len(likely) > 30 and chisquare(observed, expected, sum_check=False).pvalue > 0.01


@pytest.mark.parametrize("length", [1, 3])
def test_no_response_is_longer_than_allowed(model, length):
    assert sampled(model, response_length=length).mask_BT.sum(1).max() <= length
