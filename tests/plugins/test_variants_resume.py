"""Variants with state: a run that is stopped after every step and goes on leaves the same rows and weights."""

import pytest
import tiny_world

from rlhf_lab.errors import Interrupted
from rlhf_lab.store.checkpoint import keep_only_resumable, remove_checkpoints

SCALED = {"name": "weighted_sum", "sources": ["words", {"name": "scaled", "source": "length"}], "weights": [1.0, 0.3]}
CRITIC_FREE = {"critic": "none", "objective": ["policy_gradient"]}
STATEFUL = {
    "schedule": {"kl": {"name": "schedule", "steps": 3, "beta": 0.5}},
    "pid": {"kl": {"name": "pid", "target": 0.1, "derivative": 0.5}},
    "dual_ascent": {"kl": {"name": "dual_ascent", "budget": 0.01, "rate": 0.5}},
    "reinforce_baseline": {"advantage": "reinforce_baseline", "whiten_advantages": "none", **CRITIC_FREE},
    "doubling": {
        "kl": {"name": "step_kl_doubling", "target": 0.02},
        "kl_placement": "loss",
        "objective": [{"name": "kl_penalty", "beta": None}],
        "critic": "none",
        "advantage": "monte_carlo",
    },
    "shared_trunk": {"critic": "shared_trunk", "critic_warmup": 1},
    "value_ensemble": {"critic": {"name": "value_ensemble", "heads": 2}},
    "scaled": {"reward": SCALED, "advantage": "monte_carlo", **CRITIC_FREE},
}


def run(parameters, folder, world, stop):
    folder.mkdir(exist_ok=True)
    ctx = tiny_world.context("rl", parameters, folder, world)
    ctx.stop_requested = stop
    keep_only_resumable(folder)
    ctx.config.stages["rl"].run(ctx)
    remove_checkpoints(folder)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", STATEFUL)
def test_what_a_variant_remembers_survives_a_stop(name, world, tmp_path):
    parameters = {"reward": "words", "steps": 4, "batch_size": 8, "response_length": 4, "learning_rate": 0.01,
                  "evaluation": {"every": 2, "prompts": 4}, **STATEFUL[name]}  # fmt: skip
    run(parameters, tmp_path / "undisturbed", world, lambda: False)
    stops = 0
    while stops < 10:
        try:
            run(parameters, tmp_path / "resumed", world, lambda: True)
            break
        except Interrupted:
            stops += 1
    assert 3 <= stops <= 4
    assert contents(tmp_path / "resumed") == contents(tmp_path / "undisturbed")
