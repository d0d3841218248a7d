"""No policy lies above the reward–KL frontier: every preset and every advantage estimator, in worlds that are enumerated.

The optimum bounds all policies, whatever made them; a policy above it would mean that KL or reward is measured wrongly, or that
what is saved is not what was measured. What each one trains is read from the folder that it saved.
"""

import pytest
import tiny_world
from enumerated_world import DATA, TINY, known
from tiny_world import registry

from rlhf_lab.declaration.overrides import expand_dotted, merge
from rlhf_lab.lm.files import load_causal_lm
from rlhf_lab_plugins.model.tabular import load_table


def is_online(preset):
    """Whether it is about stage `rl`, and not about a stage of that name which learns from comparisons."""
    values = {path: value for path, (value, _) in preset.values.items()}
    return values.get("rl.name", "rl") == "rl" and any(path.startswith("rl.") for path in values)


PRESETS = [r.component for r in registry().registrations() if r.kind == "preset" and is_online(r.component)]
ADVANTAGES = registry().names("advantage")

# Of a preset its choices; sizes and rates are such that the policy moves within a second.
SIZES = {
    "steps": 6, "batch_size": 32, "minibatches": 2, "samples_per_prompt": 4, "response_length": 3, "max_prompt_tokens": None,
    "temperature": 1.0, "learning_rate": 0.02, "schedule": "linear", "warmup_steps": 0,
    "reward": {"name": "table", "scale": 2.0},
    "evaluation": {"every": 10_000, "log_samples": 0, "prompts": 2, "baseline": None},
}  # fmt: skip


def run(stage, parameters, folder, inputs, model):
    """A stage of the enumerable world, and what it wrote."""
    folder.mkdir()
    ctx = tiny_world.context(stage, parameters, folder, folder, inputs=inputs, data=DATA, model=model)
    ctx.config.stages[stage].run(ctx)
    return tiny_world.Finished(folder)


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    """A tiny transformer, trained on the world's demonstrations."""
    parameters = {"epochs": 2, "learning_rate": 0.01, "sample_length": 3, "log_samples": 0}
    return run("sft", parameters, tmp_path_factory.mktemp("world") / "sft", {}, TINY).folder


@pytest.fixture(scope="module")
def transformer_world(sft):
    return known(load_causal_lm(sft))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_presets_on_a_transformer(preset, sft, transformer_world, tmp_path):
    values = expand_dotted({path: value for path, (value, _) in preset.values.items()})["rl"]
    critic = "none" if values.get("critic") == "none" else {"name": "value_model", "init": "sft", "learning_rate": 0.01}
    chosen = merge({key: value for key, value in values.items() if key not in ("policy", "critic")}, SIZES)
    done = run("rl", {**chosen, "critic": critic}, tmp_path / "rl", {"sft": sft}, TINY)
    law_XN = transformer_world.law(load_causal_lm(done.folder / "policy"))
    kl, _ = transformer_world.kl_and_reward(law_XN)
    assert kl > 1e-4 and transformer_world.gap(law_XN) >= -1e-9


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantage_estimators_on_a_table(name, tmp_path):
    """With exact KL and reward of what each trains, with a table of values for those that need one."""
    try:
        needs = registry().choose("advantage", name).needs
    except ValueError:
        pytest.skip("cannot be made without parameters")
    exactly = known()
    valued = {"critic": "tabular", "objective": ["ppo_clip", "value_clip"]} if "values" in needs else {"critic": "none"}
    parameters = SIZES | {"objective": ["ppo_clip"]} | valued | {
        "policy": "tabular", "advantage": name, "learning_rate": 0.1, "steps": 20, "kl": {"name": "fixed", "beta": 0.1},
        "samples_per_prompt": 4 if "groups" in needs else 1, "reward": "table",
    }  # fmt: skip
    done = run("rl", parameters, tmp_path / "rl", {}, "tabular")
    law_XN = exactly.law(load_table(done.folder / "policy"))
    kl, reward = exactly.kl_and_reward(law_XN)
    assert exactly.gap(law_XN) >= -1e-9
    assert kl > 0.01 and reward > exactly.kl_and_reward(exactly.ref_XN)[1]
