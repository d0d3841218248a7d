"""Single formulas of TRL, torchrl, verl and OpenRLHF beside ours, on random numbers with ragged masks.

All in float64, where two right implementations of one formula agree to about 1e-15. Tolerance 1e-8, because verl adds 1e-8 to
the number of tokens (54 of them here), unless a test says otherwise and why. Any other convention (ddof, mask, sign,
aggregation) is off by 1e-3 or more on these numbers.
"""

import math
from types import SimpleNamespace

import pytest

pytest.importorskip("trl", reason="TRL is not installed; `make interop` makes an environment that has it")

import torch
from foreign import definitions, method

from rlhf_lab.contracts import AdvantageInputs, Minibatch, PolicyOutput
from rlhf_lab.rl import aggregation, masked
from rlhf_lab.rl.kl import ESTIMATORS
from rlhf_lab_plugins.advantage.dr_grpo import DrGRPO
from rlhf_lab_plugins.advantage.gae import GAE, gae
from rlhf_lab_plugins.advantage.grpo import GRPO
from rlhf_lab_plugins.advantage.opo import OPO
from rlhf_lab_plugins.advantage.pass_at_k import PassAtK
from rlhf_lab_plugins.advantage.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from rlhf_lab_plugins.advantage.rloo import RLOO
from rlhf_lab_plugins.kl_controller.adaptive import Adaptive
from rlhf_lab_plugins.objective.cispo import CISPO
from rlhf_lab_plugins.objective.clip_higher import ClipHigher
from rlhf_lab_plugins.objective.dual_clip import DualClip
from rlhf_lab_plugins.objective.gspo import GSPO
from rlhf_lab_plugins.objective.ppo_clip import PPOClip
from rlhf_lab_plugins.objective.value_clip import ValueClip
from rlhf_lab_plugins.objective.value_plain import ValuePlain
from rlhf_lab_plugins.reward_loss.kwise import Pairwise
from rlhf_lab_plugins.reward_loss.margin import Margin

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

CLOSE = {"atol": 1e-8, "rtol": 0}
B, T, G = 12, 7, 4
LENGTHS = torch.tensor([7, 1, 4, 2, 7, 3, 5, 6, 1, 7, 2, 4])
MASK = torch.arange(T) < LENGTHS[:, None]
GROUPS = torch.arange(B) // G


