"""TRL 1.12.0's experimental PPO, end to end beside our RL stage: 3 rollouts, 12 optimiser steps, the same numbers.

Two systems in fp32 that sum in another order, one of them reading log-probs off a key-value cache, differ by about 1e-6 in
what they compute from the same weights, and Adam hands that on to the next weights. 1e-5 is ten times that, and a
fiftieth or less of what any one convention changes: `test_each_convention_matters` measures it.
"""

import pytest

pytest.importorskip("trl", reason="TRL is not installed; `make interop` makes an environment that has it")

import tiny_world
import torch
import trl_ppo
from trl_ppo import BATCH, EPOCHS, LENGTH, MINIBATCHES, STEPS, run_ours, run_trl

from rlhf_lab_plugins.advantage.gae import gae

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-5
SEED_ALL_END = 3  # of TRL's sampling: a batch in which every response ends well before its longest allowed length
AS_TRL = {"score_at": "post_eos"}


@pytest.fixture(scope="module")
def trl_world(tmp_path_factory):
    """Folders of policy, reward model and critic."""
    folder = tmp_path_factory.mktemp("trl_world")
    trl_ppo.save_world(folder)
    return folder


@pytest.fixture
def both(trl_world, open_stage, tmp_path, monkeypatch):
    """`both(trl={…PPOConfig…}, ours={…rl…})` runs TRL, then our stage on its tokens."""

    def run(trl=None, ours=None):
        theirs = run_trl(trl_world, tmp_path / "trl", monkeypatch, **(trl or {}))
        return theirs, run_ours(open_stage, trl_world, theirs, monkeypatch, **{**(ours or {})})

    return run


@pytest.fixture(scope="module")
def plain_trl(trl_world, tmp_path_factory):
    """TRL's run with the conventions as they stand in trl_ppo.py."""
    with pytest.MonkeyPatch.context() as patch:
        return run_trl(trl_world, tmp_path_factory.mktemp("trl"), patch)


def furthest(theirs, ours):
    """The largest absolute difference over the entries of two mappings of tensors."""
    assert theirs.keys() == ours.keys()
    return max((theirs[name] - ours[name]).abs().max().item() for name in theirs)


def distances(theirs, ours):
    """Largest absolute differences over the whole run, of each thing that both systems computed.

    Gradients in units of their largest entry where that is above 1: fp32 sums are as exact as their largest terms.
    """
    found = {}
    for a, b in zip(theirs.rollouts, ours.rollouts, strict=True):
        for name in ("scores", "rewards", "values", "returns", "white"):
            assert a[name].shape == b[name].shape
            found[name] = max(found.get(name, 0.0), (a[name] - b[name]).abs().max().item())
        for name in ("logprobs", "ref_logprobs"):
            found[name] = max(found.get(name, 0.0), (a[name] - b[name])[b["mask"]].abs().max().item())
    for a, b in zip(theirs.minibatches, ours.minibatches, strict=True):
        for name in ("pg_loss", "vf_loss"):
            found[name] = max(found.get(name, 0.0), abs(a[name] - b[name]))
        largest = max(1.0, max(gradient.abs().max().item() for gradient in b["gradients"].values()))
        found["gradients"] = max(found.get("gradients", 0.0), furthest(a["gradients"], b["gradients"]) / largest)
    return found | {"weights": furthest(theirs.weights, ours.weights)}


def assert_agree(theirs, ours, tolerance=TOLERANCE):
    """All of it: scores, token rewards, values, returns, whitened advantages, losses, gradients, weights."""
    far = {name: distance for name, distance in distances(theirs, ours).items() if not distance < tolerance}
    assert not far, f"further apart than {tolerance}: {far}"


