"""Bias and variance of every policy gradient that the laboratory can be asked for, against the exact one.

In a world that is enumerated the expectation over batches is a sum over all batches, so that the table has no noise. What
is measured is the first gradient on a batch: π is the sampler, all ratios are 1, and the clipped surrogate is −Σ_t A_t log π
in gradient. A batch is `group` responses to one prompt; the gradient is the mean over responses of the sum over tokens,
by the logits of a softmax table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from torch import Tensor

from rlhf_lab.contracts import AdvantageInputs, Component
from rlhf_lab.proof import exact
from rlhf_lab.registry import Registry
from rlhf_lab.rl.kl import ESTIMATORS, per_token
from rlhf_lab.rl.rewards import token_rewards

PROVIDED = frozenset({"values", "groups", "greedy_scores"})
FULL = "full"
KL_ESTIMATORS = (*ESTIMATORS, FULL)
PLACEMENTS = ("reward", "loss")


@dataclass(frozen=True, eq=False)
class World:
    """One prompt: a policy away from its reference, a reward, β, and a critic's error at each state."""

    space: exact.Space
    logprobs_SV: Tensor
    ref_logprobs_SV: Tensor
    rewards_N: Tensor
    beta: float
    critic_error_S: Tensor


def random_world(vocabulary: int = 3, length: int = 3, *, beta: float = 0.5, seed: int = 1) -> World:
    """Logits and rewards from N(0, 1); the reference is N(0, 0.5²) away from the policy in each logit."""
    space, rng = exact.enumerate_space(vocabulary, length), np.random.default_rng(seed)
    shape = len(space.states), vocabulary
    logits_SV, shift_SV = torch.from_numpy(rng.normal(size=shape)), torch.from_numpy(0.5 * rng.normal(size=shape))
    rewards_N, error_S = torch.from_numpy(rng.normal(size=len(space.responses))), torch.from_numpy(rng.normal(size=shape[0]))
    return World(space, logits_SV.log_softmax(-1), (logits_SV + shift_SV).log_softmax(-1), rewards_N, beta, error_S)


def example_worlds() -> dict[str, World]:
    """A bandit, where a response is one token, and responses of one to three tokens, where states follow each other."""
    return {"one token": random_world(4, 1), "up to three tokens": random_world(3, 3)}


class Law(NamedTuple):
    """All batches of `group` responses, as numbers of responses, with their probabilities."""

    batches_MG: Tensor
    probability_M: Tensor


def all_batches(world: World, group: int) -> Law:
    """The law of independent responses: M = N^group ordered batches."""
    batches_MG = torch.tensor(list(itertools.product(range(len(world.space.responses)), repeat=group)))
    return Law(batches_MG, exact.response_logprobs(world.logprobs_SV, world.space)[batches_MG].sum(1).exp())


def score_functions(world: World) -> Tensor:
    """∂ log π(y_t | y_<t) / ∂ logits, shape (N, T, S·V): one-hot minus probabilities at the state, 0 in masked places."""
    space = world.space
    n_responses, n_tokens = space.mask_NT.shape
    gradient_NTSV = torch.zeros(n_responses, n_tokens, *world.logprobs_SV.shape, dtype=torch.float64)
    n, t = space.mask_NT.nonzero(as_tuple=True)
    state, token = space.state_NT[n, t], space.token_NT[n, t]
    gradient_NTSV[n, t, state] = -world.logprobs_SV.exp()[state]
    gradient_NTSV[n, t, state, token] += 1
    return gradient_NTSV.flatten(2)


# ---------------------------------------------------------------------------------------------------------------
# What stands in front of ∇ log π(y_t)


def advantages(world: World, estimator: Any, kl: str, beta: float, law: Law, critic_error: float) -> Tensor:
    """A_MGT: what the estimator makes of each batch, its token rewards being score and −β·k."""
    space = world.space
    policy_NT, ref_NT = (table_SV[space.state_NT, space.token_NT] for table_SV in (world.logprobs_SV, world.ref_logprobs_SV))
    exact_NT = state_kl(world)[space.state_NT]
    rewards_NT = token_rewards(world.rewards_N, per_token(kl, policy_NT, ref_NT, space.mask_NT, exact_NT), space.mask_NT, beta)
    log_ratio_SV = world.logprobs_SV - world.ref_logprobs_SV
    penalties_SV = -beta * (state_kl(world)[:, None] if kl == FULL else ESTIMATORS[kl](log_ratio_SV))
    values_S = exact.values(world.logprobs_SV, world.rewards_N, space, penalties_SV)[0] + critic_error * world.critic_error_S
    values_NT = values_S[space.state_NT].masked_fill(~space.mask_NT, 0.0)
    greedy_score = world.rewards_N[greedy_response(world)]

    def estimate(batch_G: Tensor) -> Tensor:
        inputs = AdvantageInputs(
            rewards_BT=rewards_NT[batch_G],
            mask_BT=space.mask_NT[batch_G],
            scores_B=world.rewards_N[batch_G],
            group_B=torch.zeros(len(batch_G), dtype=torch.long),
            ended_B=space.ended_N[batch_G],
            values_BT=values_NT[batch_G] if "values" in estimator.needs else None,
            greedy_scores_B=greedy_score.expand(len(batch_G)) if "greedy_scores" in estimator.needs else None,
        )
        return estimator.estimate(inputs, {}).advantages_BT.double()

    return torch.stack([estimate(batch_G) for batch_G in law.batches_MG])


