"""The laws of each kind of component, over everything that is registered: a new plugin is tested by being there."""

import dataclasses
import itertools
import json
import math
import random

import numpy as np
import pytest
import tiny_world
import torch
from pydantic import BaseModel
from tiny_world import component, registry

from rlhf_lab.contracts import AdvantageInputs, Minibatch, PolicyOutput, Scores

BUILTIN = [r.component for r in registry().registrations() if r.distribution == "rlhf-lab"]
COMPONENTS = [c for c in BUILTIN if c.kind != "preset"]

# Parameters for those that cannot be without, and second settings for those that have more than one way to work.
EXAMPLES = {
    ("advantage", "gae"): [{}, {"gamma": 0.9, "lam": 0.5}],
    ("advantage", "monte_carlo"): [{}, {"gamma": 0.7}],
    ("advantage", "reinforce_pp"): [{}, {"gamma": 0.7, "ddof": 0}],
    ("advantage", "n_step"): [{}, {"n": 3, "gamma": 0.9}],
    ("advantage", "normalized_clipped"): [{}, {"source": "rloo"}],
    ("objective", "cispo"): [{}, {"threshold": "verl", "eps_low": 0.2, "eps_high": 0.28}],
    ("objective", "kl_loss"): [{"estimator": k, "importance_weight": w} for k in ("k1", "k2", "k3", "abs") for w in (0, 1)],
    ("kl_controller", "schedule"): [{}, {"shape": "cosine", "warmup": 3, "final": 0.5}],
    ("kl_controller", "pid"): [{}, {"derivative": 0.5}],
    ("reward", "ensemble"): [{"members": ["words", "length"], "how": how} for how in ("worst_case", "uncertainty_weighted")],
    ("reward", "weighted_sum"): [{"sources": ["words", "length"], "weights": [1.0, -0.1]}],
    ("reward", "clipped"): [{"source": "words", "low": -1.0, "high": 1.0}],
    ("reward", "scaled"): [{"source": "words"}],
    ("reward", "length_penalty"): [{"source": "words", "coefficient": 0.3, "free": 2, "cap": 0.5}],
    ("reward", "eos_penalty"): [{"source": "words", "score": -1.0}, {"source": "words", "penalty": 0.5}],
    ("reward", "regex"): [{"pattern": "w1"}],
    ("reward", "repetition"): [{"n": 2}],
    ("reward", "length"): [{}, {"target": 3}],
    ("reward", "normalized"): [{"source": "words", "samples": 16, "response_length": 6}],
}
# What needs a world or files of its own is tested beside them.
ELSEWHERE = {("reward", "table"), ("reward", "hub_classifier"), ("reward", "exact_match")}


def of(kind):
    """Every registered component of a kind, in each of its example settings, as pytest parameters."""
    return [
        pytest.param(component(kind, {"name": c.name, **setting}), id=f"{c.name}-{i}" if i else c.name)
        for c in COMPONENTS
        if c.kind == kind and (kind, c.name) not in ELSEWHERE
        for i, setting in enumerate(EXAMPLES.get((kind, c.name), [{}]))
    ]


def test_the_examples_are_of_components_that_exist():
    assert set(EXAMPLES) | ELSEWHERE <= {(c.kind, c.name) for c in COMPONENTS}


# All kinds


def named(c):
    return f"{c.kind}.{c.name}"


@pytest.mark.parametrize("c", COMPONENTS, ids=named)
def test_it_says_what_it_is(c):
    """A docstring of sentences, whose first line (the one that `plugins list` shows) is not just a name."""
    doc = (c.__doc__ or "").strip()
    assert len(doc.splitlines()[0].split()) >= 3 and doc[-1] in ".)", doc


@pytest.mark.parametrize("c", COMPONENTS, ids=named)
def test_each_parameter_says_what_it_is(c):
    """In words of its own, or, for a block of parameters, in those of the block's class."""
    for name, field in c.model_fields.items():
        block = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert field.description or (block and field.annotation.__doc__), f"{named(c)}.{name} has no description"


@pytest.mark.parametrize("c", COMPONENTS, ids=named)
def test_sources_and_units_are_texts(c):
    for name, field in c.model_fields.items():
        for key, text in (field.json_schema_extra or {}).items():
            assert key in ("unit", "source") and isinstance(text, str) and text.strip(), f"{named(c)}.{name}: {key}"