def test_something_was_compared(plain_trl):
    """The run is one in which a wrong convention would show: the KL is there, EOS comes early, late and never."""
    recorded = plain_trl.rollouts
    assert len(recorded) == STEPS and len(plain_trl.minibatches) == STEPS * EPOCHS * MINIBATCHES
    lengths = {n + 1 for one in recorded for n in one["sequence_lengths"].tolist()}
    assert min(lengths) < 3 and max(lengths) == LENGTH
    assert all(one["responses"].shape == (BATCH, LENGTH) for one in recorded)
    ended = torch.cat([one["contain_eos_token"] for one in recorded])
    assert 0.2 < ended.float().mean() < 0.9
    assert plain_trl.logs[-1]["objective/kl"] > 0.05
    assert max(log["policy/clipfrac_avg"] for log in plain_trl.logs) > 0.01
    assert max(log["val/clipfrac_avg"] for log in plain_trl.logs) > 0.01
    assert all(torch.equal(trl_ppo.rollout_of(one).mask_BT, ~one["padding_mask"]) for one in recorded)


@pytest.mark.parametrize(
    "trl, ours",
    [
        ({}, {}),
        ({"kl_estimator": "k3"}, {"kl_estimator": "k3"}),
        ({"whiten_rewards": True}, {"whiten_rewards": True}),
        ({"gamma": 0.9, "lam": 0.8}, {"advantage": {"name": "gae", "gamma": 0.9, "lam": 0.8}}),
        ({"num_mini_batches": 1, "num_ppo_epochs": 1}, {"minibatches": 1, "inner_epochs": 1}),
        ({}, {"microbatch_size": 3}),
    ],
    ids=["defaults", "k3", "whiten_rewards", "gamma_lambda", "one_step", "our_microbatches"],
)
def test_trl_and_we_agree(both, trl, ours):
    """Scores, token rewards, values, returns, whitened advantages, losses, gradients and weights, to 1e-5 throughout."""
    assert_agree(*both(trl, {**AS_TRL, **ours}))


def test_without_an_end_of_text_no_field_is_missing(both):
    """Where nothing stops a response, score positions coincide; TRL and we agree to 1e-5 with fields that always were here."""
    theirs, ours = both({"stop_token": None, "missing_eos_penalty": None}, {"stops": False, "no_eos_penalty": 0.0})
    assert_agree(theirs, ours)
    assert all(not one["padding_mask"].any() for one in theirs.rollouts)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("rewards", {"score_at": "eos"}),
        ("rewards", {"kl_estimator": "k2"}),
        ("rewards", {"kl": "none"}),
        ("scores", {"no_eos_penalty": 0.0}),
        ("white", {"whiten_ddof": 0}),
        ("white", {"whiten_advantages": "minibatch"}),
        ("white", {"advantage": {"name": "gae", "gamma": 1.0, "lam": 1.0}}),
        ("logprobs", {"temperature": 1.0}),
        ("gradients", {"aggregation": "sequence_mean"}),
        ("gradients", {"objective": ["ppo_clip", "value_plain"]}),
        ("weights", {"max_grad_norm": 0.1}),
        ("weights", {"adam_eps": 1e-8}),
        ("weights", {"schedule": "constant"}),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "-".join(value),
)
def test_each_convention_matters(plain_trl, trl_world, open_stage, monkeypatch, name, changes):
    """With one convention changed the two systems are at least 50 tolerances apart, in what that convention is about."""
    ours = run_ours(open_stage, trl_world, plain_trl, monkeypatch, **{**AS_TRL, **changes})
    assert distances(plain_trl, ours)[name] > 50 * TOLERANCE


# Where the score is: after the EOS in TRL


def test_the_score_lands_one_place_after_the_eos(plain_trl, trl_world, open_stage, monkeypatch):
    """TRL's score is at the first padding, where the KL is 0; a response that fills the width has it at its last token.

    Compared: the token rewards of the first rollout. They have the same sum for each response, and elsewhere than at those
    two places they agree (1e-5, as above). At the two places they differ by the whole score.
    """
    ours = run_ours(open_stage, trl_world, plain_trl, monkeypatch).rollouts[0]
    theirs = plain_trl.rollouts[0]
    assert torch.allclose(theirs["rewards"].sum(1), ours["rewards"].sum(1), atol=TOLERANCE)
    length_B = ours["mask"].sum(1)
    for i, length in enumerate(length_B.tolist()):
        moved = torch.zeros(LENGTH)
        if length < LENGTH:
            moved[length], moved[length - 1] = ours["scores"][i], -ours["scores"][i]
        assert torch.allclose(theirs["rewards"][i] - ours["rewards"][i], moved, atol=TOLERANCE)


