"""Sweeps of real specs: zip, random, conditions, blocks and overrides, down to validated configurations."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from micro_spec import lab, plan_of, refused, write_spec

from rlhf_lab.declaration.overrides import parse_override
from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.errors import SpecError
from rlhf_lab.registry import discover
from rlhf_lab.running.plan import plan_sweep

BASE = """\
experiment: kl
base:
  data: micro
  model: scratch
  sft: {epochs: 2}
  reward_model: {}
  rl: {kl: {name: fixed, beta: 0.2}}
"""
ARMS = "arms: {fixed: {}, adaptive: {rl.kl: {name: adaptive, target: 6}}}\n"


@pytest.fixture(scope="module")
def registry():
    return discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, registry):
    path = tmp_path_factory.mktemp("sweeps") / "spec.yaml"

    def load(added="", *overrides, base=BASE):
        path.write_text(base + added)
        return load_sweep(path, [parse_override(text) for text in overrides], registry)

    return load


@pytest.fixture(scope="module")
def wrong(sweep):
    def wrong(added="", *overrides):
        with pytest.raises(SpecError) as caught:
            sweep(added, *overrides)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return wrong


def rl(point, *keys):
    value = point.config.stages["rl"]
    for key in keys:
        value = getattr(value, key)
    return value


def arms_and_axes(sweep):
    return [(point.arm, dict(point.axes)) for point in sweep.points]


# The forms of axes


def test_a_zip_beside_a_grid(sweep):
    axes = "axes:\n  rl.steps: [5, 6]\n  zip: {rl.learning_rate: [1e-4, 3e-4], rl.batch_size: [32, 64]}\n"
    points = sweep(axes).points
    got = [(rl(p, "steps"), rl(p, "learning_rate"), rl(p, "batch_size")) for p in points]
    assert got == [(5, 1e-4, 32), (5, 3e-4, 64), (6, 1e-4, 32), (6, 3e-4, 64)]


def test_random_draws_are_the_same_in_every_arm_and_for_every_value_of_a_grid(sweep):
    axes = "axes: {rl.steps: [5, 6], random: {n: 3, distributions: {rl.temperature: {uniform: [0.5, 1]}}}}\n"
    points = sweep(ARMS + axes).points
    drawn = {}
    for point in points:
        drawn.setdefault((point.arm, rl(point, "steps")), []).append(rl(point, "temperature"))
    assert len(points) == 12 and len(drawn) == 4
    (values,) = {tuple(values) for values in drawn.values()}
    assert len(set(values)) == 3 and all(0.5 <= value <= 1 for value in values)


def test_a_condition_sees_what_the_arm_says_and_defaults_too(sweep):
    axes = "axes: {rl.kl.target: {values: [3, 9], when: {rl.kl: adaptive}}}\n"
    assert arms_and_axes(sweep(ARMS + axes)) == [
        ("fixed", {}),
        ("adaptive", {"rl.kl.target": 3}),
        ("adaptive", {"rl.kl.target": 9}),
    ]
    for condition, n in [("rl.inner_epochs: 4", 2), ("rl.inner_epochs: {gt: 4}", 0), ("rl.evaluation.every: 5", 2)]:
        added = f"arms: {{a: {{}}}}\naxes: [{{}}, {{rl.steps: [3, 4], when: {{{condition}}}}}]\n"
        if n:
            assert len(sweep(added).points) == 1 + n
        else:
            with pytest.raises(SpecError, match="the `when` of this block holds for no run"):
                sweep(added)


def test_a_block_for_some_arms(sweep):
    axes = "axes:\n  - {rl.kl.beta: [0.1, 0.2], when: {arm: fixed}}\n  - {rl.kl.target: [3], when: {arm: [adaptive]}}\n"
    points = sweep(ARMS + axes).points
    assert [(p.arm, rl(p, "kl", "name"), rl(p, "kl", "beta")) for p in points] == [
        ("fixed", "fixed", 0.1),
        ("fixed", "fixed", 0.2),
        ("adaptive", "adaptive", 0.15),
    ]


def test_each_run_has_a_value_for_each_axis_of_any_block(sweep):
    axes = "axes:\n  - {rl.kl.beta: [0.1, 0.3]}\n  - {rl.steps: [7], rl.kl: [adaptive]}\n  - {rl.temperature: [0.5]}\n"
    assert [point.axes for point in sweep(axes).points] == [
        {"rl.kl.beta": 0.1, "rl.steps": 100, "rl.kl": {"name": "fixed", "beta": 0.1}, "rl.temperature": 1.0},
        {"rl.kl.beta": 0.3, "rl.steps": 100, "rl.kl": {"name": "fixed", "beta": 0.3}, "rl.temperature": 1.0},
        {"rl.kl.beta": 0.15, "rl.steps": 7, "rl.kl": "adaptive", "rl.temperature": 1.0},
        {"rl.kl.beta": 0.2, "rl.steps": 100, "rl.kl": {"name": "fixed", "beta": 0.2}, "rl.temperature": 0.5},
    ]


def test_seeds_are_shared_by_all_arms_and_blocks(sweep):
    axes = "axes: [{rl.steps: [5, 6]}, {rl.temperature: [0.5]}]\nseeds: [4, 0, 7]\n"
    points = sweep(ARMS + axes).points
    by_run = {}
    for point in points:
        by_run.setdefault((point.arm, rl(point, "steps"), rl(point, "temperature")), []).append(point.seed)
    assert len(by_run) == 2 * 3 and set(map(tuple, by_run.values())) == {(4, 0, 7)}


def test_an_axis_of_a_stage_that_an_arm_lacks_is_not_varied_there(sweep):
    added = "arms: {a: {}, b: {best_of_n: {}}}\naxes: {best_of_n.samples: [8, 16]}\n"
    assert arms_and_axes(sweep(added)) == [("a", {}), ("b", {"best_of_n.samples": 8}), ("b", {"best_of_n.samples": 16})]


# Duplicates


def test_one_factor_at_a_time_meets_in_the_middle(sweep, registry):
    axes = "axes: [{rl.kl.beta: [0.02, 0.2]}, {rl.learning_rate: [3e-4, 1e-3]}, {rl.steps: [50, 100]}]\nseeds: [0, 1]\n"
    plan = plan_sweep(sweep(axes), registry)
    assert len(plan.runs) == 2 * 4, "beta 0.2, learning rate 3e-4 and 100 steps are one run"
    assert plan.duplicates == 2 * 2 and plan.dropped == {"the same values again": 4}


def test_what_was_dropped_is_told_by_its_reason(sweep, registry):
    arms = "arms: {a: {}, b: {rl.kl.beta: 0.2}, c: {rl.steps: 5}}\n"
    assert plan_sweep(sweep(arms + "seeds: [0, 1]\n"), registry).dropped == {"arm 'b' is arm 'a' again": 2}
    plan = plan_sweep(sweep("seeds: [0, 1, 2]\n", "rl.seed=5"), registry)
    assert (len(plan.runs), plan.dropped) == (1, {"no stage follows the seed of the run": 2})


def test_the_user_is_told(tmp_path):
    path = write_spec(tmp_path, axes="axes: {rl.kl.beta: [0.1, 0.1]}", arms="arms: {a: {}, b: {}}", seeds="seeds: [0]")
    lines = lab("plan", path).stdout.splitlines()
    assert "dropped 1 duplicate: the same values again" in lines
    assert "dropped 2 duplicates: arm 'b' is arm 'a' again" in lines
    assert plan_of(path)["dropped"] == {"the same values again": 1, "arm 'b' is arm 'a' again": 2}


VALUES = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=3)
AXES = st.dictionaries(st.sampled_from(["rl.steps", "rl.kl.beta", "sft.epochs"]), VALUES, max_size=3)


@settings(max_examples=25, deadline=None)
@given(AXES, st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=2, unique=True), st.randoms(use_true_random=False))
def test_runs_and_duplicates_add_up_to_the_product_and_order_changes_no_run(sweep, registry, axes, seeds, random):
    def planned(axes, seeds):
        return plan_sweep(sweep(f"axes: {json.dumps(axes)}\nseeds: {seeds}\n"), registry)

    plan = planned(axes, seeds)
    distinct = set(itertools.product(*map(set, axes.values()), seeds))
    assert len(plan.runs) == len(distinct)
    assert len(plan.runs) + plan.duplicates == len(list(itertools.product(*axes.values(), seeds)))
    again = planned(axes, seeds)
    assert [run.run_id for run in again.runs] == [run.run_id for run in plan.runs]
    items = random.sample(sorted(axes.items()), len(axes))
    shuffled = planned({path: random.sample(values, len(values)) for path, values in items}, random.sample(seeds, len(seeds)))
    assert {run.run_id for run in shuffled.runs} == {run.run_id for run in plan.runs}


# Overrides


def test_one_value_takes_an_axis_out_of_every_block_and_zip(sweep):
    axes = "axes: [{rl.kl.beta: [0.1, 0.3]}, {zip: {rl.kl.beta: [1, 2], rl.steps: [5, 6]}}]\n"
    points = sweep(axes, "rl.kl.beta=0.5").points
    assert [(rl(p, "kl", "beta"), rl(p, "steps")) for p in points] == [(0.5, 100), (0.5, 5), (0.5, 6)]


def test_several_values_are_an_axis_of_every_block(sweep):
    points = sweep("axes: [{rl.steps: [5]}, {rl.temperature: [0.5]}]\n", "rl.kl.beta=0,0.05").points
    assert [(rl(p, "steps"), rl(p, "temperature"), rl(p, "kl", "beta")) for p in points] == [
        (5, 1.0, 0),
        (5, 1.0, 0.05),
        (100, 0.5, 0),
        (100, 0.5, 0.05),
    ]


def test_an_override_of_a_stage_that_only_an_arm_has(sweep):
    points = sweep("arms: {a: {}, b: {best_of_n: {}}}\n", "best_of_n.samples=8").points
    assert [len(p.config.stages) for p in points] == [3, 4]
    assert points[1].config.stages["best_of_n"].samples == 8


def test_a_stage_is_added_by_a_plus(sweep, wrong):
    assert wrong("", "best_of_n.samples=8") == (
        "override best_of_n.samples=8: this spec has no stage 'best_of_n'; +best_of_n.samples=… adds one"
    )
    assert wrong("", "rll.steps=8") == "override rll.steps=8: this spec has no stage 'rll' (did you mean 'rl'?)"
    (point,) = sweep("", "+best_of_n.samples=8").points
    assert point.config.stages["best_of_n"].samples == 8
    (point,) = sweep("", "best_of_n={samples: 8}").points
    assert point.config.stages["best_of_n"].samples == 8


# Errors, with their places


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            "axes:\n  zip:\n    rl.steps: [5, 6]\n    rl.batch_size: [32]\n",
            "spec.yaml:9:3: the axes of a zip go in step, so they need equally many values: rl.steps has 2, rl.batch_size has ",
        ),
        ("axes:\n  - rl.steps: [5]\n  - rl.steps: 5\n", "spec.yaml:10:5: axis 'rl.steps' must be a list of values, not 5"),
        ("axes: {zip: {rl.steps: [5, 0]}}\n", "spec.yaml:8:28: rl.steps must be ≥ 1, not 0"),
        (
            "axes: {rl.steps: {values: [5, x]}}\n",
            "spec.yaml:8:31: rl.steps must be a whole number, not 'x'",
        ),
        (
            "axes: {random: {n: 2, distributions: {rl.steps: {uniform: [0.1, 0.2]}}}}\n",
            "spec.yaml:8:39: rl.steps must be a whole number, not 0.",
        ),
        (
            "axes: {random: {n: 2, distributions: {rl.steps: {unifrom: [1, 2]}}}}\n",
            "spec.yaml:8:39: unknown distribution 'unifrom' (did you mean 'uniform'?)",
        ),
        (
            "axes: {rll.steps: [5]}\n",
            "spec.yaml:8:8: no arm uses axis 'rll.steps': no stage is called 'rll' (did you mean 'rl'",
        ),
        (
            "axes: {rl.kl.target: {values: [5], when: {rl.kl: adaptve}}}\n",
            "spec.yaml:8:23: no arm uses axis 'rl.kl.target': its `when` never holds",
        ),
        ("axes: [{}, {rl.steps: [5], when: {rl.kl: none}}]\n", "spec.yaml:8:28: the `when` of this block holds for no run"),
        (
            ARMS + "axes: {rl.steps: [5], when: {arm: fixed}}\n",
            "spec.yaml:8:19: arm 'adaptive' has no runs, for no block's `when` holds for it",
        ),
        (
            ARMS + "axes: {rl.steps: [5], when: {arm: adaptve}}\n",
            "spec.yaml:9:30: no arm is called 'adaptve' (did you mean 'adaptive'?)",
        ),
        (
            ARMS + "axes: {rl.kl.target: [5]}\n",
            "spec.yaml:9:23: unknown key 'target' in rl.kl; it has beta; in arm 'fixed': `when` limits an axis to some arms",
        ),
        (
            "max_runs: 3\naxes: {rl.steps: [1, 2, 3, 4], when: {rl.steps: {gt: 0}}}\n",
            "spec.yaml:9:1: the sweep has more than max_runs: 3 runs",
        ),
    ],
)
def test_where_a_sweep_is_wrong(wrong, added, message):
    assert wrong(added).startswith(message)


def test_a_condition_that_leaves_next_to_nothing_of_very_many_is_refused_in_time(wrong):
    grid = ", ".join(f"rl.{key}: {list(range(1, 41))}" for key in ("steps", "inner_epochs", "warmup_steps"))
    message = wrong(f"max_runs: 10\naxes: {{{grid}, when: {{rl.steps: 41}}}}\n")
    assert message.startswith("spec.yaml:9:") and "this condition leaves few of more than 1100 combinations" in message


def test_a_million_runs_are_refused_at_once(tmp_path):
    values = ", ".join(map(str, range(1, 101)))
    path = write_spec(tmp_path, axes=f"axes: {{rl.steps: [{values}], rl.batch_size: [{values}], sft.epochs: [{values}]}}")
    assert refused(path).endswith("the sweep has 2000000 runs, more than max_runs: 10000")


def test_a_circle_of_stages_has_a_place(tmp_path):
    path = write_spec(tmp_path)
    text = path.read_text().replace("sft: {", "sft: {init: other, ")
    path.write_text(text.replace("  rl:\n", "  other: {name: sft, init: sft}\n  rl:\n"))
    assert refused(path) == (
        "spec.yaml:5:9: stages read each other in a circle: sft → other → sft; let one of them read something else"
    )