def numbers(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs():
    """Token rewards and values, zero where masked."""
    rewards_BT, values_BT = (numbers(seed, B, T).masked_fill(~MASK, 0.0) for seed in (1, 2))
    return AdvantageInputs(rewards_BT, MASK, rewards_BT.sum(1), GROUPS, torch.ones(B, dtype=torch.bool), values_BT)


def close(ours, theirs):
    """Equal at the response tokens."""
    return torch.allclose(ours[MASK], theirs[MASK], **CLOSE)


# The functions of others


@pytest.fixture(scope="module")
def trl_ppo_trainer():
    from trl.experimental.ppo import ppo_trainer

    return ppo_trainer


@pytest.fixture(scope="module")
def old_trl():
    core = definitions("trl-0.11.4", "trl/core.py", "masked_mean", "masked_var", "masked_whiten")
    controllers = definitions("trl-0.11.4", "trl/trainer/utils.py", "AdaptiveKLController")
    return SimpleNamespace(**vars(core), **vars(controllers))


@pytest.fixture(scope="module")
def verl():
    statistics = definitions(
        "verl-0.9.1",
        "verl/utils/torch_functional.py",
        *("masked_sum", "masked_mean", "masked_var", "masked_whiten", "clip_by_value"),
    )

    class ActorConfig(SimpleNamespace):
        """verl's settings, of which its loss functions read attributes and `get`."""

        clip_ratio, clip_ratio_low, clip_ratio_high, global_batch_info = 0.2, None, None, {}

        def get(self, name, default=None):
            return getattr(self, name, default)

    core = definitions(
        "verl-0.9.1",
        "verl/trainer/ppo/core_algos.py",
        "AdaptiveKLController",
        "compute_gae_advantage_return",
        "compute_grpo_outcome_advantage",
        "compute_grpo_passk_outcome_advantage",
        "compute_rloo_outcome_advantage",
        "compute_opo_outcome_advantage",
        "compute_reinforce_plus_plus_outcome_advantage",
        "compute_reinforce_plus_plus_baseline_outcome_advantage",
        "agg_loss",
        "compute_policy_loss_vanilla",
        "compute_policy_loss_cispo",
        "compute_policy_loss_gspo",
        "compute_value_loss",
        "kl_penalty",
        "kl_penalty_forward",
        verl_F=statistics,
        ActorConfig=ActorConfig,
        AlgoConfig=type("AlgoConfig", (), {}),
    )
    return SimpleNamespace(**vars(core), **vars(statistics), ActorConfig=ActorConfig)


@pytest.fixture(scope="module")
def openrlhf():
    mean = definitions(
        "openrlhf-0.11.2", "openrlhf/models/utils.py", "masked_mean", "compute_approx_kl", KL_IS_WEIGHT_CLIP=10.0
    )
    losses = definitions(
        "openrlhf-0.11.2",
        "openrlhf/models/loss.py",
        *("aggregate_loss", "PolicyLoss", "ValueLoss", "PairWiseLoss"),
        masked_mean=mean.masked_mean,
        Optional=__import__("typing").Optional,
    )
    controllers = definitions("openrlhf-0.11.2", "openrlhf/trainer/ppo_utils/kl_controller.py", "AdaptiveKLController")
    return SimpleNamespace(**vars(mean), **vars(losses), **vars(controllers))


# Whitening


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("system", ["trl_ppo_trainer", "old_trl", "verl"])
def test_whitening_with_the_unbiased_variance(request, system, shift_mean):
    """TRL (0.11.4 and 1.12.0) and verl divide by n − 1: `ddof=1`. With ddof 0 the numbers differ by 1 % here."""
    theirs = request.getfixturevalue(system).masked_whiten(numbers(1, B, T), MASK.double(), shift_mean=shift_mean)
    x_BT = numbers(1, B, T)
    assert close(masked.whiten(x_BT, MASK, shift_mean=shift_mean, ddof=1), theirs)
    assert (masked.whiten(x_BT, MASK, shift_mean=shift_mean, ddof=0) - theirs)[MASK].abs().max() > 1e-3


@pytest.mark.parametrize("system", ["trl_ppo_trainer", "old_trl", "verl"])
def test_masked_means(request, system):
    theirs = request.getfixturevalue(system).masked_mean(numbers(1, B, T), MASK.double())
    assert masked.masked_mean(numbers(1, B, T), MASK).item() == pytest.approx(theirs.item(), abs=1e-8)


def test_a_masked_nan_is_contagious_in_trl(trl_ppo_trainer, old_trl, verl):
    """NaN · 0 = NaN: TRL multiplies by the mask (FACTS: OpenRLHF#1240 is the same mistake); verl and we fill masked places."""
    x_BT = numbers(1, B, T).masked_fill(~MASK, math.nan)
    assert masked.whiten(x_BT, MASK, ddof=1).isfinite().all()
    assert verl.masked_whiten(x_BT, MASK.double())[MASK].isfinite().all()
    for system in (trl_ppo_trainer, old_trl):
        assert system.masked_whiten(x_BT, MASK.double()).isnan().all()


# GAE


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_of_verl_and_openrlhf(verl, openrlhf, gamma, lam):
    """verl carries values over masked places, OpenRLHF multiplies by the mask: alike where masks only pad. verl whitens too."""
    batch = inputs()
    ours_BT, returns_BT, _ = GAE(gamma=gamma, lam=lam).estimate(batch, {})
    white_BT, verl_returns_BT = verl.compute_gae_advantage_return(batch.rewards_BT, batch.values_BT, MASK.double(), gamma, lam)
    assert close(masked.whiten(ours_BT, MASK, ddof=1), white_BT) and close(returns_BT, verl_returns_BT)
    experience_maker = "openrlhf/trainer/ppo_utils/experience_maker.py"
    estimate = method("openrlhf-0.11.2", experience_maker, "RemoteExperienceMaker", "get_advantages_and_returns")
    advantages_BT, openrlhf_returns_BT = estimate(None, batch.values_BT, batch.rewards_BT, MASK.double(), gamma, lam)
    assert close(ours_BT, advantages_BT) and close(returns_BT, openrlhf_returns_BT)


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8)])
def test_gae_of_torchrl(gamma, lam):
    """torchrl wants the value of the next state and where an episode is done: at the last token, whose next value is 0.

    Its coefficients are fp32 numbers (0.95 is 0.949999988), so 1e-6 here, for values of order 1.
    """
    from torchrl.objectives.value.functional import generalized_advantage_estimate

    batch = inputs()
    next_values_BT = torch.cat([batch.values_BT[:, 1:], torch.zeros(B, 1, dtype=torch.float64)], 1)
    done_BT = torch.arange(T) >= LENGTHS[:, None] - 1
    advantages, targets = generalized_advantage_estimate(
        gamma,
        lam,
        *(x[..., None] for x in (batch.values_BT, next_values_BT, batch.rewards_BT)),
        *(x[..., None] for x in (done_BT, done_BT)),
    )
    ours_BT, returns_BT, _ = GAE(gamma=gamma, lam=lam).estimate(batch, {})
    assert torch.allclose(ours_BT[MASK], advantages[..., 0][MASK], atol=1e-6, rtol=0)
    assert torch.allclose(returns_BT[MASK], targets[..., 0][MASK], atol=1e-6, rtol=0)