def test_what_the_later_score_changes(plain_trl, trl_world, open_stage, monkeypatch):
    """Â_TRL − Â_ours = (1 − λ)·λ^(L−1−t)·(V(x, y) − score) for a response of L tokens that ended, at γ = 1.

    One more state stands between the last token and the score. By telescoping: its own δ is score − V(x, y), which
    reaches token t with λ^(L−t), while the δ of the EOS gains V(x, y) − score with λ^(L−1−t). So at λ = 1, or with a critic
    that knows the score, the place changes nothing; at λ = 0.95 it moves the unwhitened advantage by up to
    5 % of the critic's error. Witness: that closed form on TRL's own values; tolerance 1e-5, fp32 sums of ≤ 6 terms of order 1.
    """
    theirs = plain_trl.rollouts[0]
    ours = run_ours(open_stage, trl_world, plain_trl, monkeypatch).rollouts[0]
    raw_BT = gae(ours["rewards"], ours["values"], ours["mask"], 1.0, 0.95)
    moved = []
    for i, length in enumerate(ours["mask"].sum(1).tolist()):
        for t in range(length):
            error = (theirs["values"][i, length] - theirs["scores"][i]).item() if length < LENGTH else 0.0
            moved.append(0.05 * 0.95 ** (length - 1 - t) * error)
            assert (theirs["advantages"] - raw_BT)[i, t].item() == pytest.approx(moved[-1], abs=TOLERANCE)
    assert max(map(abs, moved)) > 0.02


def test_trl_moves_the_score_of_the_longest_response(both):
    """TRL's width is the longest response of the batch: where all end early, only the longest has its score at the EOS.

    So its reward for a response depends on its companions. Ours depends on `response_length` alone: post_eos is after the EOS
    for all that are shorter. They agree for all but the longest (1e-5), whose score is one place apart.
    """
    few = {"per_device_train_batch_size": 4, "total_episodes": 4, "seed": SEED_ALL_END}
    once = {"num_ppo_epochs": 1, "response_length": 24}
    theirs, ours = both(few | once, {**AS_TRL, "batch_size": 4, "steps": 1, "inner_epochs": 1, "response_length": 24})
    (a,), (b,) = theirs.rollouts, ours.rollouts
    width = a["responses"].shape[1]
    longest = b["mask"].sum(1) == width
    assert a["contain_eos_token"].all() and width < 24 and 0 < longest.sum() < 4
    wide = torch.nn.functional.pad(a["rewards"], (0, 1))
    assert torch.allclose(wide[~longest], b["rewards"][~longest], atol=TOLERANCE)
    assert torch.allclose(wide[longest].sum(1), b["rewards"][longest].sum(1), atol=TOLERANCE)
    assert torch.allclose(b["rewards"][longest, width], a["scores"][longest], atol=TOLERANCE)


# Where TRL is wrong, or not what it says


def test_trl_ignores_max_grad_norm(trl_world, plain_trl, tmp_path, monkeypatch):
    """PPOConfig.max_grad_norm (1.0 by default) is read by nobody (trl#5645): a limit of 1e-4 changes no weight, bit for bit."""
    clipped = run_trl(trl_world, tmp_path, monkeypatch, max_grad_norm=1e-4)
    assert furthest(clipped.weights, plain_trl.weights) == 0