def greedy_response(world: World) -> int:
    """The number of the response that takes the likeliest token each time."""
    place = 0
    while place < len(world.space.states):
        place = int(world.space.next_SV[place, world.logprobs_SV[place].argmax()])
    return place - len(world.space.states)


def state_kl(world: World) -> Tensor:
    """KL(π(·|s)‖ref(·|s)) at each state, in nats."""
    return (world.logprobs_SV.exp() * (world.logprobs_SV - world.ref_logprobs_SV)).sum(-1)


def full_loss_gradients(world: World, beta: float) -> Tensor:
    """−β Σ_t ∇ KL(s_t), shape (N, S·V): what a term + β Σ_t KL(s_t) in the loss adds to the gradient of a response.

    ∂KL(s)/∂logit(s, v) = π(v|s) (log π(v|s) − log ref(v|s) − KL(s)).
    """
    space, log_ratio_SV = world.space, world.logprobs_SV - world.ref_logprobs_SV
    slope_SV = world.logprobs_SV.exp() * (log_ratio_SV - state_kl(world)[:, None])
    visits_NS = torch.zeros(len(space.responses), len(space.states), dtype=torch.float64)
    visits_NS.scatter_add_(1, space.state_NT, space.mask_NT.double())
    return -beta * (visits_NS[:, :, None] * slope_SV).flatten(1)


def loss_coefficients(world: World, kl: str, beta: float) -> Tensor:
    """−β k'(D) at each token, shape (N, T): what a term + β Σ_t k(log π − log ref) in the loss adds to the advantage."""
    space = world.space
    ratio_NT = (world.logprobs_SV - world.ref_logprobs_SV)[space.state_NT, space.token_NT].requires_grad_()
    (slope_NT,) = torch.autograd.grad(ESTIMATORS[kl](ratio_NT).sum(), ratio_NT)
    return (-beta * slope_NT).masked_fill(~space.mask_NT, 0.0)


# ---------------------------------------------------------------------------------------------------------------
# The law of a gradient, and the table


def moments(coefficients_MGT: Tensor, score_NTD: Tensor, law: Law, extra_ND: Tensor | float = 0.0) -> tuple[Tensor, float]:
    """Mean and total variance (trace of the covariance) of (1/G) Σ_i (Σ_t c_it ∇ log π(y_it) + extra_i)."""
    gradient_MD = torch.einsum("mgt,mgtd->md", coefficients_MGT, score_NTD[law.batches_MG]) / law.batches_MG.shape[1]
    if isinstance(extra_ND, Tensor):
        gradient_MD = gradient_MD + extra_ND[law.batches_MG].mean(1)
    mean_D = law.probability_M @ gradient_MD
    return mean_D, float(law.probability_M @ (gradient_MD - mean_D).square().sum(1))


def estimator_table(registry: Registry, worlds: Mapping[str, World] | None = None, *, group: int = 2) -> pd.DataFrame:
    """A row per world × advantage estimator × critic × KL estimator × placement of the KL; default: `example_worlds`.

    bias        ‖E[g] − ∇J‖ / ‖∇J‖, with J = E[r] − β KL
    cosine      of E[g] and ∇J: 1 is the right direction, whatever the step
    variance    E‖g − E[g]‖² / ‖∇J‖²
    kl_share    the KL's part of E[g], projected on the exact −β ∇KL: 1 is right, 0 is no regularisation at all
    kl_bias     ‖the KL's part − exact‖ / ‖exact‖

    Every number is a sum over all batches. Estimators are taken at their defaults, and one with a `lam` also at 0 and 1;
    one that reads values gets exact ones, and once more exact ones plus an error at each state. What needs something
    that is not here, or has parameters without default, stands in the table without numbers.
    """
    rows = []
    for name, world in (example_worlds() if worlds is None else worlds).items():
        law, score_NTD = all_batches(world, group), score_functions(world)
        for label, estimator in estimators(registry):
            for critic, error in critics(estimator):
                keys = {"world": name, "advantage": label, "critic": critic}
                rows += [keys | row for row in _rows(world, estimator, law, score_NTD, error)]
    return pd.DataFrame(rows)


