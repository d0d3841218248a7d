"""The conventions that other systems hide, each alternative in closed form: score, whitening, order, temperature."""

import pytest
import torch
from pydantic import ValidationError
from tiny_world import component

from rlhf_lab.contracts import AdvantageInputs, Rollout
from rlhf_lab.rl import masked, rewards

LENGTH = 4


def rollout(lengths, width):
    """Responses of the given lengths, all but the longest possible of them ended."""
    mask_BT = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids_BT = mask_BT.long()
    n = len(lengths)
    ended_B = torch.tensor([length < LENGTH for length in lengths])
    return Rollout(
        ("x",) * n, ("y",) * n, ids_BT[:, :1], mask_BT[:, :1], ids_BT, mask_BT, ended_B, torch.arange(n), ids_BT.float()
    )


# Where the score is

PLACES = {"eos": [[1, 1, 0], [1, 1, 1]], "post_eos": [[1, 1, 1, 0], [1, 1, 1, 1]], "last": [[1, 1, 1, 1], [1, 1, 1, 1]]}
SCORED = {"eos": (1, 2), "post_eos": (2, 3), "last": (3, 3)}


@pytest.mark.parametrize("score_at", PLACES)
def test_places_and_score(score_at):
    """Responses of 2 and 3 tokens, of at most 4: the score 5 and 7, the KL 1 at each token with β = 0.1, by hand."""
    states = rewards.with_states(rollout([2, 3], 3), score_at, LENGTH)
    assert states.places_BT.long().tolist() == PLACES[score_at]
    kl_BT = torch.ones(states.mask_BT.shape)
    rewards_BT = rewards.token_rewards(torch.tensor([5.0, 7.0]), kl_BT, states.mask_BT, 0.1, states.states_BT)
    for row, length, score, place in zip(rewards_BT.tolist(), (2, 3), (5.0, 7.0), SCORED[score_at], strict=True):
        expected = [-0.1 if t < length else 0.0 for t in range(len(row))]
        expected[place] += score
        assert row == pytest.approx(expected)


@pytest.mark.parametrize("score_at", PLACES)
def test_each_place_takes_a_factor_lambda_off_the_score(score_at):
    """With V = 0 and no KL, GAE gives token t the score times λ to the distance: 2 tokens, score 5, λ = 0.5."""
    states = rewards.with_states(rollout([2, 3], 3), score_at, LENGTH)
    nothing_BT = torch.zeros(states.mask_BT.shape)
    rewards_BT = rewards.token_rewards(torch.tensor([5.0, 7.0]), nothing_BT, states.mask_BT, 0.0, states.states_BT)
    inputs = AdvantageInputs(
        rewards_BT, states.places_BT, torch.tensor([5.0, 7.0]), states.group_B, states.ended_B, values_BT=nothing_BT
    )
    advantages_BT = component("advantage", {"name": "gae", "lam": 0.5}).estimate(inputs, {}).advantages_BT
    place = SCORED[score_at][0]
    assert advantages_BT[0, :2].tolist() == pytest.approx([5 * 0.5**place, 5 * 0.5 ** (place - 1)])


def test_the_last_column_does_not_depend_on_the_batch():
    """Alone, the response of 2 tokens has as many places as beside longer ones; a full one has no place after it."""
    alone, beside = (rewards.with_states(rollout(lengths, max(lengths)), "last", LENGTH) for lengths in ([2], [2, 4]))
    assert alone.states_BT[0].tolist() == beside.states_BT[0].tolist() == [True] * LENGTH
    assert alone.mask_BT[0].tolist() == beside.mask_BT[0].tolist() == [True, True, False, False]


