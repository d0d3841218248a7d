"""A world small enough to enumerate: every response, its probability, and what the best policy would be, in float64.

Two more shape suffixes: S states, the response prefixes after which a token is chosen; N responses, all there are. X
prompts where a function takes several; their KL and reward are then means over the prompts.

A response ends with its EOS, or without one at the greatest length. `logprobs_SV` is a policy as a table of next-token
log-probabilities, `logprobs_N` the law of its responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from rlhf_lab.contracts import Rollout
from rlhf_lab.errors import DataError
from rlhf_lab.lm.logprobs import response_logits
from rlhf_lab.lm.tokens import Encoder, pad

LARGEST_VOCABULARY, LARGEST_LENGTH = 8, 4

# ---------------------------------------------------------------------------------------------------------------
# The space of responses


@dataclass(frozen=True, eq=False)
class Space:
    """All responses of at most `length` tokens, EOS included. States come by length, then in the order of the tokens.

    `next_SV` says where token v leads from state s: to state `next_SV[s, v]` if that is below S, else to the end of
    response `next_SV[s, v] − S`. `state_NT` is the state before each token of a response, 0 where `mask_NT` is off.
    """

    vocabulary: int
    length: int
    eos: int
    states: tuple[tuple[int, ...], ...]
    responses: tuple[tuple[int, ...], ...]
    next_SV: Tensor
    state_NT: Tensor
    token_NT: Tensor
    mask_NT: Tensor
    ended_N: Tensor

    def levels(self) -> Iterator[slice]:
        """The states of each length, the shortest first."""
        first = 0
        for n in range(self.length):
            size = (self.vocabulary - 1) ** n
            yield slice(first, first + size)
            first += size


@cache
def enumerate_space(vocabulary: int, length: int, eos: int = 0) -> Space:
    """The space of responses over `vocabulary` tokens. Raises DataError where there would be too many."""
    if not (2 <= vocabulary <= LARGEST_VOCABULARY and 1 <= length <= LARGEST_LENGTH):
        raise DataError(
            f"only worlds of 2 to {LARGEST_VOCABULARY} tokens and responses of 1 to {LARGEST_LENGTH} tokens are enumerated, "
            f"not {vocabulary} tokens and responses of {length}"
        )
    states, responses, ends = _grown(vocabulary, length, eos)
    place = {prefix: i for i, prefix in enumerate(states)} | {y: len(states) + n for y, n in ends.items()}
    before = [[place[y[:t]] for t in range(len(y))] for y in responses]
    token_NT, mask_NT = pad(responses, eos)
    return Space(
        vocabulary,
        length,
        eos,
        tuple(states),
        tuple(responses),
        next_SV=torch.tensor([[place[(*prefix, v)] for v in range(vocabulary)] for prefix in states]),
        state_NT=pad(before, 0)[0],
        token_NT=token_NT,
        mask_NT=mask_NT,
        ended_N=torch.tensor([y[-1] == eos for y in responses]),
    )


def _grown(vocabulary: int, length: int, eos: int) -> tuple[list, list, dict]:
    """States, responses, and the number of each response."""
    states, responses, level = [], [], [()]
    for n in range(length):
        states += level
        longer = [(*prefix, v) for prefix in level for v in range(vocabulary)]
        responses += [y for y in longer if y[-1] == eos or n + 1 == length]
        level = [y for y in longer if y[-1] != eos]
    return states, responses, {y: n for n, y in enumerate(responses)}


def context_code(tokens: Sequence[int], vocabulary: int) -> int:
    """The number of a token string among all of them, by length and then in order (bijective base-V numeration)."""
    code = 0
    for token in tokens:
        code = code * vocabulary + token + 1
    return code


def n_contexts(vocabulary: int, longest: int) -> int:
    """How many strings of at most `longest` tokens there are, the empty one included."""
    return sum(vocabulary**n for n in range(longest + 1))


# ---------------------------------------------------------------------------------------------------------------
# Policies and rewards of the laboratory, as tables


def tabulate(law: Callable[[tuple[int, ...]], Any], space: Space) -> Tensor:
    """logprobs_SV of a policy given as a function: response prefix → log-probabilities of the next token."""
    return torch.stack([torch.as_tensor(law(prefix), dtype=torch.float64) for prefix in space.states])


def all_responses(encoder: Encoder, prompt: str, space: Space) -> Rollout:
    """Every response to `prompt` as a rollout, so that the laboratory's own policies and rewards can be asked about it."""
    n = len(space.responses)
    prompt_ids_NP = torch.tensor([encoder.prompt_ids(prompt)]).expand(n, -1)
    return Rollout(
        (prompt,) * n,
        tuple(encoder.decode(y) for y in space.responses),
        prompt_ids_NP,
        torch.ones_like(prompt_ids_NP, dtype=torch.bool),
        space.token_NT,
        space.mask_NT,
        space.ended_N,
        group_B=torch.zeros(n, dtype=torch.long),
    )


