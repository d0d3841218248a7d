"""Fault 19: code or versions that change between a crash and the resume. And how often, and as what, a stage is saved."""

import json

import pytest
import tiny_world
import torch

from rlhf_lab.errors import Interrupted, ResumeRefused
from rlhf_lab.store import conditions
from rlhf_lab.store.cadence import Cadence, cadence
from rlhf_lab.store.checkpoint import Checkpoint, newest_complete, write_checkpoint
from rlhf_lab.store.files import read_json

RL = {"steps": 3, "batch_size": 4, "response_length": 3, "reward": "words", "evaluation": {"every": 9, "prompts": 2}}
RL |= {"critic": "none", "advantage": "monte_carlo", "objective": ["ppo_clip"]}


def stage(world, folder, **settings):
    folder.mkdir(exist_ok=True)
    ctx = tiny_world.context("rl", RL, folder, world)
    for name, value in settings.items():
        setattr(ctx, name, value)
    return ctx


def run(ctx):
    ctx.config.stages["rl"].run(ctx)
    return ctx


@pytest.fixture
def stopped(world, tmp_path):
    """The folder of a stage that was stopped after its first step."""
    with pytest.raises(Interrupted):
        run(stage(world, tmp_path / "s", stop_requested=lambda: True, sources={"reward/words": "a" * 32}))
    return tmp_path / "s"


def saved(folder):
    return read_json(newest_complete(folder) / "state.json")


def test_a_checkpoint_says_under_what_conditions_it_was_computed(stopped):
    (now,) = saved(stopped)["conditions"]
    assert now["torch"] == torch.__version__ and now["threads"] == torch.get_num_threads() and now["precision"] == "fp32"
    assert now["device"].startswith("cpu (") and now["deterministic"] is True
    assert set(now["code"]) == {"rlhf_lab", "reward/words"}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"torch": "2.0.0"}, f"under torch 2.0.0 and would go on under torch {torch.__version__}"),
        ({"device": "cuda (NVIDIA H200)"}, "under device cuda (NVIDIA H200) and would go on under device cpu ("),
        ({"precision": "bf16", "threads": 7}, "under threads 7, precision bf16 and would go on under threads "),
        ({"code": {"reward/words": "b" * 32}}, "under reward/words bbbbbbbb and would go on under "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_fault_19_what_would_give_other_numbers_is_refused(change, sentence, stopped, world):
    state = saved(stopped)
    state["conditions"][0] |= change
    rewritten = Checkpoint(1, torch_tensors(stopped), state["state"], state["conditions"])
    write_checkpoint(stopped, rewritten)
    with pytest.raises(ResumeRefused) as refused:
        run(stage(world, stopped, sources={"reward/words": "a" * 32}))
    assert str(refused.value).startswith("stage rl stopped after step 1 ") and sentence in str(refused.value)
    assert "accept it with --allow-changed" in str(refused.value)
    ctx = run(stage(world, stopped, sources={"reward/words": "a" * 32}, allow_changed=True))
    assert len(ctx.conditions) == 2 and not conditions.bitwise(ctx.conditions), "the lineage is kept and nothing is claimed"


def torch_tensors(folder):
    from safetensors.torch import load_file

    return load_file(newest_complete(folder) / "tensors.safetensors")


def test_what_did_not_change_is_claimed_to_be_bitwise(stopped, world):
    ctx = run(stage(world, stopped, sources={"reward/words": "a" * 32}))
    assert len(ctx.conditions) == 1 and conditions.bitwise(ctx.conditions)
    assert not conditions.bitwise([{**ctx.conditions[0], "deterministic": False}])


def test_a_stage_goes_on_with_the_threads_that_it_began_with():
    before = torch.get_num_threads()
    with conditions.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with conditions.threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_fault_20_a_checkpoint_of_a_newer_version_is_refused_and_left_alone(stopped, world, monkeypatch):
    from rlhf_lab.store import checkpoint

    monkeypatch.setattr(checkpoint, "SCHEMA", 0)  # this one is then older than what it finds
    with pytest.raises(
        ResumeRefused, match=r"was written by a newer rlhf_lab \(schema 1, this one knows 0\); resume it with that"
    ):
        run(stage(world, stopped))
    assert list(stopped.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "said, meant",
    [
        (300, Cadence(seconds=300)),
        (0.5, Cadence(seconds=0.5)),
        ("5 steps", Cadence(steps=5)),
        ("1 step", Cadence(steps=1)),
        ("90s", Cadence(seconds=90)),
        ({"steps": 5}, Cadence(steps=5)),
        ({"seconds": 300, "steps": 50}, Cadence(300, 50)),
    ],
)
def test_how_often_a_checkpoint_is_due(said, meant):
    assert cadence(said) == meant


@pytest.mark.parametrize("wrong", [0, -1, "often", "5 apples", {"steps": 0}, {"steps": 2.5}, {"minutes": 5}, {}, "steps"])
def test_how_often_is_not_said_so(wrong):
    with pytest.raises(ValueError, match=r"give seconds, as 300, or whole steps, as \{steps: 5\} or '5 steps'"):
        cadence(wrong)


def test_by_steps_it_is_due_at_the_same_steps_however_often_a_stage_began():
    every = Cadence(steps=3)
    assert [step for step in range(10) if every.due(step, seconds=1e9)] == [3, 6, 9]
    assert Cadence(seconds=2).due(1, 2.0) and not Cadence(seconds=2).due(1, 1.9)
    assert not Cadence().due(10**9, 1e9)


def test_checkpoints_every_two_steps(world, tmp_path, monkeypatch):
    from rlhf_lab import context

    steps = []
    monkeypatch.setattr(context, "write_checkpoint", lambda folder, found: steps.append(found.step))
    run(stage(world, tmp_path / "s", checkpoint_every=Cadence(steps=2)))
    assert steps == [2]


def test_conditions_are_json(stopped):
    assert json.loads(json.dumps(saved(stopped)["conditions"])) == saved(stopped)["conditions"]
