"""`rlhf-lab config` prints a spec: read back, it plans the same runs, whatever presets, arms, axes and overrides went in."""

import pytest
from micro_spec import lab, plan_of, write_spec

from rlhf_lab.declaration.overrides import parse_override
from rlhf_lab.declaration.resolved import difference, resolved_spec
from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.declaration.yaml_lines import load
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
SPECS = {
    "nothing else": (BASE, []),
    "a description that needs quotes": (BASE + 'description: "a: b # c\\n\\u00e4"\n', []),
    "arms of other components": (
        BASE + "arms: {a: {}, b: {rl.kl: {name: adaptive, target: 3}}, c: {rl: {objective: [ppo_clip], critic: none}, "
        "rl.advantage: monte_carlo}, d: {rl.objective.ppo_clip.eps: 0.1}}\n",
        [],
    ),
    "an arm with a stage of its own": (BASE + "arms: {a: {best_of_n: {}}, b: {}}\n", []),
    "a preset": (BASE.replace("base:", "base:\n  preset: instructgpt"), []),
    "a preset of an arm": (BASE + "arms: {a: {}, b: {preset: instructgpt, rl.kl.beta: 0.3}}\n", ["rl.batch_size=512"]),
    "axes": (
        BASE + "axes: [{rl.kl: [fixed, adaptive], rl.kl.target: {values: [3, 6], when: {rl.kl: adaptive}}}, "
        "{zip: {rl.steps: [5, 6], rl.batch_size: [32, 64]}}, "
        "{random: {n: 2, distributions: {rl.temperature: {uniform: [0.5, 1]}}}}]\n"
        "seeds: [3, 1]\n",
        [],
    ),
    "data from an axis": (BASE.replace("  data: micro\n", "") + "axes: {data: [micro, {name: micro, seed: 1}]}\n", []),
    "overrides": (
        BASE + "arms: {a: {}, b: {rl.kl.beta: 0.9}}\naxes: {rl.steps: [5, 6], sft.epochs: [1, 2]}\n",
        ["rl.kl.beta=0.4", "sft.epochs=3", "rl.temperature=0.5,1", "seeds=4,5", "~rl.objective.value_clip", "max_runs=99"],
    ),
    "an override below an axis": (BASE + "axes: {rl.kl: [fixed, {name: adaptive, beta: 1}]}\n", ["rl.kl.beta=0.5"]),
    "an override of a new stage": (BASE, ["+best_of_n.samples=8", "precision=bf16"]),
}


@pytest.fixture(scope="module")
def registry():
    return discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})


@pytest.mark.parametrize("case", SPECS)
def test_what_is_printed_plans_the_same_runs(tmp_path, registry, case):
    text, overrides = SPECS[case]
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    sweep = load_sweep(path, [parse_override(override) for override in overrides], registry)
    path.write_text(resolved_spec(sweep, registry))
    again = load_sweep(path, [], registry)
    plan, plan_again = plan_sweep(sweep, registry), plan_sweep(again, registry)
    assert [(r.run_id, r.arm, r.seed) for r in plan_again.runs] == [(r.run_id, r.arm, r.seed) for r in plan.runs]
    assert again.file.resources == sweep.file.resources and again.file.description == sweep.file.description
    assert resolved_spec(again, registry) == path.read_text(), "printed again, it is the same text"


def test_defaults_are_written_out(tmp_path):
    path = write_spec(tmp_path)
    printed = lab("config", path)
    assert printed.exit_code == 0
    path.write_text(printed.stdout)
    rl = load(path).data["base"]["rl"]
    assert (rl["inner_epochs"], rl["temperature"], rl["kl"]) == (1, 1.0, {"name": "fixed", "beta": 0.2})
    assert rl["objective"] == [{"name": "ppo_clip", "weight": 1.0, "eps": 0.2}]
    assert load(path).data["axes"] == {"rl.kl.beta": [0.1, 1]} and load(path).data["seeds"] == [0, 1]
    assert all(len(line) <= 128 for line in printed.stdout.splitlines())


def test_it_can_be_run(tmp_path, finished):
    """The printed spec beside the finished results: everything is there already."""
    (tmp_path / "printed.yaml").write_text(lab("config", finished.parents[1] / "spec.yaml").stdout)
    runs = plan_of(tmp_path / "printed.yaml", "--out", finished.parent)["runs"]
    assert len(runs) == 4 and all(run["done"] for run in runs)


@pytest.mark.parametrize(
    ("base", "other", "expected"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2, "b": 3}, {"a": 2, "b": 3}),
        ({"a": 1}, {"a": 1.0}, {"a": 1.0}),
        ({"k": {"name": "x", "p": 1, "q": 2}}, {"k": {"name": "x", "p": 5, "q": 2}}, {"k": {"p": 5}}),
        ({"k": {"name": "x", "p": 1}}, {"k": {"name": "y", "p": 1}}, {"k": {"name": "y", "p": 1}}),
        ({"k": None}, {"k": {"name": "y"}}, {"k": {"name": "y"}}),
        ({"k": {"name": "y"}}, {"k": None}, {"k": None}),
        ({"o": [1, 2]}, {"o": [1]}, {"o": [1]}),
    ],
)
def test_the_delta_between_two_configurations(base, other, expected):
    assert difference(base, other) == expected
