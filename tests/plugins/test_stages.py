"""The supervised stages, comparisons and best-of-n: what they write, worked out again from their artifacts."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from tiny_world import (
    EOS,
    VOCABULARY,
    WORDS,
    TinyData,
    causal_lm,
    encoder,
    ids_of,
    plain_logprobs,
    plain_scalars,
    tokens_of,
)

from rlhf_lab.errors import DataError, NumericsError
from rlhf_lab.lm import sampling
from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab.lm.scalar import load_scalar_model
from rlhf_lab.streams import stream
from rlhf_lab_plugins.stage.comparisons import swapped
from rlhf_lab_plugins.stage.reward_model import accuracy, compared

QUIET = {"log_samples": 0, "sample_length": 4}
WORLD = TinyData().open(None)


def sequences(demonstrations):
    return [(ids_of(d.prompt), [*ids_of(d.completion), EOS]) for d in demonstrations]


def token_mean(model, pairs):
    """−Σ log p / N over the response tokens, by plain forwards."""
    return -sum(sum(plain_logprobs(model, *pair)) for pair in pairs) / sum(len(response) for _, response in pairs)


def weights(done):
    from safetensors.torch import load_file

    return load_file(done.folder / "model.safetensors")


def numbers(row):
    return {name: value for name, value in row.items() if not isinstance(value, str)}


# SFT


def test_a_uniform_models_loss_is_log_v(run_stage):
    done = run_stage("sft", QUIET, model={"name": "tiny", "spread": 0.0})
    assert done.rows("train")[0]["loss"] == pytest.approx(math.log(len(VOCABULARY)), abs=1e-5)


def test_the_loss_is_the_token_mean_over_responses(run_stage):
    """The first batch, all of the data: first response tokens and EOS count, prompt tokens do not."""
    (row,) = run_stage("sft", {**QUIET, "batch_size": 24}).rows("train")
    pairs = sequences(WORLD.demonstrations("train"))
    assert row["loss"] == pytest.approx(token_mean(causal_lm(), pairs), abs=1e-5)
    whole = token_mean(causal_lm(), [(ids[:1], [*ids[1:], *response]) for ids, response in pairs])
    late = token_mean(causal_lm(), [([*ids, response[0]], response[1:]) for ids, response in pairs])
    assert min(abs(row["loss"] - other) for other in (whole, late)) > 0.01


def test_with_pretraining_text_the_mean_is_over_all_tokens(run_stage):
    """24 demonstrations and round(0.25 · 24) texts, drawn by the documented stream, in one token mean."""
    (row,) = run_stage("sft", {**QUIET, "batch_size": 24, "pretraining_fraction": 0.25}).rows("train")
    texts = WORLD.pretraining("train")
    drawn = [texts[i] for i in stream(0, "pretraining", 0).choice(len(texts), 6)]
    pairs = sequences(WORLD.demonstrations("train")) + [(ids_of(text)[:1], [*ids_of(text)[1:], EOS]) for text in drawn]
    assert row["loss"] == pytest.approx(token_mean(causal_lm(), pairs), abs=1e-5)


def test_validation_by_plain_forwards_of_the_saved_model(run_stage):
    done = run_stage("sft", {**QUIET, "epochs": 2, "learning_rate": 0.01, "batch_size": 7})
    rows = done.rows("validation")
    expected = token_mean(load_causal_lm(done.folder), sequences(WORLD.demonstrations("validation")))
    assert rows[-1]["loss"] == pytest.approx(expected, abs=1e-5)
    assert all(row["perplexity"] == pytest.approx(math.exp(row["loss"]), rel=1e-6) for row in rows)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 4), (2, 8)]  # ⌈24 / 7⌉ steps an epoch
    assert rows[1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("extra", [{}, {"pretraining_fraction": 0.4}, {"adaptation": "lora", "lora_rank": 2}])
def test_accumulation_changes_memory_not_numbers(run_stage, extra):
    """A mean of means would differ here. A large ε keeps Adam from magnifying round-off."""
    stable = {**QUIET, "batch_size": 12, "adam_eps": 1e-3, "learning_rate": 0.01}
    plain, *others = [run_stage("sft", {**stable, "microbatch_size": size, **extra}) for size in (None, 1, 5)]
    for other in others:
        for mine, theirs in zip(other.rows(), plain.rows(), strict=True):
            assert numbers(mine) == pytest.approx(numbers(theirs), rel=1e-5, abs=1e-5)
        assert all(torch.allclose(weight, weights(plain)[name], atol=1e-6) for name, weight in weights(other).items())


def test_what_was_shown_is_learned_with_its_end(run_stage):
    """Walks along the vocabulary: after training the mode goes on from the prompt's last word, and ends."""
    done = run_stage(
        "sft", {**QUIET, "epochs": 30, "learning_rate": 0.02, "batch_size": 8}, data={"name": "tiny", "demonstrations": 12}
    )
    assert done.rows("train")[-1]["loss"] < 0.3
    answers = sampling.rollout(
        load_causal_lm(done.folder),
        encoder(),
        WORLD.prompts("train"),
        np.random.default_rng(0),
        greedy=True,
        response_length=8,
        temperature=1.0,
    )
    follows = [WORDS.index(prompt.split()[-1]) + 1 for prompt in answers.prompts]
    right = [response.split()[:1] == [WORDS[i % 12]] for i, response in zip(follows, answers.responses, strict=True)]
    assert np.mean(right) > 0.9 and answers.ended_B.float().mean() > 0.9
    before = sampling.rollout(
        causal_lm(),
        encoder(),
        WORLD.prompts("train"),
        np.random.default_rng(0),
        greedy=True,
        response_length=8,
        temperature=1.0,
    )
    assert before.ended_B.float().mean() < 0.5