@torch.no_grad()
def next_token_logprobs(model: Any, everything: Rollout, space: Space, temperature: float = 1.0) -> Tensor:
    """logprobs_SV of a causal language model after the prompt of `everything`, which is what `all_responses` gave.

    The model's logits as they are, normalised in float64.
    """
    logprobs_NTV = (response_logits(model, everything).double() / temperature).log_softmax(-1)
    logprobs_SV = logprobs_NTV.new_empty(len(space.states), space.vocabulary)
    logprobs_SV[space.state_NT[space.mask_NT]] = logprobs_NTV[space.mask_NT]
    return logprobs_SV


# ---------------------------------------------------------------------------------------------------------------
# Laws of responses


def response_logprobs(logprobs_SV: Tensor, space: Space) -> Tensor:
    """log π(y) = Σ_t log π(y_t | y_<t), logprobs_N."""
    per_token_NT = logprobs_SV[space.state_NT, space.token_NT]
    return per_token_NT.masked_fill(~space.mask_NT, 0.0).sum(1)


def conditionals(logprobs_N: Tensor, space: Space) -> Tensor:
    """The next-token table of any law of responses: log π(v | s) = log Σ_{y ⊇ s v} π(y) − log Σ_{y ⊇ s} π(y).

    A state of probability 0 gets a uniform row.
    """
    total = torch.cat([logprobs_N.new_full((len(space.states),), -math.inf), logprobs_N])
    for level in reversed(list(space.levels())):
        total[level] = total[space.next_SV[level]].logsumexp(-1)
    logprobs_SV = total[space.next_SV] - total[: len(space.states), None]
    return logprobs_SV.nan_to_num(nan=-math.log(space.vocabulary), neginf=-math.inf)


def expectation(logprobs_N: Tensor, x_N: Tensor) -> Tensor:
    """Σ_y π(y) x(y), where x of a response of probability 0 does not count. Any leading dimensions."""
    p_N = logprobs_N.exp()
    return torch.where(p_N > 0, p_N * x_N, 0.0).sum(-1)


def kl(logprobs_N: Tensor, ref_logprobs_N: Tensor) -> Tensor:
    """KL(π‖ref) = Σ_y π(y) log(π(y) / ref(y)), nats per sequence."""
    return expectation(logprobs_N, logprobs_N - ref_logprobs_N)


def state_probabilities(logprobs_SV: Tensor, space: Space) -> Tensor:
    """d(s): how likely the policy comes through state s."""
    d = logprobs_SV.new_zeros(len(space.states) + len(space.responses))
    d[0] = 1.0
    for level in space.levels():
        d = d.index_put((space.next_SV[level],), d[level, None] * logprobs_SV[level].exp())
    return d[: len(space.states)]


# ---------------------------------------------------------------------------------------------------------------
# Values and gradients