def test_values_are_held_after_the_end():
    """Nothing is said there, so nothing is known that was not: V_t = V_min(t, L). Also with a leading dimension of heads."""
    states = rewards.with_states(rollout([2, 4], 4), "last", LENGTH)
    values_BT = torch.tensor([[1.0, 2.0, 3.0, 99.0], [4.0, 5.0, 6.0, 7.0]])
    expected = torch.tensor([[1.0, 2.0, 3.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    assert torch.equal(rewards.held(values_BT, states), expected)
    assert torch.equal(rewards.held(torch.stack([values_BT, -values_BT]), states), torch.stack([expected, -expected]))
    plain = rollout([2, 4], 4)
    assert rewards.held(values_BT, plain) is values_BT


@pytest.mark.parametrize("score_at", PLACES)
def test_a_run_with_each_place(run_stage, score_at):
    """What is paid in all is the same wherever it is paid; step 0 is on one policy, so its return is its score."""
    done = run_stage("rl", SMALL | {"score_at": score_at})
    first = done.rows("train")[0]
    assert first["return"] == pytest.approx(first["score"], abs=1e-5)
    assert len(done.rows("train")) == 2


SMALL = {
    "steps": 2, "batch_size": 8, "minibatches": 2, "inner_epochs": 1, "response_length": 5, "reward": "words",
    "critic": {"name": "value_model", "init": "reward_model"}, "evaluation": {"prompts": 4, "every": 10, "log_samples": 0},
}  # fmt: skip


def test_values_of_a_run_do_not_know_the_padding(run_stage):
    """With the score in the last column, the micro-batch decides how far a response is padded, and changes nothing."""
    one, other = (
        run_stage("rl", SMALL | {"score_at": "last", "microbatch_size": size}).rows("train")[-1] for size in (None, 1)
    )
    for column in ("explained_variance", "loss_value_clip", "grad_norm_critic", "kl"):
        assert one[column] == pytest.approx(other[column], abs=2e-5), column


# What is whitened


@pytest.mark.parametrize("shift_mean, ddof", [(True, 0), (True, 1), (False, 0), (False, 1)])
def test_whitening(shift_mean, ddof):
    """1, 2, 6 and a masked NaN: mean 3, squares 4 + 1 + 9 = 14 over 3 or over 2."""
    x, mask = torch.tensor([[1.0, 2.0], [6.0, float("nan")]]), torch.tensor([[True, True], [True, False]])
    deviation = (14 / (3 - ddof)) ** 0.5
    expected = [(value - 3) / deviation + (0 if shift_mean else 3) for value in (1, 2, 6)]
    assert masked.whiten(x, mask, shift_mean=shift_mean, ddof=ddof)[mask].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("choice", [{"whiten_rewards": True, "rewards_shift_mean": True}, {"advantages_shift_mean": False}])
def test_the_mean_is_shifted_only_where_it_is_asked_for(run_stage, choice):
    """Whitened rewards with mean 0 sum to 0 over the batch; with their mean, to the mean times the number of tokens."""
    plain = run_stage("rl", SMALL | {key: True for key in choice if key == "whiten_rewards"}).rows("train")
    other = run_stage("rl", SMALL | choice).rows("train")
    if "whiten_rewards" in choice:
        assert other[0]["return"] == pytest.approx(0, abs=1e-5) and abs(plain[0]["return"]) > 1e-3
    assert other[0]["loss_ppo_clip"] != pytest.approx(plain[0]["loss_ppo_clip"], abs=1e-4)


# Baseline and KL


def test_a_baseline_before_the_kl():
    """Scores 1 and 4, KLs (1, 2) and (3, 0), β = 0.1: leave-one-out of the scores, then each token's KL to go."""
    from rlhf_lab_plugins.advantage.rloo import RLOO

    mask_BT = torch.ones(2, 2, dtype=torch.bool)
    scores_B, kl_BT = torch.tensor([1.0, 4.0]), torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    group_B, ended_B = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.bool)

    def advantages(beta):
        token_rewards = rewards.token_rewards(scores_B, kl_BT, mask_BT, beta)
        return RLOO().estimate(AdvantageInputs(token_rewards, mask_BT, scores_B, group_B, ended_B), {}).advantages_BT

    after = advantages(0.1)  # returns 1 − 0.3 and 4 − 0.3
    assert after.tolist() == [pytest.approx([-3.0, -3.0]), pytest.approx([3.0, 3.0])]
    before = advantages(0.0) + rewards.to_go(-0.1 * kl_BT, mask_BT)
    assert before.tolist() == [pytest.approx([-3.3, -3.2]), pytest.approx([2.7, 3.0])]


GROUPS = {
    "critic": "none",
    "advantage": "rloo",
    "samples_per_prompt": 2,
    "objective": ["ppo_clip"],
    "whiten_advantages": "none",
}


def test_the_order_of_baseline_and_kl_in_a_run(run_stage):
    """At step 0 the KL is 0 and the order nothing; at step 1 it shows."""
    rows = [
        run_stage("rl", SMALL | GROUPS | {"baseline": order, "learning_rate": 0.02}).rows("train")
        for order in ("after_kl", "before_kl")
    ]
    assert rows[0][0]["loss_ppo_clip"] == pytest.approx(rows[1][0]["loss_ppo_clip"], abs=1e-6)
    assert rows[0][1]["loss_ppo_clip"] != pytest.approx(rows[1][1]["loss_ppo_clip"], abs=1e-6)


def test_clip_and_scale_do_not_commute():
    """The order of reward shaping is the nesting of the sources: 10 clipped to 4 and halved is 2, halved and clipped is 4."""
    double = {"name": "weighted_sum", "sources": ["words"], "weights": [0.5]}
    clip = {"low": -4.0, "high": 4.0}
    text = " ".join(["w1"] * 10)
    import tiny_world

    asked = tiny_world.encoder().encode(["w0"], [text])

    def score(source):
        found = component("reward", source).open(None)(asked)
        return rewards.checked("r", found, asked).scores_B.item()

    clipped_first = {"name": "weighted_sum", "sources": [{"name": "clipped", "source": "words", **clip}], "weights": [0.5]}
    assert score(clipped_first) == 2.0
    assert score({"name": "clipped", "source": double, **clip}) == 4.0


# Temperature in log-probs


def test_log_probs_at_another_temperature_than_the_sampler(run_stage):
    """At τ = 0.5 the sampler's log-probs are those of `sampling`; of `one` they are not, and the gap says so."""
    rows = {
        choice: run_stage("rl", SMALL | {"temperature": 0.5, "logprob_temperature": choice}).rows("train")[0]
        for choice in ("sampling", "one")
    }
    assert rows["sampling"]["sampler_gap"] < 1e-5 and rows["one"]["sampler_gap"] > 0.05
    assert rows["one"]["kl"] == pytest.approx(0, abs=1e-6) and rows["one"]["entropy"] > rows["sampling"]["entropy"]


# What does not fit together


@pytest.mark.parametrize(
    "choice, said",
    [
        ({"advantages_shift_mean": False, "whiten_advantages": "none"}, "advantages_shift_mean"),
        ({"rewards_shift_mean": True}, "rewards_shift_mean"),
        ({"baseline": "before_kl"}, "before_kl"),
        (GROUPS | {"baseline": "before_kl", "whiten_rewards": True}, "before_kl"),
    ],
)
def test_conventions_that_would_change_nothing_are_refused(open_stage, choice, said):
    with pytest.raises(ValidationError, match=said):
        open_stage("rl", SMALL | choice)
