"""What names a stage: everything that its numbers depend on, and nothing else."""

import json
import os
import subprocess
import sys

import pytest
from micro_spec import PLUGINS, lab, plan_of, refused, write_spec

from rlhf_lab.declaration.stage_graph import Circle, in_order
from rlhf_lab.errors import DataError

FILE_DATA = """
import hashlib
from rlhf_lab import Component, hookimpl, param
from rlhf_lab.errors import DataError

class Lines(Component):
    "A file with a prompt in each line."
    kind, name = "data", "lines"
    path: str = param(..., "the file")
    splits: list[str] = param(["train"], "what it stands for")

    def open(self, ctx):
        return None

    def check(self, folder):
        with open(folder / "checked", "a") as log:
            log.write("x")
        if not (folder / self.path).is_file():
            raise DataError(f"{self.path}: there is no such file")

    def fingerprint(self, folder):
        return hashlib.sha256((folder / self.path).read_bytes()).hexdigest()

@hookimpl
def register_components(register):
    register(Lines)
"""

STAGES = {
    "sft": "{batch_size: 32, epochs: 1}",
    "reward_model": "{batch_size: 8}",
    "rl": "{kl: {name: fixed, beta: 0.2}, steps: 3}",
}


def base(**changed):
    stages = {**STAGES, **changed}
    lines = ["base:", "  data: micro", "  model: {name: scratch, hidden_size: 8}", *(f"  {k}: {v}" for k, v in stages.items())]
    return "\n".join(lines)


@pytest.fixture
def hashes(tmp_path):
    """`hashes(rl="{…}")`: name → hash of the one run of a spec with those stages."""

    def hashes(*overrides, seeds="seeds: [0]", resources="resources: {}", **changed):
        path = write_spec(tmp_path, axes="axes: {}", seeds=seeds, resources=resources, base=base(**changed))
        (run,) = plan_of(path, *overrides)["runs"]
        return run["stages"] | {"run": run["run_id"]}

    return hashes


def test_a_default_written_out_changes_nothing(hashes):
    assert hashes() == hashes(
        sft="{batch_size: 32, epochs: 1, learning_rate: 0.001, schedule: cosine, name: sft}",
        rl="{steps: 3, objective: [ppo_clip, {name: value_clip, weight: 0.1}], kl: {beta: 0.2, name: fixed}, critic: {}}",
    )


def test_the_spelling_of_a_number_changes_nothing(hashes):
    assert hashes("rl.temperature=1") == hashes("rl.temperature=1.0") == hashes("rl.temperature=1e0")


def test_what_a_stage_does_not_read_does_not_name_it(hashes):
    one, other = hashes(), hashes("rl.kl.beta=0.3")
    assert {name for name in one if one[name] != other[name]} == {"rl", "run"}


def test_what_a_stage_reads_names_it_however_indirectly(hashes):
    one, other = hashes(), hashes("sft.epochs=2")
    assert {name for name in one if one[name] != other[name]} == {"sft", "reward_model", "rl", "run"}
    one, other = hashes(), hashes("reward_model.batch_size=9")
    assert {name for name in one if one[name] != other[name]} == {"reward_model", "rl", "run"}


def test_the_world_names_every_stage(hashes):
    for change in ("data.seed=1", "model.hidden_size=16", "precision=bf16"):
        one, other = hashes(), hashes(change)
        assert not set(one.values()) & set(other.values())


def test_the_seed_of_the_run_names_only_the_stages_that_follow_it(hashes):
    one, other = hashes(), hashes(seeds="seeds: [1]")
    assert {name for name in one if one[name] != other[name]} == {"rl", "run"}
    one, other = hashes("sft.seed=run"), hashes("sft.seed=run", seeds="seeds: [1]")
    assert {name for name in one if one[name] != other[name]} == {"sft", "reward_model", "rl", "run"}


def test_a_seed_names_a_stage_however_it_got_there(hashes):
    one, other = hashes("sft.seed=run", seeds="seeds: [3]"), hashes("sft.seed=3", seeds="seeds: [3]")
    assert one == other
    assert hashes("sft.seed=3")["sft"] == one["sft"] != hashes("sft.seed=4")["sft"]
    assert hashes("rl.seed=3")["rl"] == hashes(seeds="seeds: [3]")["rl"]


