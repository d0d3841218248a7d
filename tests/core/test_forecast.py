"""Expected times against schedules that are worked out by hand."""

import json
import re

import pytest
from micro_spec import lab, plan_of, write_spec

from rlhf_lab.running.forecast import counts, makespan, size
from rlhf_lab.running.plan import PlannedStage
from rlhf_lab.store.files import read_json


def stage(hash, *inputs):
    return PlannedStage(hash, None, 0, hash, {f"input{n}": other for n, other in enumerate(inputs)})


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (1, 10 + 20 + 3 * 6),
        (2, 10 + 20 + 2 * 6),  # sft, reward model, then 3 rl on two workers
        (3, 10 + 20 + 6),
        (9, 10 + 20 + 6),
    ],
)
def test_stages_begin_when_their_inputs_are_there_and_a_worker_is_free(workers, expected):
    stages = [stage("sft"), stage("rm", "sft"), *(stage(f"rl{n}", "sft", "rm") for n in range(3))]
    seconds = {"sft": 10, "rm": 20, "rl0": 6, "rl1": 6, "rl2": 6}
    assert makespan(stages, seconds, workers) == expected


def test_stages_that_read_nothing_unfinished_run_side_by_side():
    stages = [stage(f"rl{n}", "finished") for n in range(5)]
    assert makespan(stages, {s.hash: 4 for s in stages}, 2) == 3 * 4
    assert makespan([], {}, 2) == 0


def test_what_is_unknown_takes_no_time():
    assert makespan([stage("sft"), stage("rl", "sft")], {"sft": None, "rl": 5}, 1) == 5


def test_sizes_are_told_by_whole_numbers_not_by_rates_and_seeds():
    parameters = {"steps": 3, "learning_rate": 0.1, "seed": 0, "evaluation": {"prompts": 4}, "n": [1, 2], "whiten": True}
    assert dict(counts(parameters)) == {".steps": 3, ".seed": 0, ".evaluation.prompts": 4, ".n[0]": 1, ".n[1]": 2}
    same = {**parameters, "learning_rate": 0.2, "seed": 1, "whiten": False}
    assert size("rl", parameters, {}) == size("rl", same, {})
    for other in ({**parameters, "steps": 4}, {**parameters, "evaluation": {"prompts": 5}}, {**parameters, "n": [1]}):
        assert size("rl", parameters, {}) != size("rl", other, {})
    assert size("rl", parameters, {}) != size("rl", parameters, {"model": 1})
    assert size("rl", parameters, {}) != size("sft", parameters, {})


def test_a_plan_knows_how_long_what_is_left_will_take(finished):
    """Two more seeds of the finished sweep: four more rl stages of a size that was measured four times."""
    path = finished.parents[1] / "spec.yaml"
    written = [read_json(folder / "stage.json") for folder in (finished / "stages").iterdir() if folder.is_dir()]
    seconds = sorted(found["seconds"] for found in written if found["kind"] == "rl")
    assert len(seconds) == 4
    plan = plan_of(path, "--out", finished.parent, "seeds=0,1,2,3")
    median = (seconds[1] + seconds[2]) / 2
    assert plan["estimate"] == {"seconds": pytest.approx(4 * median), "workers": 1, "unknown": {}}
    todo = [found for found in plan["graph"] if not found["done"]]
    assert [found["kind"] for found in todo] == ["rl"] * 4
    assert all(found["seconds"] == pytest.approx(median) for found in todo)
    assert all(found["seconds"] is None for found in plan["graph"] if found["done"])
    line = lab("plan", path, "--out", finished.parent, "seeds=0,1,2,3").stdout.splitlines()[-1]
    assert re.fullmatch(r"estimated time: \d+ s with 1 worker", line)


def test_of_another_size_nothing_is_known(finished):
    path = finished.parents[1] / "spec.yaml"
    plan = plan_of(path, "--out", finished.parent, "rl.steps=4")
    assert plan["estimate"] == {"seconds": 0, "workers": 1, "unknown": {"rl": 4}}
    line = lab("plan", path, "--out", finished.parent, "rl.steps=4").stdout.splitlines()[-1]
    assert line == "estimated time: unknown, for nothing of the size of 4 rl is finished here"


def test_an_ablation_of_27_runs_shares_one_sft_and_one_reward_model(tmp_path):
    path = tmp_path / "ablation.yaml"
    path.write_text(
        "experiment: ablation\n"
        "base: {data: micro, model: scratch, sft: {}, reward_model: {}, rl: {reward: reward_model}}\n"
        "arms: {gae: {}, monte_carlo: {rl.advantage: monte_carlo}, adaptive: {rl.kl: adaptive}}\n"
        "axes: {rl.kl.beta: [0.02, 0.2, 1]}\n"
        "seeds: [0, 1, 2]\n"
    )
    plan = plan_of(path, "--out", tmp_path / "out")
    assert (len(plan["runs"]), plan["stages"]) == (27, {"sft": 1, "reward_model": 1, "rl": 27})
    assert (plan["arms"], plan["seeds"]) == (["gae", "monte_carlo", "adaptive"], [0, 1, 2])
    names = {found["hash"]: found for found in plan["graph"]}
    assert len(names) == 29 and [found["runs"] for found in plan["graph"] if found["name"] != "rl"] == [27, 27]
    for found in plan["graph"]:
        reads = {names[hash]["name"] for hash in found["inputs"].values()}
        assert reads == {"sft": set(), "reward_model": {"sft"}, "rl": {"sft", "reward_model"}}[found["name"]]
    lines = lab("plan", path, "--out", tmp_path / "out").stdout.splitlines()
    assert lines[27:] == [
        "stage sft: 1 to compute; shared by 27 runs",
        "stage reward_model: 1 to compute; reads sft; shared by 27 runs",
        "stage rl: 27 to compute; reads sft, reward_model",
        "27 runs (0 done, 0 duplicates dropped); stages: 1 sft, 1 reward_model, 27 rl",
        "estimated time: unknown, for nothing of the size of 1 sft, 1 reward_model, 27 rl is finished here",
    ]


def test_many_runs_are_not_all_listed(tmp_path):
    path = write_spec(tmp_path, seeds=f"seeds: {list(range(50))}")
    lines = lab("plan", path).stdout.splitlines()
    assert lines[60] == "… and 40 more (--json lists all)" and len(plan_of(path)["runs"]) == 100


def test_what_a_stage_took_and_in_which_world_is_written(finished):
    (sft,) = (f for f in map(read_json, (finished / "stages").glob("*/stage.json")) if f["kind"] == "sft")
    assert sft["seconds"] > 0
    assert sft["world"]["data"]["sentences"] == 64 and sft["world"]["model"]["hidden_size"] == 8
    assert sft["world"]["precision"] == "fp32" and json.dumps(sft["world"])