@pytest.mark.parametrize("c", COMPONENTS, ids=named)
def test_what_a_paper_defines_is_cited(c):
    """Losses, estimators and controllers name a year; sentences about this project's own need not."""
    if c.kind in ("advantage", "objective", "reward_loss") or (c.kind == "kl_controller" and c.name != "schedule"):
        said = (c.__doc__ or "") + json.dumps([f.json_schema_extra for f in c.model_fields.values()])
        assert any(str(year) in said for year in range(1950, 2030)) or "lm-human-preferences" in said


@pytest.mark.parametrize("c", COMPONENTS, ids=named)
def test_unknown_parameters_are_refused(c):
    with pytest.raises(ValueError, match="Extra inputs"):
        component(c.kind, {"name": c.name, "surely_no_parameter_of_this_name": 1})


@pytest.mark.parametrize("kind", ["kl_controller", "advantage", "objective", "reward_loss", "reward"])
def test_components_are_frozen_and_survive_json(kind):
    for parameter in of(kind):
        (value,) = parameter.values
        assert component(kind, json.loads(value.model_dump_json())) == value
        for name in type(value).model_fields:
            with pytest.raises(ValueError, match="frozen"):
                setattr(value, name, getattr(value, name))


def test_nothing_happens_at_construction():
    """Random states of Python, numpy and torch are left as they are."""

    def states():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = states()
    for kind in ("kl_controller", "advantage", "objective", "reward_loss", "reward"):
        of(kind)
    assert states() == before


# KL controllers


@pytest.mark.parametrize("controller", of("kl_controller"))
@pytest.mark.parametrize(
    "kls", [[0.0, 3.0, 6.0, 60.0] * 30, [-1e6, 1e6] * 40, [1e9] * 500, [-5.0] * 500], ids=["usual", "wild", "up", "down"]
)
def test_beta_is_finite_and_not_negative_whatever_is_seen(controller, kls):
    state = controller.start()
    for kl in kls:
        assert math.isfinite(state["beta"]) and state["beta"] >= 0
        state = controller.update(state, kl, 64)
        assert all(math.isfinite(value) for value in state.values())


@pytest.mark.parametrize("controller", of("kl_controller"))
def test_updates_are_pure_and_survive_a_resume(controller):
    """The same from a state that went through JSON, at every step; the old state is left as it was."""
    state = controller.start()
    for kl in (2.0, 0.0, 9.0, 7.5, -0.3, 40.0):
        before = dict(state)
        after = dict(controller.update(state, kl, 64))
        assert dict(state) == before
        assert dict(controller.update(json.loads(json.dumps(state)), kl, 64)) == after
        state = after
    assert dict(controller.start()) == dict(controller.start())


# Advantage estimators

LENGTHS, GROUPS = (4, 1, 6, 3, 2, 6), (0, 1, 0, 1, 1, 0)


def inputs(width=6, filler=0.0, dtype=torch.float64):
    rng = np.random.default_rng(3)
    mask_BT = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    noise = [torch.tensor(rng.normal(size=(len(LENGTHS), 6)), dtype=dtype) for _ in range(2)]
    padded = [torch.nn.functional.pad(x, (0, width - 6)).masked_fill(~mask_BT, filler) for x in noise]
    scores_B = torch.tensor(rng.normal(size=len(LENGTHS)), dtype=dtype)
    ended_B = torch.tensor([True, False, True, True, False, True])
    return AdvantageInputs(padded[0], mask_BT, scores_B, torch.tensor(GROUPS), ended_B, padded[1], scores_B / 2)


def tensors(batch):
    return {f.name: value for f in dataclasses.fields(batch) if isinstance(value := getattr(batch, f.name), torch.Tensor)}


def estimates(estimator, batch, state=None):
    estimate = estimator.estimate(batch, state or {})
    return {"advantages": estimate.advantages_BT, "returns": estimate.returns_BT}, dict(estimate.state)


@pytest.mark.parametrize("estimator", of("advantage"))
def test_masked_places_are_0_and_shapes_are_kept(estimator):
    batch = inputs(dtype=torch.float32)
    for name, x_BT in estimates(estimator, batch)[0].items():
        assert x_BT.shape == batch.mask_BT.shape and x_BT.dtype == torch.float32 and x_BT.isfinite().all(), name
        assert (x_BT[~batch.mask_BT] == 0).all(), name