def test_trl_ignores_num_mini_batches_under_accumulation(trl_world, tmp_path, monkeypatch):
    """With gradient accumulation TRL makes one optimiser step per epoch, whatever num_mini_batches says (trl#5645)."""
    halves = {"per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2, "num_mini_batches": 2}
    record = run_trl(trl_world, tmp_path, monkeypatch, **halves)
    stepped = [one for one in record.minibatches if "gradients" in one]
    assert len(record.minibatches) == STEPS * EPOCHS * 2 and len(stepped) == STEPS * EPOCHS


def test_trl_weighs_micro_batches_alike(both):
    """TRL's loss is the mean of the micro-batches' token means, not the token mean of the minibatch (FACTS, trl#3021).

    Compared: the first gradient. With one micro-batch TRL and we agree to 1e-5; with two, whose numbers of tokens differ,
    TRL's gradient moves and ours, which does not depend on the micro-batches, stays (to 1e-6: sums in another order).
    """
    once = {"num_mini_batches": 1, "num_ppo_epochs": 1, "total_episodes": BATCH}
    ours = {**AS_TRL, "minibatches": 1, "inner_epochs": 1, "steps": 1}
    whole, ours_whole = both(once, ours)
    halves = {"per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2}
    half, ours_half = both(once | halves, {**ours, "microbatch_size": BATCH // 2})
    assert torch.equal(whole.rollouts[0]["responses"], half.rollouts[0]["responses"])
    first = [record.minibatches[-1]["gradients"] for record in (whole, half, ours_whole, ours_half)]
    assert furthest(first[0], first[2]) < TOLERANCE and furthest(first[2], first[3]) < 1e-6
    assert furthest(first[1], first[0]) > 100 * TOLERANCE


def test_trl_dilutes_its_metrics_with_padding(both):
    """TRL's approxkl and ratio are means over all places, ours over response tokens (trl#6809).

    Padding has log ratio 0: so TRL's approxkl is ours times the share of tokens, and so is ratio − 1. One minibatch per
    epoch makes the share one number. The clip fraction is masked in both. To 1e-5, as above.
    """
    theirs, ours = both({"num_mini_batches": 1}, {**AS_TRL, "minibatches": 1})
    for recorded, log, metrics in zip(theirs.rollouts, theirs.logs, ours.logs, strict=True):
        share = (~recorded["padding_mask"]).float().mean().item()
        assert share < 0.9
        assert log["policy/approxkl_avg"] == pytest.approx(share * metrics["approx_kl"], abs=TOLERANCE)
        assert log["val/ratio"] - 1 == pytest.approx(share * (metrics["ratio"] - 1), abs=TOLERANCE)
        assert log["policy/clipfrac_avg"] == pytest.approx(metrics["clip_fraction"], abs=TOLERANCE)


def test_a_sampled_padding_token_ends_a_response_for_trl():
    """TRL takes lengths from the first padding token; a policy that samples one loses all that follows, its EOS too.

    Compared: where each puts the end of the response [5, PAD, 6, EOS]: TRL after 1 token, we after 4 (FACTS: masks come
    from lengths, never from token equality).
    """
    from trl.experimental.utils import first_true_indices

    response = torch.tensor([[5, tiny_world.PAD, 6, tiny_world.EOS]])
    recorded = {"queries": torch.tensor([[7]]), "responses": response, "logprobs": torch.zeros(1, 4)}
    assert first_true_indices(response == tiny_world.PAD).tolist() == [1]
    assert trl_ppo.rollout_of(recorded).mask_BT.sum(1).tolist() == [4]


def test_trl_logs_the_kl_and_score_that_we_log(plain_trl, trl_world, open_stage, monkeypatch):
    """objective/kl is the batch mean of Σ_t (log π − log ref), nats per sequence: what our controllers see. To 1e-5."""
    ours = run_ours(open_stage, trl_world, plain_trl, monkeypatch)
    first = ours.rollouts[0]
    kl_B = (first["logprobs"] - first["ref_logprobs"]).masked_fill(~first["mask"], 0.0).sum(1)
    assert plain_trl.logs[0]["objective/kl"] == pytest.approx(kl_B.mean().item(), abs=TOLERANCE)
    assert plain_trl.logs[0]["objective/scores"] == pytest.approx(first["scores"].mean().item(), abs=TOLERANCE)
    assert plain_trl.logs[0]["objective/rlhf_reward"] == pytest.approx(first["rewards"].sum(1).mean().item(), abs=TOLERANCE)