def estimators(registry: Registry) -> Iterator[tuple[str, Component | None]]:
    """Every registered advantage estimator under a name that tells its λ; None for one that cannot be had without more."""
    for name in registry.names("advantage"):
        try:
            default = registry.choose("advantage", name)
        except (ValidationError, ValueError):
            yield name, None
            continue
        if not default.needs <= PROVIDED:
            yield name, None
        elif "lam" in type(default).model_fields:
            for lam in sorted({0.0, default.lam, 1.0}):
                yield f"{name}, λ = {lam:g}", default.model_copy(update={"lam": lam})
        else:
            yield name, default


def critics(estimator: Component | None) -> list[tuple[str, float]]:
    """(name, size of the error) of each critic that an estimator is given."""
    return [("exact", 0.0), ("wrong", 1.0)] if estimator is not None and "values" in estimator.needs else [("none", 0.0)]


def _rows(world: World, estimator: Component | None, law: Law, score_NTD: Tensor, error: float) -> Iterator[dict[str, Any]]:
    """The rows of one estimator in one world; blank ones without an estimator."""
    cells = itertools.product(KL_ESTIMATORS, PLACEMENTS)
    if estimator is None:
        blank = dict.fromkeys(("bias", "cosine", "variance", "kl_share", "kl_bias"), math.nan)
        yield from ({"kl": kl, "placement": placement} | blank for kl, placement in cells)
        return
    reward_only_MGT = advantages(world, estimator, "k1", 0.0, law, error)
    without_kl_D, _ = moments(reward_only_MGT, score_NTD, law)
    for kl, placement in cells:
        if placement == "reward":
            mean_D, variance = moments(advantages(world, estimator, kl, world.beta, law, error), score_NTD, law)
        elif kl == FULL:
            mean_D, variance = moments(reward_only_MGT, score_NTD, law, full_loss_gradients(world, world.beta))
        else:
            coefficients_MGT = reward_only_MGT + loss_coefficients(world, kl, world.beta)[law.batches_MG]
            mean_D, variance = moments(coefficients_MGT, score_NTD, law)
        yield {"kl": kl, "placement": placement} | _against_exact(world, mean_D, mean_D - without_kl_D, variance)


def _against_exact(world: World, mean_D: Tensor, kl_part_D: Tensor, variance: float) -> dict[str, float]:
    exact_D, exact_reward_D = (
        exact.policy_gradient(world.logprobs_SV, world.ref_logprobs_SV, world.rewards_N, beta, world.space).flatten()
        for beta in (world.beta, 0.0)
    )
    exact_kl_D = exact_D - exact_reward_D
    return {
        "bias": float((mean_D - exact_D).norm() / exact_D.norm()),
        "cosine": float(mean_D @ exact_D / (mean_D.norm() * exact_D.norm())),
        "variance": variance / float(exact_D.square().sum()),
        "kl_share": float(kl_part_D @ exact_kl_D / exact_kl_D.square().sum()),
        "kl_bias": float((kl_part_D - exact_kl_D).norm() / exact_kl_D.norm()),
    }


# ---------------------------------------------------------------------------------------------------------------
# Markdown


def markdown(table: pd.DataFrame) -> str:
    """Two Markdown tables per world: each estimator under each KL, and what becomes of the KL itself."""
    parts = table.groupby("world", sort=False)
    return "\n".join(f"### {world}\n\n{by_estimator(rows)}\n{by_kl(rows)}" for world, rows in parts)


def by_estimator(rows: pd.DataFrame) -> str:
    """A line per estimator and critic, a column per KL estimator and placement; cells are bias / cosine / variance."""
    cells = {f"{kl} in {placement}": part for (kl, placement), part in rows.groupby(["kl", "placement"], sort=False)}
    lines = [["advantage (bias / cosine / variance)", "critic", *cells]]
    for (advantage, critic), _ in rows.groupby(["advantage", "critic"], sort=False):
        found = [part[(part["advantage"] == advantage) & (part["critic"] == critic)].iloc[0] for part in cells.values()]
        numbers = [" / ".join(_number(row[column]) for column in ("bias", "cosine", "variance")) for row in found]
        lines.append([advantage, critic, *numbers])
    return _lines(lines)


def by_kl(rows: pd.DataFrame) -> str:
    """A line per KL estimator and placement, for the estimator that distorts the KL least: share and bias."""
    best = rows.loc[rows["kl_bias"].idxmin()]
    chosen = rows[(rows["advantage"] == best["advantage"]) & (rows["critic"] == best["critic"])]
    lines = [["KL", "share of −β ∇KL", "bias of −β ∇KL"]]
    lines += [[f"{row.kl} in {row.placement}", _number(row.kl_share), _number(row.kl_bias)] for row in chosen.itertuples()]
    return _lines(lines)


def _lines(lines: list[list[str]]) -> str:
    """The first line is the heading."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in ruled)


def _number(value: float) -> str:
    """Three decimals, fewer only for what is exact; an en dash for what could not be measured."""
    if not math.isfinite(value):
        return "–"
    return f"{round(value)}" if abs(value - round(value)) < 1e-6 else f"{value:.3f}"
