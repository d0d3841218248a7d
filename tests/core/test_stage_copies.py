"""`stage@n`, the same stage with its seed n higher: planned because it is named, computed once, and read like any other."""

import pytest
from micro_spec import lab, refused, write_spec

import rlhf_lab
from rlhf_lab.contracts import stage_and_copy
from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.registry import discover
from rlhf_lab.running.plan import plan_sweep

SPEC = """\
experiment: tiny
base:
  data: {name: micro, sentences: 64, pretraining_sentences: 8}
  model: {name: scratch, hidden_size: 8, layers: 1, heads: 1}
  sft: {batch_size: 32, log_samples: 0}
  comparisons: {labeler: grammar_gold, prompts: 8, validation_prompts: 4, response_length: 6, flip: 0}
  reward_model: {comparisons: comparisons, batch_size: 4, normalize_examples: 8, sample_length: 6}
  rl:
    reward: {name: ensemble, members: 3, how: mean}
    critic: none
    advantage: monte_carlo
    objective: [ppo_clip]
    steps: 1
    batch_size: 4
    response_length: 6
    evaluation: {prompts: 4}
arms:
  three: {}
  one: {rl.reward: reward_model}
  second: {rl.reward: {name: reward_model, stage: reward_model@1}}
seeds: [0, 1]
resources: {workers: 1, threads: 1}
"""


def planned(tmp_path, text=SPEC):
    path = write_spec(tmp_path, text)
    return plan_sweep(load_sweep(path, [], registry := discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})), registry)


@pytest.mark.parametrize(
    "name, parts",
    [("a@2", ("a", 2)), ("a", ("a", 0)), ("a@b", ("a@b", 0)), ("a@", ("a@", 0)), ("@1", ("@1", 0)), ("a@-1", ("a@-1", 0))],
)
def test_a_name_and_its_copy(name, parts):
    assert stage_and_copy(name) == parts


def test_one_line_plans_so_many_reward_models(tmp_path):
    """Three for the ensemble; the single ones of the other arms are among them, for both seeds of the sweep."""
    runs = planned(tmp_path).runs
    seeds = {stage.name: stage.seed for run in runs for stage in run.stages if stage.component.name == "reward_model"}
    assert seeds == {"reward_model": 0, "reward_model@1": 1, "reward_model@2": 2}
    hashes = {stage.name: stage.hash for run in runs for stage in run.stages if stage.component.name == "reward_model"}
    assert len(set(hashes.values())) == 3
    distinct = {stage.hash for run in runs for stage in run.stages if stage.component.name == "reward_model"}
    assert distinct == set(hashes.values())


def test_a_copy_is_the_stage_that_one_would_write_by_hand(tmp_path):
    """With `seed: 1`, under another name; and of a stage that follows the seed of the run, that of the next seed."""
    (line,) = [line for line in SPEC.splitlines() if line.startswith("  reward_model:")]
    by_hand = line.replace("reward_model: {", "again: {name: reward_model, seed: 1, ")
    first = planned(tmp_path, SPEC.replace("  rl:\n", f"{by_hand}\n  rl:\n")).runs[0]
    hashes = {stage.name: stage.hash for stage in first.stages}
    assert hashes["again"] == hashes["reward_model@1"] != hashes["reward_model"]
    following = planned(tmp_path, SPEC.replace("{comparisons: comparisons, b", "{seed: run, comparisons: comparisons, b")).runs
    by_seed = {run.seed: {stage.name: stage.hash for stage in run.stages} for run in following if run.arm == "three"}
    assert by_seed[0]["reward_model@1"] == by_seed[1]["reward_model"] != by_seed[0]["reward_model"]


def test_a_copy_of_nothing_is_refused(tmp_path):
    path = write_spec(tmp_path, SPEC.replace("stage: reward_model@1", "stage: reward_modl@1"))
    assert "no stage is called 'reward_modl@1'" in refused(path)


def test_the_members_are_trained_and_heard(tmp_path):
    """From the command line to the table: three reward models that differ, whose mean is the reward."""
    path = write_spec(tmp_path, SPEC.replace("seeds: [0, 1]", "seeds: [0]"), arms="arms: {three: {}}")
    result = lab("run", path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    frame = rlhf_lab.load(tmp_path / "out" / "tiny")
    assert {"reward_model", "reward_model@1", "reward_model@2"} <= set(frame["stage"])
    rows = frame[(frame["stage"] == "rl") & (frame["split"] == "train")]
    members = rows[["member_0", "member_1", "member_2"]]
    assert members.nunique(axis=1).eq(3).all()
    assert rows["reward_proxy"].tolist() == pytest.approx(members.mean(axis=1).tolist(), abs=1e-5)
