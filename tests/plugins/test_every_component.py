"""The laws of the kit (`rlhf_lab.testing`) over everything that is registered, and rules of this house for what we ship."""

import json

import pytest

from rlhf_lab.registry import discover
from rlhf_lab.testing import laws

DISTRIBUTION = "rlhf-lab"
BUILTIN = [r.component for r in discover([], {"RLHF_LAB_LOAD_PLUGINS": ""}).registrations() if r.distribution == DISTRIBUTION]
PUBLISHED = ("advantage", "objective", "reward_loss", "preference_loss", "kl_controller")
OWN = {"kl_controller.schedule"}

# What the kit cannot guess: texts that belong together, and what is too large for a test at its defaults.
PAIR = ["words", "response_tokens"]
SMALL_RL = {
    "reward": "words",
    "gold": "response_tokens",
    "steps": 2,
    "batch_size": 4,
    "inner_epochs": 2,
    "response_length": 4,
    "evaluation": {"every": 1, "prompts": 2},
}
SETTINGS = {
    "reward.ensemble": [{"members": PAIR, "how": how} for how in ("uncertainty_weighted", "worst_case", "mean")],
    "reward.normalized": [{"source": "words", "samples": 16, "response_length": 6}],
    "reward.table": [{"scores": {"": 0.5}}, {}],
    "data.micro": [{"sentences": 64, "pretraining_sentences": 8}],
    "data.enumerable": [{"prompts": ["b"], "demonstrations": 8}, {}],
    "model.scratch": [{"hidden_size": 16, "layers": 1, "heads": 2}, {"architecture": "gpt2", "hidden_size": 16, "heads": 2}],
    "stage.best_of_n": [{"reward": "words", "prompts": 2, "samples": 4, "n": [1, 2], "response_length": 5}],
    "stage.comparisons": [{"labeler": "words", "prompts": 12, "validation_prompts": 12, "response_length": 6}],
    "stage.evaluate": [{"reward": "words", "response_length": 4, "evaluation": {"prompts": 2}}],
    "stage.preference": [{"batch_size": 8, "evaluation": {"prompts": 2}, "response_length": 4}],
    "stage.rejection_sampling": [
        {"reward": "words", "prompts": 4, "validation_prompts": 2, "samples": 3, "response_length": 4}
    ],
    "stage.reward_model": [{"normalize_examples": 16, "sample_length": 6}],
    "stage.rl": [
        SMALL_RL,
        {**SMALL_RL, "critic": "none", "advantage": "rloo", "objective": ["ppo_clip"], "samples_per_prompt": 2},
    ],
    "stage.sft": [{"log_samples": 2, "sample_length": 6, "dropout": 0.1}],
}
EXPECTED_FAILURES = {
    "reward.ensemble": {"each_parameter_counts": "`stage` is for a number of members; plugins/test_variants_rewards.py"},
    "model.scratch": {"each_parameter_counts": "`architecture` and `tokenizer` are texts; plugins/test_models.py"},
}
ELSEWHERE = {
    "reward.http": "needs a server: plugins/test_http_reward.py",
    "reward.hub_classifier": "needs weights: plugins/test_variants_rewards.py",
    "model.gguf": "needs a file: plugins/test_models.py",
    "model.hf": "needs a folder: plugins/test_models.py",
    "model.tabular": "needs a world that is enumerated: plugins/test_enumerable_world.py",
    "policy.tabular": "needs a world that is enumerated: plugins/test_enumerable_world.py",
    "critic.tabular": "needs a world that is enumerated: plugins/test_enumerable_world.py",
    "data.jsonl": "needs files: plugins/test_jsonl.py",
    "stage.enumeration": "needs a world that is enumerated: plugins/test_enumerable_world.py",
    "stage.export_world": "needs the world that it exports: experiments",
    "launcher.local": "starts processes: launchers",
    "launcher.ray": "starts processes: launchers",
    "launcher.slurm": "starts processes: launchers",
}

test_laws = laws(DISTRIBUTION, settings=SETTINGS, expected_failures=EXPECTED_FAILURES, elsewhere=ELSEWHERE)


def named(c):
    return f"{c.kind}.{c.name}"


@pytest.mark.parametrize("c", [c for c in BUILTIN if c.kind in PUBLISHED and named(c) not in OWN], ids=named)
def test_what_a_paper_defines_is_cited(c):
    """Losses, estimators and controllers name a year; sentences about this project's own need not."""
    said = (c.__doc__ or "") + json.dumps([f.json_schema_extra for f in c.model_fields.values()])
    assert any(str(year) in said for year in range(1950, 2030)) or "lm-human-preferences" in said


def test_each_kind_has_a_component_that_the_laws_look_at():
    """So that the laws of a kind are not held against nothing."""
    from rlhf_lab.testing import LAWS

    assert set(LAWS) <= {c.kind for c in BUILTIN}