def test_samples_before_and_after_share_their_prompts(run_stage):
    samples = run_stage("sft", {"log_samples": 5, "sample_length": 4, "batch_size": 12}).samples()
    assert [s["step"] for s in samples] == [0] * 5 + [2] * 5
    assert [s["prompt"] for s in samples[:5]] == [s["prompt"] for s in samples[5:]] == WORLD.prompts("validation")[:5]


def test_examples_limits_what_is_trained_on(run_stage):
    (row,) = run_stage("sft", {**QUIET, "examples": 3}).rows("train")
    assert row["loss"] == pytest.approx(token_mean(causal_lm(), sequences(WORLD.demonstrations("train")[:3])), abs=1e-5)


def test_from_another_stage(run_stage, world):
    (row,) = run_stage(
        "sft",
        {**QUIET, "batch_size": 24, "init": "another"},
        inputs={"another": world / "sft"},
        model={"name": "tiny", "spread": 0.1},
    ).rows("train")
    assert row["loss"] == pytest.approx(
        token_mean(load_causal_lm(world / "sft"), sequences(WORLD.demonstrations("train"))), abs=1e-5
    )


def test_frozen_embeddings_stay(run_stage):
    done = run_stage("sft", {**QUIET, "freeze_embeddings": True})
    start = causal_lm().state_dict()
    moved = {name for name, weight in weights(done).items() if not torch.equal(weight, start[name])}
    assert "model.embed_tokens.weight" not in moved and len(moved) > 10


def test_sft_twice_gives_the_same_bytes_and_leaves_the_global_generators_alone(run_stage):
    """With dropout, which draws from the stage's own stream."""
    torch.manual_seed(3)
    one = run_stage("sft", {"dropout": 0.2, "sample_length": 4})
    here = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), here)
    two = run_stage("sft", {"dropout": 0.2, "sample_length": 4})
    for name in ("steps.jsonl", "samples.jsonl", "model.safetensors"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert run_stage("sft", {"dropout": 0.0, "sample_length": 4}).rows() != one.rows()


def test_the_schedule_and_the_clip_reach_the_optimiser(run_stage):
    """Six steps of cosine to 10 % after two of warm-up: 0, ½, then 0.1 + 0.9 · ½(1 + cos(π k / 4))."""
    rows = run_stage("sft", {**QUIET, "batch_size": 4, "warmup_steps": 2, "learning_rate": 0.01, "floor": 0.1}).rows("train")
    factors = [0.0, 0.5, *(0.1 + 0.45 * (1 + math.cos(math.pi * k / 4)) for k in range(4))]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01 * f for f in factors])


