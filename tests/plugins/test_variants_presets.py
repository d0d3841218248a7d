"""Published combinations: each is a valid spec, every value arrives with a source, and each takes a step in the tiny world."""

import pytest
from tiny_world import registry

from rlhf_lab.declaration.overrides import expand_dotted, merge
from rlhf_lab.declaration.sweep import load_sweep

BUILTIN = [r.component for r in registry().registrations() if r.kind == "preset"]
NAMES = [preset.name for preset in BUILTIN]

SPEC = """
experiment: presets
base:
  preset: {name}
  data: micro
  model: {{name: scratch, hidden_size: 16, layers: 1, heads: 2}}
  sft: {{}}
  comparisons: {{labeler: grammar_gold}}
  reward_model: {{comparisons: comparisons}}
  rl: {{}}
"""


def resolved(tmp_path, name):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.format(name=name), encoding="utf-8")
    (point,) = load_sweep(path, [], registry()).points
    return point.config


def as_data(value):
    """What a spec would say: components by name and parameters."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return [as_data(item) for item in value] if isinstance(value, (list, tuple)) else value


def arrived(said, got):
    """Whether everything that was said is in the resolved value, beside defaults."""
    if isinstance(got, dict) and isinstance(said, str):
        return got["name"] == said
    if isinstance(said, dict):
        return all(arrived(value, got[key]) for key, value in said.items())
    if isinstance(said, list):
        return len(said) == len(got) and all(arrived(a, b) for a, b in zip(said, got, strict=True))
    return said == got


def test_the_field_is_there():
    assert {"instructgpt", "ziegler2019", "stiennon2020", "nplus2024", "ppo_max", "grpo", "dr_grpo", "dapo", "rloo",
            "reinforce_pp", "remax", "gspo", "cispo", "a2c", "raft", "instructgpt_ppo"} <= set(NAMES)  # fmt: skip


@pytest.mark.parametrize("preset", BUILTIN, ids=NAMES)
def test_every_number_has_a_source(preset):
    assert preset.doc.strip()
    for path, (_, source) in preset.values.items():
        assert len(source.strip()) >= 1, path


@pytest.mark.parametrize("preset", BUILTIN, ids=NAMES)
def test_every_value_arrives_in_a_spec_of_the_micro_world(preset, tmp_path):
    config = resolved(tmp_path, preset.name)
    for path, (value, _) in preset.values.items():
        stage, *parts = path.split(".")
        got = as_data(config.stages[stage])
        for part in parts:
            got = got[part]
        assert arrived(value, got), f"{path}: {value} became {got}"


@pytest.mark.parametrize("preset", BUILTIN, ids=NAMES)
def test_no_preset_says_what_is_the_users_to_say(preset):
    """Data, base model, template, gold reward, seeds: nobody published those for another world."""
    assert {path.split(".")[0] for path in preset.values} <= {"sft", "rl_init", "reward_model", "rl"}
    assert not any(path.startswith("rl.gold") for path in preset.values)


SMALL = {"steps": 3, "batch_size": 16, "samples_per_prompt": 4, "response_length": 4, "max_prompt_tokens": None,
         "evaluation": {"prompts": 4, "every": 3, "baseline": None}}  # fmt: skip


WITH_RL = [p for p in BUILTIN if any(path.startswith("rl.") for path in p.values)]
ALONE = [p for p in WITH_RL if "rl.name" not in p.values and not any(path.startswith("rl_init.") for path in p.values)]


@pytest.mark.parametrize("preset", ALONE, ids=lambda p: p.name)
def test_each_takes_steps_in_the_tiny_world(preset, run_stage):
    """All of the preset's choices for RL but its sizes. (`instructgpt` reads a stage that the tiny world lacks.)"""
    values = expand_dotted({path: value for path, (value, _) in preset.values.items()})["rl"]
    small = SMALL | ({"minibatches": 2} if values.get("minibatches", 1) > 1 else {})
    rows = run_stage("rl", merge(values, small)).rows("train")
    assert [row["step"] for row in rows] == [0, 1, 2] and all(row["kl"] == row["kl"] for row in rows)
    assert rows[2]["kl"] != rows[0]["kl"]  # DAPO's warm-up starts with a learning rate of 0


# Numbers that tutorials get wrong, against the papers.


@pytest.mark.parametrize(
    "name, path, expected",
    [
        ("ziegler2019", "rl.kl.gain", 512 / 10_000),
        ("ziegler2019", "rl.inner_epochs", 4),
        ("stiennon2020", "rl.kl.beta", 0.05),
        ("nplus2024", "rl.no_eos_score", -1.0),
        ("nplus2024", "rl.steps", 1_000_000 // 512),
        ("nplus2024", "rl.max_grad_norm", None),
        ("rloo", "rl.kl.beta", 0.03),
        ("instructgpt", "rl.inner_epochs", 1),
    ],
)
def test_numbers_of_the_papers(name, path, expected):
    preset = next(p for p in BUILTIN if p.name == name)
    assert preset.values[path][0] == expected


def test_methods_without_kl_have_none_in_the_reward_and_grpo_has_it_in_the_loss():
    terms = {p.name: {t["name"]: t for t in p.values["rl.objective"][0]} for p in BUILTIN if "rl.objective" in p.values}
    values = {p.name: {path: value for path, (value, _) in p.values.items()} for p in BUILTIN}
    assert all(values[name]["rl.kl"] == "none" for name in ("dr_grpo", "dapo", "gspo", "cispo", "raft"))
    in_loss = {name for name, said in values.items() if said.get("rl.kl_placement") == "loss"}
    assert in_loss == {name for name, found in terms.items() if "kl_loss" in found} >= {"grpo"}
    assert values["grpo"]["rl.kl"] == {"name": "fixed", "beta": 0.04}
    assert terms["grpo"]["kl_loss"] == {"name": "kl_loss", "estimator": "k3", "importance_weight": False}


def test_instructgpt_without_ptx_is_instructgpt_but_for_one_term():
    ptx, ppo = (next(p for p in BUILTIN if p.name == name).values for name in ("instructgpt", "instructgpt_ppo"))
    assert [term["name"] for term in ppo["rl.objective"][0]] == ["ppo_clip", "value_clip"]
    assert {path: value for path, value in ptx.items() if path != "rl.objective"} == {
        path: value for path, value in ppo.items() if path != "rl.objective"
    }