@pytest.mark.parametrize("estimator", of("advantage"))
@pytest.mark.parametrize("filler", [0.0, 1e9, math.nan, math.inf])
def test_padding_and_what_stands_in_it_change_nothing(estimator, filler):
    plain, state = estimates(estimator, inputs())
    wide, same_state = estimates(estimator, inputs(width=11, filler=filler))
    for name in plain:
        torch.testing.assert_close(wide[name][:, :6], plain[name], atol=1e-12, rtol=0)
        assert (wide[name][:, 6:] == 0).all()
    assert same_state == pytest.approx(state)


@pytest.mark.parametrize("estimator", of("advantage"))
@pytest.mark.parametrize("order", [[2, 1, 5, 4, 3, 0], [5, 4, 3, 2, 1, 0], [1, 3, 4, 0, 2, 5]], ids=str)
def test_the_order_of_sequences_and_the_numbers_of_groups_change_nothing(estimator, order):
    index = torch.tensor(order)
    batch = inputs()
    moved = dataclasses.replace(batch, **{name: x[index] for name, x in tensors(batch).items()})
    moved = dataclasses.replace(moved, group_B=7 - 3 * moved.group_B)
    plain, shuffled = estimates(estimator, batch)[0], estimates(estimator, moved)[0]
    for name in plain:
        torch.testing.assert_close(shuffled[name], plain[name][index], atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", of("advantage"))
def test_an_estimate_is_pure(estimator):
    """Inputs and state are left as they are, the same comes out twice, and the new state is JSON of numbers."""
    batch, state = inputs(filler=5.0), estimates(estimator, inputs())[1]
    copies, before = {name: x.clone() for name, x in tensors(batch).items()}, dict(state)
    first, after = estimates(estimator, batch, state)
    again, after_json = estimates(estimator, batch, json.loads(json.dumps(state)))
    assert all(torch.equal(x, copies[name]) for name, x in tensors(batch).items()) and state == before
    assert all(torch.equal(first[name], again[name]) for name in first) and after == after_json
    assert all(math.isfinite(value) for value in after.values())


@pytest.mark.parametrize("estimator", of("advantage"))
def test_it_asks_for_what_it_reads(estimator):
    """Without the optional inputs that it does not name, nothing changes."""
    batch = inputs()
    optional = {"values_BT": "values", "greedy_scores_B": "greedy_scores"}
    bare = dataclasses.replace(batch, **{field: None for field, need in optional.items() if need not in estimator.needs})
    assert torch.equal(estimates(estimator, bare)[0]["advantages"], estimates(estimator, batch)[0]["advantages"])


# Objectives

OPTIONAL = {"ref_logprobs_BT": "ref_logprobs", "old_values_BT": "values"}


def update(rows=slice(None), filler=0.0, keep=lambda name: True):
    """New log-probs, entropies and values (leaves), and the minibatch; cut to `rows`, with `filler` where it is masked."""
    rng = np.random.default_rng(5)
    mask_BT = torch.arange(6) < torch.tensor(LENGTHS)[:, None]

    def draw(scale=1.0, shift=0.0):
        x_BT = torch.tensor(shift + scale * rng.normal(size=mask_BT.shape))
        return x_BT.masked_fill(~mask_BT, filler)[rows]

    logprobs, old, ref = draw(0.8, -2.0), draw(0.8, -2.0), draw(0.8, -2.0)
    new = [logprobs, draw(0.1, 1.0), draw()]
    weights = torch.tensor(rng.uniform(0.1, 1.0, mask_BT.shape)).masked_fill(~mask_BT, 0.0)
    fields = {"old_logprobs_BT": old, "ref_logprobs_BT": ref}
    fields |= {name: draw() for name in ("advantages_BT", "returns_BT", "old_values_BT")}
    batch = Minibatch(
        mask_BT=mask_BT[rows], weights_BT=weights[rows], token_weights_BT=(mask_BT / mask_BT.sum())[rows],
        scores_B=torch.zeros(6)[rows], beta=0.0, **{name: x if keep(name) else None for name, x in fields.items()},
    )  # fmt: skip
    return [x.requires_grad_() for x in new], batch


def evaluated(term, leaves, batch):
    """Value, metrics, and gradients by the three differentiable quantities (0 where they are not used)."""
    loss = term.loss(PolicyOutput(*leaves), batch)
    gradients = torch.autograd.grad(loss.value, leaves, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True)]
    return loss.value.detach(), {name: value.detach() for name, value in loss.metrics.items()}, gradients