def values(
    logprobs_SV: Tensor, rewards_N: Tensor, space: Space, token_rewards_SV: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """V_S and Q_SV of the return Σ_t c(s_t, y_t) + r(y), by the recursion of Sutton & Barto 2018, eq. 3.14.

    Q(s, v) = c(s, v) + V(s v), V(s) = Σ_v π(v|s) Q(s, v), and V = r at the end. The advantage is Q − V. For the
    regularised objective c = −β (log π − log ref).
    """
    costs_SV = torch.as_tensor(token_rewards_SV, dtype=torch.float64).expand_as(logprobs_SV)
    value = torch.cat([rewards_N.new_zeros(len(space.states)), rewards_N])
    for level in reversed(list(space.levels())):
        value[level] = expectation(logprobs_SV[level], costs_SV[level] + value[space.next_SV[level]])
    return value[: len(space.states)], costs_SV + value[space.next_SV]


def objective(logprobs_SV: Tensor, ref_logprobs_SV: Tensor, rewards_N: Tensor, beta: float, space: Space) -> Tensor:
    """J(π) = E_π[r] − β KL(π‖ref) (Ziegler et al. 2019, eq. 2)."""
    logprobs_N = response_logprobs(logprobs_SV, space)
    return expectation(logprobs_N, rewards_N - beta * (logprobs_N - response_logprobs(ref_logprobs_SV, space)))


def policy_gradient(logits_SV: Tensor, ref_logprobs_SV: Tensor, rewards_N: Tensor, beta: float, space: Space) -> Tensor:
    """∂J/∂logits, shape (S, V), through the enumeration of all responses."""
    logits_SV = logits_SV.detach().clone().requires_grad_()
    value = objective(logits_SV.log_softmax(-1), ref_logprobs_SV, rewards_N, beta, space)
    return torch.autograd.grad(value, logits_SV)[0]


# ---------------------------------------------------------------------------------------------------------------
# The best that can be done


def optimum(ref_logprobs_N: Tensor, rewards_N: Tensor, beta: float) -> Tensor:
    """log π*(y) with π*(y) = ref(y) e^{r(y)/β} / Z, the policy that maximises E[r] − β KL (Rafailov et al. 2023, eq. 4)."""
    return (ref_logprobs_N + rewards_N / beta).log_softmax(-1)


def optimal_objective(ref_logprobs_N: Tensor, rewards_N: Tensor, beta: float) -> Tensor:
    """J* = β log Z, Z = E_ref[e^{r/β}]; every policy has J = J* − β KL(π‖π*)."""
    return beta * (ref_logprobs_N + rewards_N / beta).logsumexp(-1)


def soft_values(ref_logprobs_SV: Tensor, rewards_N: Tensor, beta: float, space: Space) -> tuple[Tensor, Tensor]:
    """V_S and logprobs_SV of the optimum, token by token (Levine 2018, section 2, with the reference as prior).

    V(s) = β log E_{v~ref} e^{V(s v)/β}, V = r at the end; π*(v|s) = ref(v|s) e^{(V(s v) − V(s))/β}. V(first state) is J*.
    """
    value = torch.cat([rewards_N.new_zeros(len(space.states)), rewards_N])
    for level in reversed(list(space.levels())):
        value[level] = beta * (ref_logprobs_SV[level] + value[space.next_SV[level]] / beta).logsumexp(-1)
    value_S = value[: len(space.states)]
    return value_S, ref_logprobs_SV + (value[space.next_SV] - value_S[:, None]) / beta


def frontier(ref_logprobs_XN: Tensor, rewards_XN: Tensor, kl_at: float) -> float:
    """The highest mean reward that any policy with a mean KL of at most `kl_at` nats can have.

    It is that of π* at the β where KL(π*_β‖ref) = kl_at, one β for all prompts; there dE[r]/dKL = β. Computed as
    β·kl + J*_β, which bounds all policies from above for every β and is least at that one, so that an error in β cannot
    turn it into a false bound. Takes one prompt (N) or several (X, N).
    """
    ref_XN, rewards_XN = torch.atleast_2d(ref_logprobs_XN), torch.atleast_2d(rewards_XN)
    if kl_at <= 0:
        return expectation(ref_XN, rewards_XN).mean().item()

    def excess(inverse_beta: float) -> float:
        return kl((ref_XN + inverse_beta * rewards_XN).log_softmax(-1), ref_XN).mean().item() - kl_at

    if kl_at >= greatest_kl(ref_XN, rewards_XN):
        return rewards_XN.max(-1).values.mean().item()
    high = 1.0
    while excess(high) < 0 and high < 1e15:
        high *= 2
    beta = 1 / (brentq(excess, 0.0, high, xtol=1e-300, rtol=1e-14) if excess(high) > 0 else high)
    return beta * kl_at + optimal_objective(ref_XN, rewards_XN, beta).mean().item()


def greatest_kl(ref_logprobs_XN: Tensor, rewards_XN: Tensor) -> float:
    """KL of the policy that maximises the reward alone, as β → 0: −log ref(best responses), the mean over prompts."""
    best_XN = rewards_XN == rewards_XN.max(-1, keepdim=True).values
    return -ref_logprobs_XN.masked_fill(~best_XN, -math.inf).logsumexp(-1).mean().item()


def best_of_n(ref_logprobs_N: Tensor, rewards_N: Tensor, n: int) -> Tensor:
    """log-law of the best of n samples of ref; among samples of equal reward each is equally likely to be taken.

    P(y) = ref(y) / p_u · (F_u^n − (F_u − p_u)^n), with p_u the probability of reward u = r(y) and F_u that of at most u
    (Beirami et al. 2024, lemma 1, where no two rewards are equal; a tie splits ∝ ref).
    """
    _, level_N = rewards_N.unique(return_inverse=True)
    p_U = torch.zeros(int(level_N.max()) + 1, dtype=torch.float64).index_add(0, level_N, ref_logprobs_N.exp())
    at_most_U = p_U.cumsum(0)
    share_U = (p_U / at_most_U).clamp(max=1.0)
    log_best_U = n * at_most_U.log() + (-(torch.expm1(n * torch.log1p(-share_U)))).log()
    return ref_logprobs_N + (log_best_U - p_U.log())[level_N]
