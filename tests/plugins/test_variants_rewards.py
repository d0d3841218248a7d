"""Rewards made of rewards, rules, and somebody else's classifier: scores by hand, or by a plain forward pass."""

import json
import math

import numpy as np
import pytest
import tiny_world
import torch
from tiny_world import component

from rlhf_lab.contracts import Rollout, Scores
from rlhf_lab.errors import DataError, ModelError, RewardError
from rlhf_lab_plugins.reward.ensemble import combined
from rlhf_lab_plugins.reward.repetition import repeated_share
from rlhf_lab_plugins.reward.scaled import merged_moments

WORDS = {"name": "words"}  # (number of w1) − (number of w2)


def rollout(*responses, prompts=None, ended=True) -> Rollout:
    """Word-level text as the policy would have sampled it."""
    prompts = list(prompts or ["w0"] * len(responses))
    encoded = tiny_world.encoder().encode(prompts, list(responses))
    if ended:
        return encoded
    cut_BT = encoded.mask_BT & (torch.arange(encoded.mask_BT.shape[1]) < encoded.mask_BT.sum(1, keepdim=True) - 1)
    return Rollout(**{**vars(encoded), "mask_BT": cut_BT, "ended_B": torch.zeros_like(encoded.ended_B)})


def scores(value, *responses, ctx=None, **keywords) -> Scores:
    return component("reward", value).open(ctx)(rollout(*responses, **keywords))


def lengths(*weights):
    """Rewards that give the empty response (one token, the EOS) these scores."""
    return [{"name": "length", "weight": weight} for weight in weights]


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"how": "mean"}, 3.0),
        ({"how": "worst_case"}, 1.0),
        ({"how": "uncertainty_weighted"}, 2 / 3),  # 3 − ½·(4 + 1 + 9)/3
        ({"how": "uncertainty_weighted", "coefficient": 0.0}, 3.0),
        ({"how": "uncertainty_weighted", "coefficient": 1.5}, -4.0),
    ],
    ids=str,
)
def test_an_ensemble_by_hand(parameters, expected):
    """Members that score 1, 2 and 6."""
    got = scores({"name": "ensemble", "members": lengths(1.0, 2.0, 6.0), **parameters}, "")
    assert got.scores_B.item() == pytest.approx(expected, abs=1e-6)
    columns = {name: column.item() for name, column in got.columns.items()}
    assert columns == pytest.approx({"member_0": 1.0, "member_1": 2.0, "member_2": 6.0, "member_variance": 14 / 3})


def test_members_that_agree_are_one_reward():
    scores_KB = torch.tensor([[0.3, -2.0]]).expand(4, 2)
    for how in ("mean", "worst_case", "uncertainty_weighted"):
        assert combined(scores_KB, how, 0.5).tolist() == pytest.approx([0.3, -2.0])


def test_the_worst_member_is_chosen_for_each_response():
    """One member rewards length, the other the closeness to a length of 4."""
    members = [{"name": "length"}, {"name": "length", "target": 4}]
    got = scores({"name": "ensemble", "members": members}, "", "w3 w4", " ".join(["w3"] * 6)).scores_B
    assert got.tolist() == [min(1, -3), min(3, -1), min(7, -3)]


def test_an_ensemble_of_reward_models(open_stage, tmp_path):
    """Two models on disk; each member's column is what that model says alone."""
    for seed in (11, 12):
        tiny_world.save_reward_model(tmp_path / f"rm{seed}", seed=seed)
    inputs = {"reward_model": tmp_path / "rm11", "comparisons": tmp_path / "rm12"}
    _, ctx = open_stage("rl", {"reward": "words"}, inputs=inputs)
    members = [{"name": "reward_model", "stage": "reward_model"}, {"name": "reward_model", "stage": "comparisons"}]
    texts = rollout("w1 w2", "w3", "w1")
    got = component("reward", {"name": "ensemble", "members": members, "how": "mean"}).open(ctx)(texts)
    alone = [component("reward", member).open(ctx)(texts).scores_B for member in members]
    assert not torch.allclose(*alone)
    assert torch.equal(got.columns["member_0"], alone[0]) and torch.equal(got.columns["member_1"], alone[1])
    assert got.scores_B.tolist() == pytest.approx(((alone[0] + alone[1]) / 2).tolist())