def test_gae_where_other_tokens_stand_between(verl):
    """A gap in the mask (a tool's answer) neither contributes nor decays, as in verl; OpenRLHF's would decay over it."""
    gapped = MASK.clone()
    gapped[0, 2:4] = gapped[4, 1] = False
    batch = inputs()
    theirs, _ = verl.compute_gae_advantage_return(batch.rewards_BT, batch.values_BT, gapped.double(), 0.9, 0.8)
    ours = masked.whiten(gae(batch.rewards_BT, batch.values_BT, gapped, 0.9, 0.8), gapped, ddof=1)
    assert torch.allclose(ours[gapped], theirs[gapped], **CLOSE)


# Group methods


@pytest.mark.parametrize(
    "component, function, options",
    [
        (GRPO(eps=1e-6), "compute_grpo_outcome_advantage", {}),
        (DrGRPO(), "compute_grpo_outcome_advantage", {"norm_adv_by_std_in_grpo": False}),
        (RLOO(), "compute_rloo_outcome_advantage", {}),
        (OPO(), "compute_opo_outcome_advantage", {}),
        (PassAtK(), "compute_grpo_passk_outcome_advantage", {"config": {"norm_adv_by_std_in_grpo": False}}),
        (ReinforcePP(gamma=0.9), "compute_reinforce_plus_plus_outcome_advantage", {"config": SimpleNamespace(gamma=0.9)}),
        (ReinforcePPBaseline(), "compute_reinforce_plus_plus_baseline_outcome_advantage", {}),
    ],
    ids=["grpo", "dr_grpo", "rloo", "opo", "pass_at_k", "reinforce_pp", "reinforce_pp_baseline"],
)
def test_advantages_of_verl(verl, component, function, options):
    """verl's estimators on the same token rewards. GRPO's ε is 1e-6 there, 1e-4 in TRL and here."""
    batch = inputs()
    if "plus_plus_outcome" not in function:
        options = {"index": GROUPS.numpy(), **options}
    theirs_BT, _ = getattr(verl, function)(batch.rewards_BT.clone(), response_mask=MASK.double(), **options)
    assert close(component.estimate(batch, {}).advantages_BT, theirs_BT)


# KL