def test_a_loss_that_explodes_is_said(run_stage):
    with pytest.raises(NumericsError, match=r"stage sft, step \d: the loss is not finite: .* lower the learning rate"):
        run_stage("sft", {**QUIET, "learning_rate": 1e30, "epochs": 3, "batch_size": 4, "max_grad_norm": None})


# Reward model


def plain_score(model, prompt, completion):
    """gain · (w·h + b) + bias at the EOS, by a plain forward; pooling `last`."""
    return model.gain * plain_scalars(model, [*ids_of(prompt), *ids_of(completion), EOS])[-1] + model.bias


def test_accuracy_by_hand():
    """Pairs of two rankings: right by 1, wrong by 2, right by 3 and a tie; then equal scores, which are not right."""
    scores = torch.tensor([[2.0, 1.0, 4.0], [0.5, 0.5, 9.0]])
    ratings = torch.tensor([[2.0, 1.0, 4.0], [1.0, 0.0, 7.0]])
    ratings[0] = torch.tensor([1.0, 1.0, 3.0])
    mask = torch.tensor([[True] * 3, [True, True, False]])
    pairs = list(compared(scores, ratings, mask))
    assert sorted(pairs) == [(0.0, 1.0), (2.0, 2.0), (3.0, 2.0)]
    assert accuracy(pairs, 0.0) == pytest.approx(2 / 3) and accuracy(pairs, 1.0) == 1.0
    assert math.isnan(accuracy(pairs, 5.0)) and accuracy([(-1.0, 1.0), (1.0, 1.0)], 0.0) == 0.5