def test_a_number_of_members_is_so_many_copies_of_a_stage():
    """The stage itself and copies with other seeds, as a list would name them."""
    three = component("reward", {"name": "ensemble", "members": 3})
    assert [member.stage for member in three.members] == ["reward_model", "reward_model@1", "reward_model@2"]
    assert [member.stage for member in component("reward", {"name": "ensemble", "members": 2, "stage": "sft"}).members] == [
        "sft",
        "sft@1",
    ]
    assert len(component("reward", "ensemble").members) == 5
    with pytest.raises(ValueError, match="at least 2"):
        component("reward", {"name": "ensemble", "members": 1})


def test_a_weighted_sum_logs_its_parts():
    value = {"name": "weighted_sum", "sources": [WORDS, {"name": "length"}], "weights": [2.0, -0.5]}
    got = scores(value, "w1 w1", "w2")
    assert got.scores_B.tolist() == [2 * 2 - 0.5 * 3, -2 - 0.5 * 2]
    assert {name: column.tolist() for name, column in got.columns.items()} == {
        "part_0_words": [2.0, -1.0],
        "part_1_length": [3.0, 2.0],
    }


def test_the_columns_of_a_run_say_what_each_part_did(run_stage):
    value = {"name": "weighted_sum", "sources": [WORDS, {"name": "length"}], "weights": [1.0, 0.25]}
    parameters = {"reward": value, "critic": "none", "advantage": "monte_carlo", "objective": ["policy_gradient"], "steps": 1,
                  "batch_size": 8, "response_length": 4}  # fmt: skip
    for row in run_stage("rl", parameters).rows():
        assert row["reward_proxy"] == pytest.approx(row["part_0_words"] + 0.25 * row["part_1_length"], abs=1e-6)


def test_clipping_bounds_what_comes_out():
    got = scores({"name": "clipped", "source": WORDS, "low": -1.0, "high": 2.0}, "w1 w1 w1", "w2 w2", "w1")
    assert got.scores_B.tolist() == [2.0, -1.0, 1.0]
    assert got.columns["unclipped"].tolist() == [3.0, -2.0, 1.0] and got.columns["good"].tolist() == [3.0, 0.0, 1.0]


def test_the_order_of_wrappers_matters():
    """Clip to 1, then 0.5 less per token over 2; or the penalty first. 'w1 w1 w1' has 4 tokens and score 3."""
    clip = {"name": "clipped", "low": -1.0, "high": 1.0}
    cost = {"name": "length_penalty", "coefficient": 0.5, "free": 2}
    assert scores({**cost, "source": {**clip, "source": WORDS}}, "w1 w1 w1").scores_B.item() == 0.0
    assert scores({**clip, "source": {**cost, "source": WORDS}}, "w1 w1 w1").scores_B.item() == 1.0


@pytest.mark.parametrize("n, expected", [(3, 0.0), (4, 0.0), (5, -0.5), (6, -1.0), (9, -1.0)])
def test_the_soft_overlong_punishment(n, expected):
    """L_max = 6 with a cache of 2: free up to 4 tokens, all of the punishment from 6 on (Yu et al. 2025, eq. 13)."""
    value = {"name": "length_penalty", "source": {"name": "length", "weight": 0.0}, "coefficient": 1 / 2, "free": 4, "cap": 1.0}
    assert scores(value, " ".join(["w3"] * (n - 1))).scores_B.item() == expected


def test_without_a_cap_the_penalty_goes_on():
    value = {"name": "length_penalty", "source": WORDS, "coefficient": 0.1}
    assert scores(value, " ".join(["w3"] * 19)).scores_B.item() == pytest.approx(-2.0)