def test_the_seed_of_the_data_is_no_seed_of_a_stage(hashes):
    one, other = hashes("data.seed=3", seeds="seeds: [3]"), hashes("data.seed=0", seeds="seeds: [3]")
    assert not set(one.values()) & set(other.values())


def test_resources_arms_and_the_experiment_name_nothing(hashes):
    assert hashes() == hashes(resources="resources: {workers: 2, threads: 3}") == hashes("experiment=other", "arms={x: {}}")


def test_a_stage_under_another_name_is_the_same_stage(tmp_path, hashes):
    ours = hashes()
    stages = "\n  ".join(["base:", "data: micro", "model: {name: scratch, hidden_size: 8}", f"teacher: {STAGES['sft']}"])
    stages = stages.replace("teacher: {", "teacher: {name: sft, ")
    (run,) = plan_of(write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]", base=stages))["runs"]
    assert run["stages"] == {"teacher": ours["sft"]} and run["run_id"] != ours["run"]


def test_the_same_in_another_process_with_another_hash_seed(tmp_path):
    path = write_spec(tmp_path)
    here = plan_of(path)["runs"]
    command = [sys.executable, "-m", "rlhf_lab.cli", "plan", path, "--json"]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert json.loads(there.stdout)["runs"] == here


def test_the_content_of_a_plugin_file_names_the_stages_that_use_it(tmp_path):
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    plugin = tmp_path / "controller.py"
    found = []
    for extra in ("", "\n# another comment\n"):
        plugin.write_text((PLUGINS / "velocity_pid.py").read_text() + extra)
        (run,) = plan_of(path, "--plugin", plugin, "rl.kl={name: velocity_pid}")["runs"]
        found.append(run["stages"])
    assert found[0]["sft"] == found[1]["sft"] and found[0]["rl"] != found[1]["rl"]


# Data files


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "lines.py").write_text(FILE_DATA)
    (tmp_path / "prompts.txt").write_text("one\n")
    path = write_spec(tmp_path)
    path.write_text(
        path.read_text().replace("{name: micro, sentences: 64, pretraining_sentences: 8}", "{name: lines, path: prompts.txt}")
    )
    return path


def stage_hashes(path, *arguments):
    return [run["stages"] for run in plan_of(path, "--plugin", path.parent / "lines.py", *arguments)["runs"]]


def test_the_content_of_a_data_file_names_every_stage(lines):
    before = stage_hashes(lines)
    (lines.parent / "prompts.txt").touch()
    assert stage_hashes(lines) == before
    (lines.parent / "prompts.txt").write_text("two\n")
    after = stage_hashes(lines)
    assert not {h for run in before for h in run.values()} & {h for run in after for h in run.values()}


def test_data_files_are_checked_once_before_anything_is_created(lines):
    stage_hashes(lines)
    assert (lines.parent / "checked").read_text() == "x", "four runs, one data component"
    (lines.parent / "prompts.txt").unlink()
    plugin = lines.parent / "lines.py"
    assert refused(lines, "--plugin", plugin, code=DataError.exit_code) == "prompts.txt: there is no such file"


def test_errors_are_objects_too(lines):
    (lines.parent / "prompts.txt").unlink()
    result = lab("plan", lines, "--plugin", lines.parent / "lines.py", "--json")
    assert json.loads(result.stdout) == {"error": {"kind": "DataError", "message": "prompts.txt: there is no such file"}}
    assert result.stderr == "prompts.txt: there is no such file\n" and result.exit_code == 1


# Order


def test_a_stage_comes_after_what_it_reads():
    assert in_order({"rl": ["sft", "rm"], "rm": ["sft"], "sft": []}) == ["sft", "rm", "rl"]
    assert in_order({"b": [], "a": []}) == ["b", "a"], "otherwise as the spec lists them"


def test_a_circle_is_named():
    with pytest.raises(Circle, match=r"^b → c → b$"):
        in_order({"a": ["b"], "b": ["c"], "c": ["b"]})