@pytest.mark.parametrize("name", ["k1", "k2", "k3", "abs"])
def test_kl_estimators(verl, openrlhf, name):
    """All on D = log π − log ref. OpenRLHF computes in fp32: 1e-5 there, for numbers up to 10."""
    new, ref = numbers(1, B, T), numbers(2, B, T)
    ours = ESTIMATORS[name](new - ref)
    assert torch.allclose(ours.clamp(-10, 10) if name == "k3" else ours, verl.kl_penalty(new, ref, name), **CLOSE)
    if name != "abs":
        theirs = openrlhf.compute_approx_kl(new, ref, kl_estimator=name)
        inside = theirs.abs() < 10
        assert inside.float().mean() > 0.8 and torch.allclose(ours[inside], theirs[inside].double(), atol=1e-5, rtol=0)


def test_verl_and_openrlhf_clamp_k3(verl, openrlhf):
    """k3 at D = −4 is e⁴ − 5 = 49.6; verl and OpenRLHF say 10 (FACTS: a clamped KL is biased), we say 49.6."""
    there, here = torch.tensor([-4.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    exact = math.exp(4) - 5
    assert ESTIMATORS["k3"](there - here).item() == pytest.approx(exact, abs=1e-8)
    assert verl.kl_penalty(there, here, "k3").item() == 10
    assert openrlhf.compute_approx_kl(there, here, kl_estimator="k3").item() == 10


@pytest.mark.parametrize("system", ["old_trl", "verl", "openrlhf"])
@pytest.mark.parametrize("kls", [[12.0, 3.0, 6.0, 5.5, 30.0], [-1.0, 0.0, 6.3, 7.2]])
def test_adaptive_controllers(request, system, kls):
    """β, target 6, horizon 10000 and 512 sequences a step: our gain is 512/10000. A sequence of updates, in floats: 1e-12."""
    theirs = request.getfixturevalue(system).AdaptiveKLController(0.15, 6.0, 10_000)
    ours = Adaptive(beta=0.15, target=6.0, gain=512 / 10_000)
    state = ours.start()
    for kl in kls:
        theirs.update(kl, 512)
        state = ours.update(state, kl, 512)
        assert state["beta"] == pytest.approx(theirs.value, rel=1e-12)


# Losses


def minibatch(how, **fields):
    zeros = torch.zeros(B, T, dtype=torch.float64)
    weights_BT = aggregation.weights(MASK, how, T).double()
    tokens_BT = aggregation.weights(MASK, "token_mean", T).double()
    defaults = {"old_logprobs_BT": zeros, "advantages_BT": zeros, "returns_BT": zeros, "scores_B": zeros[:, 0], "beta": 0.0}
    return Minibatch(mask_BT=MASK, weights_BT=weights_BT, token_weights_BT=tokens_BT, **{**defaults, **fields})


AGGREGATIONS = {"token_mean": "token-mean", "sequence_mean": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}


def weights_close(value, reference):
    """Our weights are fp32 by construction and verl adds 1e-8 to lengths: 1e-6 for losses of order 1."""
    return value.item() == pytest.approx(reference.item(), abs=1e-6)


def policy_loss(component, how, scale=0.3):
    """Loss and gradient of one of our terms. Each token has its own advantage; for GSPO each response, as it is meant to be."""
    old, advantages = (numbers(seed, B, T).masked_fill(~MASK, 0.0) for seed in (3, 4))
    if component.name == "gspo":
        advantages = torch.where(MASK, advantages[:, :1], 0.0)
    new = (old + numbers(5, B, T, scale=scale).masked_fill(~MASK, 0.0)).requires_grad_()
    loss = component.loss(PolicyOutput(new), minibatch(how, old_logprobs_BT=old, advantages_BT=advantages))
    return loss.value, torch.autograd.grad(loss.value, new)[0], loss.metrics, (old, new, advantages)


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize(
    "component, function, settings",
    [
        (PPOClip(eps=0.2), "vanilla", {"clip_ratio_c": 1e9}),
        (DualClip(eps=0.2, c=1.3), "vanilla", {"clip_ratio_c": 1.3}),
        (ClipHigher(eps_low=0.2, eps_high=0.28), "vanilla", {"clip_ratio_high": 0.28, "clip_ratio_c": 1e9}),
        (CISPO(threshold="verl", eps_low=0.2, eps_high=0.3), "cispo", {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3}),
        (GSPO(eps_low=3e-2, eps_high=4e-2), "gspo", {"clip_ratio_low": 3e-2, "clip_ratio_high": 4e-2}),
    ],
    ids=["ppo_clip", "dual_clip", "clip_higher", "cispo", "gspo"],
)
def test_policy_losses_of_verl(verl, component, function, settings, how):
    """Loss and gradient, under verl's three aggregations that we have; clips decide on a good share of the tokens.

    verl's GSPO sends the gradient of each token's loss through that token alone; with one advantage per response, as here,
    that adds up to ours.
    """
    value, gradient, metrics, (old, new, advantages) = policy_loss(component, how)
    config = verl.ActorConfig(**settings)
    compute = getattr(verl, f"compute_policy_loss_{function}")
    theirs, _ = compute(old, new, advantages, MASK.double(), loss_agg_mode=AGGREGATIONS[how], config=config)
    assert weights_close(value, theirs)
    (their_gradient,) = torch.autograd.grad(theirs, new)
    assert torch.allclose(gradient, their_gradient, atol=1e-6, rtol=0)
    assert metrics["clip_fraction"] > 0.1


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize(
    "component, settings",
    [
        (PPOClip(eps=0.2), {}),
        (ClipHigher(eps_low=0.2, eps_high=0.28), {"clip_eps_high": 0.28}),
        (DualClip(eps=0.2, c=1.3), {"dual_clip": 1.3}),
        (GSPO(eps_low=3e-2, eps_high=4e-2), {"policy_loss_type": "gspo", "clip_eps_low": 3e-2, "clip_eps_high": 4e-2}),
    ],
    ids=["ppo_clip", "clip_higher", "dual_clip", "gspo"],
)
def test_policy_losses_of_openrlhf(openrlhf, component, settings, how):
    """OpenRLHF's PolicyLoss; its GSPO is always the mean over sequences."""
    if component.name == "gspo":
        how = "sequence_mean"
    value, gradient, _, (old, new, advantages) = policy_loss(component, how)
    theirs, *_ = openrlhf.PolicyLoss(token_level_loss=how == "token_mean", **settings)(new, old, advantages, MASK.double())
    assert weights_close(value, theirs)
    assert torch.allclose(gradient, torch.autograd.grad(theirs, new)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("eps", [0.2, None])
def test_value_losses(verl, openrlhf, eps, how):
    """½ E[max((V−R)², (clip V − R)²)], and the plain square, of verl and OpenRLHF: loss and gradient."""
    values, old, returns = (numbers(seed, B, T).masked_fill(~MASK, 0.0) for seed in (6, 7, 8))
    values.requires_grad_()
    component = ValuePlain() if eps is None else ValueClip(eps=eps)
    new, batch = PolicyOutput(values, values_BT=values), minibatch(how, old_values_BT=old, returns_BT=returns)
    value = component.loss(new, batch).value
    theirs = [openrlhf.ValueLoss(eps, token_level_loss=how == "token_mean")(values, old, returns, MASK.double())]
    if eps is not None:
        theirs.append(verl.compute_value_loss(values, returns, old, MASK.double(), eps, loss_agg_mode=AGGREGATIONS[how])[0])
    gradient = torch.autograd.grad(value, values)[0]
    for loss in theirs:
        assert weights_close(value, loss)
        assert torch.allclose(gradient, torch.autograd.grad(loss, values)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("margins", [None, torch.tensor([0.5, 1.0, 2.0, 1.5], dtype=torch.float64)])
def test_pairwise_losses_of_openrlhf(openrlhf, margins):
    """−log σ(r_w − r_l − m), mean over pairs."""
    scores = numbers(9, 4, 2)
    ratings = torch.stack([torch.ones(4, dtype=torch.float64) if margins is None else margins, torch.zeros(4)], 1)
    theirs = openrlhf.PairWiseLoss()(scores[:, 0], scores[:, 1], margins)
    component = Pairwise() if margins is None else Margin(margin=1.0)
    ours = component.losses(scores, ratings, torch.ones(4, 2, dtype=torch.bool)).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-8)