@pytest.mark.parametrize("change, expected", [({"score": -1.0}, -1.0), ({"penalty": 0.5}, 1.5)])
def test_responses_without_eos(change, expected):
    value = {"name": "eos_penalty", "source": WORDS, **change}
    assert scores(value, "w1 w1").scores_B.item() == 2.0
    cut = scores(value, "w1 w1", ended=False)
    assert cut.scores_B.item() == expected and cut.columns["before_eos_penalty"].item() == 2.0


def test_running_moments_are_those_of_all_scores_so_far():
    rng = np.random.default_rng(0)
    batches = [torch.tensor(100 + rng.normal(size=n)) for n in (3, 1, 8)]
    moments = (0, 0.0, 0.0)
    for own in batches:
        moments = merged_moments(*moments, own)
    everything = torch.cat(batches).numpy()
    assert moments == pytest.approx((12, everything.mean(), 12 * everything.var()), rel=1e-12)


def test_whitening_keeps_the_mean():
    """First 1 and 3 (μ = 2, σ = 1, by its own moments), then 5 by the same ones, then 3 by those of 1, 3 and 5."""
    scorer = component("reward", {"name": "whitened", "source": {"name": "length", "weight": 2.0}}).open(None)
    batches = (rollout("", "w1 w1"), rollout("w1 w1 w1 w1"), rollout("w1 w1"))
    first, second, third = (scorer(batch).scores_B.tolist() for batch in batches)
    assert first == pytest.approx([(2 - 4) / 2 + 4, (6 - 4) / 2 + 4]) and np.mean(first) == pytest.approx(4)
    assert second == pytest.approx([(10 - 4) / 2 + 4])
    assert third == pytest.approx([(6 - 6) / math.sqrt(4 * 8 / 3) + 6], rel=1e-6)


@pytest.mark.parametrize("shift", [True, False])
def test_scores_are_scaled_by_what_came_before(shift):
    """First 1 and 3 (μ = 2, σ = 1, by its own moments), then 5 by the same ones, then by those of 1, 3 and 5."""
    scorer = component("reward", {"name": "scaled", "source": {"name": "length"}, "shift_mean": shift}).open(None)
    batches = (rollout("", "w1 w1"), rollout("w1 w1 w1 w1"), rollout("w1 w1"))
    first, second, third = (scorer(batch).scores_B.tolist() for batch in batches)
    mean = 1.0 if shift else 0.0
    assert first == pytest.approx([1 - 2 * mean, 3 - 2 * mean])
    assert second == pytest.approx([5 - 2 * mean])
    assert third == pytest.approx([(3 - 3 * mean) / math.sqrt(8 / 3)], rel=1e-6)


def test_a_reward_without_spread_is_not_divided_by_0():
    scorer = component("reward", {"name": "scaled", "source": {"name": "length"}, "floor": 0.5}).open(None)
    assert scorer(rollout("w1", "w2")).scores_B.tolist() == [0.0, 0.0]
    assert scorer(rollout("w1 w1")).scores_B.item() == pytest.approx(2.0)