def test_validation_of_the_reward_model_by_plain_forwards(run_stage):
    """Accuracy, loss and correlation from the saved model, one completion at a time."""
    done = run_stage(
        "reward_model", {"normalize": "none", "epochs": 3, "learning_rate": 0.01, "batch_size": 5, "margins": [1.0]}
    )
    row, model = done.rows("validation")[-1], load_scalar_model(done.folder)
    losses, right, flat = [], [], []
    for ranking in WORLD.rankings("validation"):
        scores = [plain_score(model, ranking.prompt, completion) for completion in ranking.completions]
        flat += zip(scores, ranking.ratings, strict=True)
        pairs = [
            (scores[w] - scores[n], ranking.ratings[w] - ranking.ratings[n])
            for w, n in itertools.permutations(range(3), 2)
            if ranking.ratings[w] > ranking.ratings[n]
        ]
        right += [(difference > 0, margin) for difference, margin in pairs]
        losses.append(np.mean([math.log1p(math.exp(-difference)) for difference, _ in pairs]) if pairs else 0.0)
    assert row["accuracy"] == pytest.approx(np.mean([ok for ok, _ in right])) and row["pairs"] == len(right)
    assert row["accuracy_margin_1"] == pytest.approx(np.mean([ok for ok, margin in right if margin > 1]))
    assert row["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert row["correlation"] == pytest.approx(np.corrcoef(np.array(flat).T)[0, 1], abs=1e-4)
    assert any(len(set(r.ratings)) < 3 for r in WORLD.rankings("validation"))  # there are ties


def test_what_people_prefer_is_learned(run_stage):
    """Ratings count one word: a reward model that reads it gets nearly all pairs right, also of prompts it has not seen."""
    done = run_stage(
        "reward_model",
        {"epochs": 8, "learning_rate": 0.01, "batch_size": 16, "pooling": "sum", "validate_at_start": True},
        data={"name": "tiny", "prompts_per_split": 120},
    )
    rows = done.rows("validation")
    assert rows[0]["step"] == 0 and rows[0]["epoch"] == 0 and rows[0]["accuracy"] < 0.8 < 0.9 < rows[-1]["accuracy"]


@pytest.mark.parametrize("loss", ["kwise", "pairwise"])
def test_micro_batches_of_rankings_change_memory_not_numbers(run_stage, loss):
    stable = {"batch_size": 6, "loss": loss, "sample_length": 4, "adam_eps": 1e-3, "learning_rate": 0.01}
    plain, *others = [run_stage("reward_model", {**stable, "microbatch_size": size}) for size in (None, 1, 4)]
    for other in others:
        for mine, theirs in zip(other.rows(), plain.rows(), strict=True):
            assert numbers(mine) == pytest.approx(numbers(theirs), rel=1e-5, abs=2e-5)


def test_normalised_on_samples_it_has_mean_0_and_deviation_1(run_stage, world):
    """The samples again from their documented streams, their scores by plain forwards, their moments by numpy."""
    done = run_stage(
        "reward_model", {"normalize": "policy_samples", "normalize_examples": 40, "sample_length": 5, "learning_rate": 0.01}
    )
    prompts, places = WORLD.prompts("train"), range(40)
    order = [stream(0, "normalization.prompts", i // 12).permutation(12)[i % 12] for i in places]
    sampled = sampling.rollout(
        load_causal_lm(world / "sft"),
        encoder(),
        [prompts[i] for i in order],
        stream(0, "normalization"),
        response_length=5,
        temperature=1.0,
    )
    model = load_scalar_model(done.folder)
    scores = [model.gain * plain_scalars(model, prompt + response)[-1] + model.bias for prompt, response in tokens_of(sampled)]
    assert np.mean(scores) == pytest.approx(0, abs=1e-4) and np.std(scores, ddof=1) == pytest.approx(1, abs=1e-4)
    (row,) = done.rows("normalization")
    assert (row["gain"], row["bias"]) == (model.gain, model.bias) and abs(model.gain - 1) > 1e-3


def test_normalised_on_demonstrations_it_has_mean_0_and_its_own_scale(run_stage):
    done = run_stage(
        "reward_model", {"normalize": "demonstrations", "normalize_examples": 20, "learning_rate": 0.01, "batch_size": 6}
    )
    model = load_scalar_model(done.folder)
    scores = [plain_score(model, d.prompt, d.completion) for d in WORLD.demonstrations("train")[:20]]
    assert np.mean(scores) == pytest.approx(0, abs=1e-5) and model.gain == 1 and abs(model.bias) > 1e-3


def test_without_normalisation_gain_and_bias_are_those_of_the_head(run_stage):
    model = load_scalar_model(run_stage("reward_model", {"normalize": "none"}).folder)
    assert (model.gain, model.bias) == (1.0, 0.0)


def test_the_share_of_the_rankings_that_is_used(open_stage, run_stage):
    """Two halves have nothing in common and together are all; twelve rankings, of which `examples` takes the first."""
    found = []
    for share in ((0.0, 0.5), (0.5, 1.0), (0.0, 1.0)):
        cfg, ctx = open_stage("reward_model", {"share": share})
        found.append(cfg.rankings(ctx, "train"))
    assert found[0] + found[1] == found[2] == WORLD.rankings("train") and len(found[0]) == 6
    cfg, ctx = open_stage("reward_model", {"share": (0.5, 1.0), "examples": 2})
    assert cfg.rankings(ctx, "train") == WORLD.rankings("train")[6:8] and len(cfg.rankings(ctx, "validation")) == 12
    with pytest.raises(DataError, match="leaves no rankings"):
        run_stage("reward_model", {"share": (0.3, 0.3)})


def test_the_first_loss_is_that_of_the_untrained_head(run_stage, open_stage):
    """All rankings in one batch: the mean over prompts, and by how the head starts it is near log 2 for untied ones."""
    (row,) = run_stage("reward_model", {"batch_size": 12, "normalize": "none"}).rows("train")
    untied = np.mean([len(set(r.ratings)) > 1 for r in WORLD.rankings("train")])
    assert row["loss"] == pytest.approx(untied * math.log(2), abs=0.3) and row["rankings"] == 12


def test_a_reward_model_twice_gives_the_same_bytes(run_stage):
    one, two = (run_stage("reward_model", {"sample_length": 4, "dropout": 0.1}) for _ in range(2))
    for name in ("steps.jsonl", "model.safetensors", "head.safetensors", "head.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def test_as_a_reward_it_scores_what_was_sampled(run_stage, open_stage):
    """The reward source gives the stage's own scores, in micro-batches as at once."""
    done = run_stage("reward_model", {"sample_length": 4, "learning_rate": 0.01})
    rollout = encoder().encode(["w0", "w1 w2 w3"], ["w1", "w1 w4 w5"])
    expected = [plain_score(load_scalar_model(done.folder), p, c) for p, c in (("w0", "w1"), ("w1 w2 w3", "w1 w4 w5"))]
    for size in (None, 1):
        cfg, ctx = open_stage(
            "rl", {"reward": {"name": "reward_model", "microbatch_size": size}}, inputs={"reward_model": done.folder}
        )
        assert cfg.reward.open(ctx)(rollout).scores_B.tolist() == pytest.approx(expected, abs=1e-4)


# Comparisons


def rankings_of(done, split="train"):
    return [json.loads(line) for line in (done.folder / f"rankings.{split}.jsonl").read_text().splitlines()]


def gold(text):
    """The labeler's rating by counting."""
    return float(text.split().count("w1") - text.split().count("w2"))


COMPARISONS = {"labeler": "words", "prompts": 600, "validation_prompts": 50, "response_length": 6}


def test_without_noise_the_ratings_are_the_labelers(run_stage):
    done = run_stage("comparisons", {**COMPARISONS, "flip": 0.0, "completions": 3})
    rankings = rankings_of(done)
    assert len(rankings) > 100 and rankings_of(done, "validation")
    for ranking in rankings:
        assert [gold(text) for text in ranking["completions"]] == ranking["ratings"] and len(ranking["completions"]) == 3
        assert len(set(ranking["ratings"])) > 1
    assert {r["prompt"] for r in rankings} <= set(WORLD.prompts("train"))
    assert {r["prompt"] for r in rankings_of(done, "validation")} <= set(WORLD.prompts("validation"))
    assert [row["rankings"] for row in done.rows()] == [len(rankings), len(rankings_of(done, "validation"))]


def test_verdicts_are_inverted_at_the_rate_that_was_asked_for(run_stage):
    """Binomial: within 4 standard errors of 0.25."""
    rankings = rankings_of(run_stage("comparisons", {**COMPARISONS, "flip": 0.25}))
    wrong = [[gold(text) for text in r["completions"]] != r["ratings"] for r in rankings]
    assert np.mean(wrong) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / len(wrong))) and len(wrong) > 100
    for ranking, flipped in zip(rankings, wrong, strict=True):
        ratings = [gold(text) for text in ranking["completions"]]
        assert ranking["ratings"] == (ratings[::-1] if flipped else ratings)


def test_noise_changes_verdicts_and_not_samples(run_stage):
    clean, noisy = (rankings_of(run_stage("comparisons", {**COMPARISONS, "flip": flip})) for flip in (0.0, 0.4))
    assert [(r["prompt"], r["completions"]) for r in clean] == [(r["prompt"], r["completions"]) for r in noisy]
    assert clean != noisy


def test_prompts_whose_responses_tie_are_dropped(run_stage):
    """All prompts that were sampled, again from the documented streams: the untied ones are what was written."""
    parameters = {**COMPARISONS, "prompts": 20, "validation_prompts": 0, "flip": 0.0, "batch_size": 64}
    done = run_stage("comparisons", parameters)
    prompts = WORLD.prompts("train")
    order = [stream(0, "comparisons.train", i // 12).permutation(12)[i % 12] for i in range(20)]
    model = causal_lm()
    sampled = sampling.rollout(
        model,
        encoder(),
        [prompts[i] for i in order],
        stream(0, "comparisons", 0, 0),
        samples=2,
        response_length=6,
        temperature=1.0,
    )
    pairs = [sampled.responses[2 * i : 2 * i + 2] for i in range(20)]
    untied = [list(pair) for pair in pairs if gold(pair[0]) != gold(pair[1])]
    assert [r["completions"] for r in rankings_of(done)] == untied and 0 < len(untied) < 20


def test_nothing_to_compare_is_said(run_stage):
    with pytest.raises(DataError, match="finds all responses alike"):
        run_stage("comparisons", {**COMPARISONS, "prompts": 5, "labeler": {"name": "first_token"}})


def test_swapping_exchanges_two_ratings_and_any_two():
    ratings, rng = [1.0, 2.0, 3.0, 4.0], np.random.default_rng(0)
    results = [tuple(swapped(ratings, rng)) for _ in range(600)]
    assert all(sorted(r) == ratings and sum(a != b for a, b in zip(r, ratings, strict=True)) == 2 for r in results)
    counts = [results.count(r) for r in set(results)]
    assert len(counts) == 6 and min(counts) > 60  # 100 each, standard deviation 9
    assert swapped([1.0, 2.0], rng) == [2.0, 1.0] and ratings == [1.0, 2.0, 3.0, 4.0]


def test_a_reward_model_reads_what_comparisons_wrote(run_stage):
    made = run_stage("comparisons", {**COMPARISONS, "flip": 0.0, "prompts": 100})
    done = run_stage(
        "reward_model", {"comparisons": "comparisons", "sample_length": 4, "batch_size": 8}, inputs={"comparisons": made.folder}
    )
    assert sum(row["rankings"] for row in done.rows("train")) == len(rankings_of(made))


# Best-of-n


def test_best_of_n_by_all_subsets(run_stage, world):
    """The 7 samples of each prompt from their documented stream; every subset of n; ties share alike."""
    done = run_stage(
        "best_of_n",
        {
            "reward": "words",
            "gold": {"name": "words", "value": 3.0},
            "prompts": 4,
            "samples": 7,
            "n": [1, 2, 5, 8],
            "response_length": 8,
        },
    )
    expected = {n: [] for n in (1, 2, 5)}
    for number, prompt in enumerate(WORLD.prompts("validation")[:4]):
        sampled = sampling.rollout(
            load_causal_lm(world / "sft"),
            encoder(),
            [prompt],
            stream(0, "best_of_n", number),
            samples=7,
            response_length=8,
            temperature=1.0,
        )
        proxy = [gold(text) for text in sampled.responses]
        value = [3.0 * text.split().count("w1") - text.split().count("w2") for text in sampled.responses]
        for n, found in expected.items():
            best = []
            for subset in itertools.combinations(range(7), n):
                top = max(proxy[i] for i in subset)
                best.append((top, np.mean([value[i] for i in subset if proxy[i] == top])))
            found.append(np.mean(best, axis=0))
    rows = done.rows("validation")
    assert [row["n"] for row in rows] == [1, 2, 5]  # 8 > 7 samples is left out
    for row in rows:
        means, errors = np.mean(expected[row["n"]], axis=0), np.std(expected[row["n"]], axis=0, ddof=1) / 2
        assert [row["reward_proxy"], row["reward_gold"]] == pytest.approx(means.tolist(), abs=1e-9)
        assert [row["reward_proxy_se"], row["reward_gold_se"]] == pytest.approx(errors.tolist(), abs=1e-9)
        assert row["kl"] == pytest.approx(math.log(row["n"]) - (row["n"] - 1) / row["n"])
    assert rows[0]["reward_proxy"] < rows[1]["reward_proxy"] < rows[2]["reward_proxy"]


def test_best_of_n_of_one_prompt_has_no_standard_error(run_stage):
    (row,) = run_stage("best_of_n", {"reward": "words", "prompts": 1, "samples": 4, "n": [2], "response_length": 4}).rows()
    assert row["reward_proxy_se"] is None and row["reward_gold"] is None