@pytest.mark.parametrize("term", of("objective"))
def test_a_term_does_not_depend_on_masked_places(term):
    """Value, metrics and gradient are the same whatever finite number stands there, and its own gradient there is 0."""
    value, metrics, gradients = evaluated(term, *update())
    same_value, same_metrics, same_gradients = evaluated(term, *update(filler=0.7))
    mask_BT = update()[1].mask_BT
    torch.testing.assert_close(same_value, value, atol=1e-12, rtol=0)
    assert {k: v.item() for k, v in same_metrics.items()} == pytest.approx({k: v.item() for k, v in metrics.items()}, abs=1e-12)
    for same, gradient in zip(same_gradients, gradients, strict=True):
        torch.testing.assert_close(same, gradient, atol=1e-12, rtol=0)
        assert (gradient[~mask_BT] == 0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("term", of("objective"))
@pytest.mark.parametrize("sizes", [(1,) * 6, (2, 4), (5, 1)], ids=str)
def test_a_term_adds_up_over_micro_batches(term, sizes):
    """Values, metrics and gradients of the parts are those of the whole."""
    value, metrics, gradients = evaluated(term, *update())
    edges = np.cumsum([0, *sizes])
    parts = [evaluated(term, *update(slice(a, b))) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(sum(part[0] for part in parts), value, atol=1e-12, rtol=0)
    for name, whole in metrics.items():
        torch.testing.assert_close(sum(part[1][name].double() for part in parts), whole.double(), atol=1e-6, rtol=0)
    for i, gradient in enumerate(gradients):
        torch.testing.assert_close(torch.cat([part[2][i] for part in parts]), gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize("term", of("objective"))
def test_a_term_is_a_pure_function_that_asks_for_what_it_reads(term):
    """Twice the same; inputs untouched; optional fields that it does not name may be missing."""
    leaves, batch = update()
    copies = {name: x.clone() for name, x in tensors(batch).items()}
    value, _, gradients = evaluated(term, leaves, batch)
    assert all(torch.equal(x, copies[name]) for name, x in tensors(batch).items())
    lean_leaves, lean = update(keep=lambda name: OPTIONAL.get(name, "") in ("", *term.needs))
    optional = zip(lean_leaves[1:], ("entropy", "values"), strict=True)
    offered = [lean_leaves[0], *[x if need in term.needs else None for x, need in optional]]
    loss = term.loss(PolicyOutput(*offered), lean)
    assert torch.equal(loss.value.detach(), value)
    used = [i for i, x in enumerate(offered) if x is not None]
    for i, gradient in zip(used, torch.autograd.grad(loss.value, [offered[i] for i in used], allow_unused=True), strict=True):
        assert torch.equal(torch.zeros_like(gradients[i]) if gradient is None else gradient, gradients[i])


@pytest.mark.parametrize("term", of("objective"))
def test_a_term_has_a_weight_and_scalar_results(term):
    value, metrics, _ = evaluated(term, *update())
    assert term.weight >= 0 and value.shape == () and all(metric.shape == () for metric in metrics.values())
    assert hash(term) == hash(component("objective", json.loads(term.model_dump_json())))


# Losses of the reward model

NOT_SHIFT_INVARIANT = {"centred"}
SCORES, RATINGS = [[0.3, -1.0, 2.0, 0.5], [1.5, 0.2, -0.4, 0.0]], [[0.0, 2.0, 1.0, 1.0], [1.0, 0.0, 0.0, 3.0]]


def reward_loss(kind, scores=SCORES, ratings=RATINGS, mask=None):
    scores_BK = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    ratings_BK = torch.tensor(ratings, dtype=torch.float64)
    mask_BK = torch.ones_like(ratings_BK, dtype=torch.bool) if mask is None else torch.tensor(mask)
    losses_B = kind.losses(scores_BK, ratings_BK, mask_BK)
    return losses_B.detach(), torch.autograd.grad(losses_B.sum(), scores_BK)[0]


@pytest.mark.parametrize("kind", of("reward_loss"))
def test_ties_contribute_nothing(kind):
    losses_B, slopes_BK = reward_loss(kind, [[1.0, 2.0, -3.0]], [[4.0, 4.0, 4.0]])
    assert losses_B.item() == pytest.approx(0.0, abs=1e-12) and slopes_BK.abs().max() < 1e-12


@pytest.mark.parametrize("kind", of("reward_loss"))
@pytest.mark.parametrize("filler", [0.0, 1e9, -1e9, math.nan])
def test_padding_of_k_changes_nothing(kind, filler):
    plain_B, plain_BK = reward_loss(kind)
    wide = [[[*row, filler, filler] for row in rows] for rows in (SCORES, RATINGS)]
    losses_B, slopes_BK = reward_loss(kind, *wide, [[True] * 4 + [False] * 2] * 2)
    torch.testing.assert_close(losses_B, plain_B, atol=1e-12, rtol=0)
    torch.testing.assert_close(slopes_BK[:, :4], plain_BK, atol=1e-12, rtol=0)
    assert (slopes_BK[:, 4:] == 0).all()


@pytest.mark.parametrize("kind", of("reward_loss"))
def test_a_constant_added_to_a_prompts_scores_changes_nothing_unless_it_is_said(kind):
    shifted_B, _ = reward_loss(kind, [[s + 3.0 for s in SCORES[0]], [s - 1.0 for s in SCORES[1]]])
    same = torch.allclose(shifted_B, reward_loss(kind)[0], atol=1e-12)
    assert same != (kind.name in NOT_SHIFT_INVARIANT)
    assert same or "constant" in type(kind).__doc__


@pytest.mark.parametrize("kind", of("reward_loss"))
def test_prompts_do_not_hear_each_other_and_completions_have_no_order(kind):
    losses_B, _ = reward_loss(kind)
    order = [2, 0, 3, 1]
    for b in (0, 1):
        alone_B, _ = reward_loss(kind, [[SCORES[b][k] for k in order]], [[RATINGS[b][k] for k in order]])
        assert alone_B.item() == pytest.approx(losses_B[b].item(), abs=1e-12)


@pytest.mark.parametrize("kind", of("reward_loss"))
def test_a_better_order_costs_less(kind):
    good, _ = reward_loss(kind, [[1.0, 0.0, -1.0]], [[2.0, 1.0, 0.0]])
    bad, _ = reward_loss(kind, [[-1.0, 0.0, 1.0]], [[2.0, 1.0, 0.0]])
    assert 0 <= good.item() < bad.item()


# Rewards

TEXTS = ("w1 w2 w1 w1", "w3", "", "w1 w1 w1 w1 w1 w1", "w2 w4 w2 w4")


@pytest.mark.parametrize("reward", of("reward"))
def test_a_score_does_not_depend_on_its_batch_or_on_padding(reward, open_stage):
    """One at a time, all together, and among longer neighbours; by scorers that have seen the same before."""
    _, ctx = open_stage("rl", {"reward": "words"})
    encoder = tiny_world.encoder()

    def scorer():
        fresh = reward.open(ctx)
        fresh(encoder.encode(["w0", "w0"], ["w1 w1", "w2 w3 w4"]))
        return fresh

    def scored(prompts, texts):
        got = scorer()(encoder.encode(prompts, texts))
        scores_B = got.scores_B if isinstance(got, Scores) else got
        assert scores_B.shape == (len(texts),) and scores_B.isfinite().all() and not scores_B.requires_grad
        return scores_B.tolist()

    prompts = ["w0", "w5 w3", "w2", "w7 w8 w9", "w1"]
    together = scored(prompts, list(TEXTS))
    assert together == pytest.approx([scored([x], [y])[0] for x, y in zip(prompts, TEXTS, strict=True)], abs=1e-5)
    assert together == pytest.approx(scored([*prompts, "w0 w1 w2 w3"], [*TEXTS, "w5 " * 20])[:5], abs=1e-5)


@pytest.mark.parametrize("reward", of("reward"))
def test_every_column_has_a_number_for_each_response(reward, open_stage):
    _, ctx = open_stage("rl", {"reward": "words"})
    got = reward.open(ctx)(tiny_world.encoder().encode(["w0"] * 5, list(TEXTS)))
    own = {"kl", "kl_se", "score", "return", "entropy", "beta", "reward_proxy", "reward_gold", "step", "stage", "split"}
    columns = got.columns if isinstance(got, Scores) else {}
    assert not own & set(columns)
    for name, values in columns.items():
        assert torch.as_tensor(values).shape == (5,), name


@pytest.mark.parametrize("reward", of("reward"))
def test_a_scorer_with_state_resumes(reward, open_stage):
    """Through JSON into a fresh scorer, which then scores as the old one does."""
    _, ctx = open_stage("rl", {"reward": "words"})
    encode = tiny_world.encoder().encode
    old, new = reward.open(ctx), reward.open(ctx)
    old(encode(["w0"] * 5, list(TEXTS)))
    if hasattr(old, "state_dict"):
        new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    results = [scorer(encode(["w5", "w0"], ["w1 w2", "w1 w1 w1"])) for scorer in (old, new)]
    first, second = (r.scores_B if isinstance(r, Scores) else r for r in results)
    assert torch.equal(first, second)