def test_moments_survive_a_resume_however_deep_they_lie():
    """State through JSON into a fresh scorer; both then score alike, and not as one that starts anew."""
    scaled = {"name": "scaled", "source": {"name": "scaled", "source": {"name": "length"}, "shift_mean": False}}
    value = {"name": "weighted_sum", "sources": [WORDS, {"name": "clipped", "source": scaled}], "weights": [1.0, 1.0]}
    old, new, fresh = (component("reward", value).open(None) for _ in range(3))
    for batch in (rollout("", "w3 w3"), rollout("w3", "w3 w3 w3 w3 w3")):
        old(batch)
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    later = rollout("w3 w3 w3", "w4")
    expected = old(later).scores_B
    assert torch.equal(new(later).scores_B, expected) and not torch.allclose(fresh(later).scores_B, expected)
    assert new.state_dict() == old.state_dict()


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"pattern": r"w1 w2"}, [1.0, 1.0, 0.0]),
        ({"pattern": r"w1 w2", "whole": True}, [1.0, 0.0, 0.0]),
        ({"pattern": r"w1", "whole": True}, [0.0, 0.0, 0.0]),
        ({"pattern": r"^w3.*w2$", "matched": 2.0, "otherwise": -1.0}, [-1.0, 2.0, -1.0]),
        ({"pattern": r"^$"}, [0.0, 0.0, 1.0]),
    ],
    ids=str,
)
def test_a_regular_expression(parameters, expected):
    assert scores({"name": "regex", **parameters}, "w1 w2", "w3 w1 w2", "").scores_B.tolist() == expected


def test_a_dot_matches_a_line_break():
    two_lines = Rollout(**{**vars(rollout("w1 w2")), "responses": ("w1\nw2",)})
    assert component("reward", {"name": "regex", "pattern": "w1.w2"}).open(None)(two_lines).scores_B.tolist() == [1.0]


@pytest.mark.parametrize(
    "tokens, n, expected",
    [("aaaa", 1, 3 / 4), ("abab", 2, 1 / 3), ("abcd", 2, 0.0), ("ab", 3, 0.0), ("", 1, 0.0), ("aaaaa", 3, 2 / 3)],
)
def test_the_share_of_repeated_n_grams(tokens, n, expected):
    assert repeated_share(list(tokens), n) == pytest.approx(expected)


def test_repetition_counts_tokens_without_the_eos():
    value = {"name": "repetition", "n": 2, "weight": -3.0}
    assert scores(value, "w1 w2 w1 w2", "w1 w2 w3").scores_B.tolist() == pytest.approx([-1.0, 0.0])
    assert scores(value, "w1 w2 w1 w2", ended=False).scores_B.item() == pytest.approx(-1.0)


def test_an_exact_match_is_a_demonstration_of_the_prompt(open_stage):
    _, ctx = open_stage("rl", {"reward": "words"})
    shown = ctx.data.demonstrations("validation")[0]
    value = {"name": "exact_match"}
    given = [shown.completion, f"  {shown.completion.replace(' ', '   ')} ", shown.completion.upper(), "w11"]
    right = component("reward", value).open(ctx)
    as_text = Rollout(**{**vars(rollout(*["w1"] * 4, prompts=[shown.prompt] * 4)), "responses": tuple(given)})
    assert right(as_text).scores_B.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert component("reward", {**value, "ignore_case": True}).open(ctx)(as_text).scores_B.tolist() == [1.0, 1.0, 1.0, 0.0]
    with pytest.raises(DataError, match="no answer to 'w0 w0 w0 w0 w0'; add a demonstration"):
        right(rollout("w1", prompts=["w0 w0 w0 w0 w0"]))


def save_classifier(folder, architecture, labels):
    """A classifier with wide random weights and the tokenizer of the tiny world."""
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    shared = {"vocab_size": len(tiny_world.VOCABULARY), "initializer_range": 0.5, **names}
    if architecture == "bert":
        config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                            max_position_embeddings=32, **shared)  # fmt: skip
        model = BertForSequenceClassification(config)
    else:
        model = GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **shared))
    model.eval().save_pretrained(folder)
    tiny_world.tokenizer().save_pretrained(folder)
    return model


TEXTS = ("w1 w2 w3 w4 w5", "w7", "w2 w2", "w9 w8 w7")


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("output", ["logit", "log_prob", "prob"])
def test_a_classifier_from_a_folder(open_stage, tmp_path, architecture, output):
    """Against a forward pass of each text alone, without padding."""
    model = save_classifier(tmp_path / "classifier", architecture, ("bad", "fair", "good"))
    _, ctx = open_stage("rl", {"reward": "words"})
    value = {"name": "hub_classifier", "folder": "classifier", "label": "good", "output": output, "microbatch_size": 3}
    got = component("reward", value).open(ctx)(rollout(*TEXTS)).scores_B.tolist()
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([tiny_world.ids_of(text)])).logits[0].double() for text in TEXTS]
    shares = [(row.exp() / row.exp().sum())[2].item() for row in logits]
    expected = {"logit": [row[2].item() for row in logits], "prob": shares, "log_prob": [math.log(p) for p in shares]}
    assert got == pytest.approx(expected[output], rel=1e-4)


def test_a_classifier_with_one_label_is_a_reward_model(open_stage, tmp_path):
    model = save_classifier(tmp_path / "rm", "gpt2", ("score",))
    _, ctx = open_stage("rl", {"reward": "words"})
    value = {"name": "hub_classifier", "folder": "rm", "include_prompt": True}
    got = component("reward", value).open(ctx)(rollout("w1", "w2 w3", prompts=["w5 w6", "w7"])).scores_B.tolist()
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([tiny_world.ids_of(text)])).logits.item() for text in ("w5 w6 w1", "w7 w2 w3")]
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "labels, change, said",
    [
        (("bad", "good"), {}, "one of bad, good"),
        (("bad", "good"), {"label": "Good"}, "not 'Good'"),
        (("score",), {"output": "prob"}, "set output: logit"),
    ],
)
def test_a_classifier_must_be_asked_for_what_it_has(open_stage, tmp_path, labels, change, said):
    save_classifier(tmp_path / "classifier", "gpt2", labels)
    _, ctx = open_stage("rl", {"reward": "words"})
    with pytest.raises(ModelError, match=said):
        component("reward", {"name": "hub_classifier", "folder": "classifier", **change}).open(ctx)


def test_a_causal_model_is_no_classifier(open_stage, tmp_path):
    """transformers would draw the missing head at random, and only warn."""
    tiny_world.save_policy(tmp_path / "policy")
    _, ctx = open_stage("rl", {"reward": "words"})
    with pytest.raises(ModelError, match="do not fit the architecture"):
        component("reward", {"name": "hub_classifier", "folder": "policy"}).open(ctx)


def test_a_changed_classifier_has_another_fingerprint(tmp_path):
    value = component("reward", {"name": "hub_classifier", "folder": "classifier"})
    save_classifier(tmp_path / "classifier", "gpt2", ("score",))
    before = value.fingerprint(tmp_path)
    (tmp_path / "classifier" / "config.json").write_text("{}")
    assert before != value.fingerprint(tmp_path) and "model.safetensors" in before


def test_a_broken_part_is_named():
    with pytest.raises(RewardError, match="reward 'root' returned nan"):
        scores({"name": "ensemble", "members": [{"name": "root"}, WORDS]}, "w2")


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"name": "ensemble", "members": [WORDS]}, "at least 2"),
        ({"name": "ensemble", "members": [WORDS, WORDS], "how": "median"}, "worst_case"),
        ({"name": "weighted_sum", "sources": [WORDS], "weights": [1.0, 2.0]}, "one weight for each"),
        ({"name": "clipped", "source": WORDS, "low": 1.0, "high": 1.0}, "low < high"),
        ({"name": "scaled", "source": WORDS, "floor": 0.0}, "greater than 0"),
        ({"name": "length_penalty", "source": WORDS, "coefficient": -1.0}, "greater than or equal to 0"),
        ({"name": "eos_penalty", "source": WORDS}, "score or penalty"),
        ({"name": "eos_penalty", "source": WORDS, "score": -1.0, "penalty": 1.0}, "not both"),
        ({"name": "regex", "pattern": "("}, "not a regular expression"),
        ({"name": "regex", "pattern": ""}, "at least 1"),
        ({"name": "repetition", "n": 0}, "greater than or equal to 1"),
        ({"name": "hub_classifier"}, "either `folder` or `hub`"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        component("reward", wrong)
