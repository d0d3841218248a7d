"""Sweeps that really run, in worker processes: resumed, extended, failing in part, killed, interrupted."""

import json
import math
import os
import platform
import shutil
import signal
import time

import psutil
import pytest
from micro_spec import PLUGINS, lab, lab_process, plan_of, write_spec

import rlhf_lab
from rlhf_lab.results.tables import COLUMNS
from rlhf_lab.running.claims import Claims
from rlhf_lab.running.runner import results_folder
from rlhf_lab.store.files import COMMIT, read_json

TROUBLES = PLUGINS / "troubles.py"


def run(path, *arguments):
    """Exit code and what `run --json` says."""
    result = lab("run", path, "--out", path.parent / "out", "--json", *arguments)
    return result.exit_code, json.loads(result.stdout)


def marks(results):
    """When each stage was committed, and each status written."""
    return {
        path: path.stat().st_mtime_ns for path in [*results.glob(f"stages/*/{COMMIT}"), *results.glob("runs/*/status.json")]
    }


@pytest.fixture
def copied(finished, tmp_path):
    """The finished sweep, with its spec, to be changed; (spec, results)."""
    shutil.copytree(finished.parents[1], tmp_path, dirs_exist_ok=True)
    results = tmp_path / "out" / "tiny"
    for file in results.glob("runs/*/run.json"):
        file.write_text(file.read_text().replace(str(finished), str(results)))
    return tmp_path / "spec.yaml", results


# The tables


def test_the_tables_have_the_promised_columns(finished):
    runs, steps, samples = (rlhf_lab.load(finished, table) for table in ("runs", "steps", "samples"))
    for name, frame in (("runs", runs), ("steps", steps), ("samples", samples)):
        assert tuple(frame.columns[: len(COLUMNS[name])]) == COLUMNS[name]
    assert COLUMNS["runs"] == ("run_id", "arm", "seed", "status", "seconds")
    assert COLUMNS["steps"][6:] == ("kl", "reward_proxy", "reward_gold", "entropy", "response_length", "beta")
    assert COLUMNS["samples"] == ("run_id", "stage", "step", "prompt", "response", "reward_proxy", "reward_gold")
    assert {"device", "threads", "version_torch", "version_rlhf-lab"} <= set(runs.columns)


def test_a_row_per_run(finished):
    runs = rlhf_lab.load(finished, "runs")
    assert list(zip(runs["rl.kl.beta"], runs["seed"], runs["status"], strict=True)) == [
        (0.1, 0, "done"), (0.1, 1, "done"), (1.0, 0, "done"), (1.0, 1, "done")
    ]  # fmt: skip
    assert (
        runs["run_id"].tolist()
        == read_json(finished / "plan.json")["runs"]
        == [run.name for run in sorted_as_planned(finished)]
    )
    assert (runs["seconds"] > 0).all() and runs["run_id"].is_unique


def sorted_as_planned(results):
    return sorted((results / "runs").iterdir(), key=lambda folder: read_json(results / "plan.json")["runs"].index(folder.name))


def test_axes_are_typed_columns_of_every_table(finished):
    for table in ("runs", "steps", "samples"):
        frame = rlhf_lab.load(finished, table)
        assert frame["rl.kl.beta"].dtype == float and set(frame["rl.kl.beta"]) == {0.1, 1.0}
        assert frame["seed"].dtype == int and set(frame["arm"]) == {"base"}


def test_a_row_per_run_stage_step_and_split(finished):
    steps = rlhf_lab.load(finished)
    keys = ["run_id", "stage", "step", "split"]
    assert not steps.duplicated(keys).any()
    rl = steps[(steps["stage"] == "rl") & (steps["split"] == "train")]
    assert rl.groupby("run_id")["step"].apply(list).tolist() == [[0, 1, 2]] * 4
    assert (rl["beta"] == rl["rl.kl.beta"]).all(), "the fixed controller does what the axis says"
    assert (rl.loc[rl["step"] == 0, "kl"].abs() < 1e-3).all()
    sft = steps[(steps["stage"] == "sft") & (steps["split"] == "train")]
    assert sft.groupby("step")["loss"].nunique().eq(1).all() and len(sft) >= 4, "one SFT, in the rows of four runs"


def test_what_was_not_measured_stays_nan(finished):
    steps = rlhf_lab.load(finished)
    assert steps["reward_gold"].dtype == float and steps["reward_gold"].isna().all()
    assert steps.loc[steps["stage"] == "sft", "kl"].isna().all() and not steps.loc[steps["stage"] == "rl", "kl"].isna().any()


def test_stages_are_folders_named_by_hash_and_shared(finished):
    plan = plan_of(finished.parents[1] / "spec.yaml")
    assert {path.name for path in (finished / "stages").iterdir() if path.is_dir()} == {
        stage for run in plan["runs"] for stage in run["stages"].values()
    }
    assert len(list((finished / "stages").glob(f"*/{COMMIT}"))) == 5, "one SFT and four RL"


def test_the_plan_holds_the_resolved_spec_and_where_it_came_from(finished):
    plan = read_json(finished / "plan.json")
    (first, *_), resolved = plan["runs"], plan["resolved"]
    assert plan["experiment"] == "tiny" and "torch" in plan["packages"]
    assert resolved[first]["rl"]["kl"] == {"name": "fixed", "beta": 0.1} and resolved[first]["rl"]["temperature"] == 1.0
    assert (finished / "spec.yaml").read_text() == (finished.parents[1] / "spec.yaml").read_text()


def test_nothing_is_pickled(finished):
    suffixes = {path.suffix for path in finished.rglob("*") if path.is_file()}
    assert not suffixes & {".pt", ".bin", ".pkl", ".pickle", ".pth", ".ckpt"} and ".safetensors" in suffixes


# Again, and more


def test_the_same_command_does_nothing(copied):
    path, results = copied
    before, tables = marks(results), {name: (results / f"{name}.parquet").read_bytes() for name in COLUMNS}
    code, said = run(path)
    assert code == 0 and said["done"] == [] and len(said["reused"]) == 4 and said["failed"] == {}
    assert marks(results) == before
    assert {name: (results / f"{name}.parquet").read_bytes() for name in COLUMNS} == tables


def test_what_was_computed_keeps_the_revision_it_was_computed_with(copied):
    path, results = copied
    (first, *_) = sorted((results / "runs").iterdir())
    file = first / "run.json"
    file.write_text(json.dumps({**read_json(file), "git": {"git_revision": "earlier", "git_dirty": ""}}))
    run(path)
    assert read_json(file)["git"]["git_revision"] == "earlier"


def test_a_further_seed_computes_only_what_is_new(copied):
    path, results = copied
    before = marks(results)
    code, said = run(path, "seeds=0,1,2")
    assert code == 0 and len(said["done"]) == 2 and len(said["reused"]) == 4
    after = marks(results)
    assert {file: after[file] for file in before} == before
    assert len(list(results.glob(f"stages/*/{COMMIT}"))) == 5 + 2, "two RL, no SFT"
    assert sorted(set(rlhf_lab.load(results, "runs")["seed"])) == [0, 1, 2]


def test_an_unfinished_stage_is_computed_again_and_comes_out_the_same(copied):
    path, results = copied
    plan = plan_of(path)["runs"]
    lost = results / "stages" / plan[2]["stages"]["rl"]
    rows, weights = (lost / "steps.jsonl").read_bytes(), (lost / "policy" / "model.safetensors").read_bytes()
    (lost / COMMIT).unlink()
    (lost / "steps.jsonl").write_text('{"torn')
    before = marks(results)
    code, said = run(path)
    assert code == 0 and said["done"] == [plan[2]["run_id"]] and len(said["reused"]) == 3
    assert (lost / "steps.jsonl").read_bytes() == rows and (lost / "policy" / "model.safetensors").read_bytes() == weights
    after = marks(results)
    assert {file.parent.name for file in before if before[file] != after[file]} == {plan[2]["run_id"]}


def test_tables_are_rebuilt_from_the_files(copied):
    path, results = copied
    tables = {name: (results / f"{name}.parquet").read_bytes() for name in COLUMNS}
    for name in COLUMNS:
        (results / f"{name}.parquet").unlink()
    run(path)
    assert {name: (results / f"{name}.parquet").read_bytes() for name in COLUMNS} == tables


# Trouble

ARMS = """arms:
  good: {}
  raises: {rl.reward: raises}
  dies: {rl.reward: dies}
  nan: {rl.reward: nan}
  one_too_many: {rl.reward: one_too_many}
  matrix: {rl.reward: matrix}
  good_too: {rl.steps: 2}"""


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A sweep in which five of seven arms fail, each in its own way; what the command said, and the results."""
    folder = tmp_path_factory.mktemp("troubled")
    path = write_spec(folder, axes="axes: {}", seeds="seeds: [0]", arms=ARMS)
    result = lab("run", path, "--plugin", TROUBLES, "--out", folder / "out")
    return path, folder / "out" / "tiny", result


def status_of(results):
    runs = rlhf_lab.load(results, "runs")
    return dict(zip(runs["arm"], runs["status"], strict=True))


def folder_of(results, arm):
    return next(f for f in (results / "runs").iterdir() if read_json(f / "run.json")["arm"] == arm)


def test_a_run_that_fails_does_not_stop_the_others(troubled):
    _, results, result = troubled
    assert result.exit_code == 1
    assert status_of(results) == {
        "good": "done", "raises": "failed", "dies": "failed", "nan": "failed", "one_too_many": "failed", "matrix": "failed",
        "good_too": "done",
    }  # fmt: skip
    assert result.stdout.startswith("2 runs done, 0 reused, 5 failed: ")


@pytest.mark.parametrize(
    ("arm", "error"),
    [
        ("raises", "KeyError: 'no such\\nword'"),
        ("nan", "reward 'nan' returned nan for the response '"),
        ("one_too_many", "reward 'one_too_many' returned scores of shape (5,) for 4 responses"),
        ("matrix", "reward 'matrix' returned scores of shape (4, 1) for 4 responses"),
        ("dies", "the worker process ended: killed by SIGKILL (out of memory?)"),
    ],
)
def test_each_failure_is_one_line_that_says_why(troubled, arm, error):
    _, results, result = troubled
    folder = folder_of(results, arm)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith(f"{folder.name} failed: ")]
    assert error in line and read_json(folder / "status.json")["error"] in line
    file = line.rpartition("(")[2].removesuffix(")")
    assert os.path.isfile(file), "the file that it points to is there"
    if arm != "dies":
        assert file == str(folder / "traceback.txt")
        assert "Traceback (most recent call last)" in (folder / "traceback.txt").read_text()
        assert "troubles.py" in (folder / "traceback.txt").read_text() or "rewards.py" in (folder / "traceback.txt").read_text()


def test_what_failed_has_no_finished_stage_but_shares_the_finished_ones(troubled):
    path, results, _ = troubled
    plan = plan_of(path, "--plugin", TROUBLES)
    for run_ in plan["runs"]:
        committed = {name for name, stage in run_["stages"].items() if (results / "stages" / stage / COMMIT).is_file()}
        assert committed == ({"sft", "rl"} if run_["arm"].startswith("good") else {"sft"})


def test_a_failed_run_is_tried_again_and_the_traceback_goes_when_it_succeeds(tmp_path, monkeypatch):
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    code, said = run(path, "--plugin", TROUBLES, "rl.reward=raises")
    (run_id,) = said["failed"]
    folder = tmp_path / "out" / "tiny" / "runs" / run_id
    assert code == 1 and (folder / "traceback.txt").is_file()
    monkeypatch.setenv("TROUBLE_MENDED", "yes")
    code, said = run(path, "--plugin", TROUBLES, "rl.reward=raises")
    assert code == 0 and said["done"] == [run_id] and not (folder / "traceback.txt").exists()


def test_a_run_that_takes_too_much_memory_is_ended_and_the_others_go_on(tmp_path):
    """A gigabyte and a half of ones, where a worker without them has about half a gigabyte."""
    seen = {"name": "observed", "file": str(tmp_path / "seen")}
    arms = {"good": {"rl.reward": seen}, "eats": {"rl.reward": {**seen, "gigabytes": 1.5}}, "good_too": {"rl.steps": 2}}
    path = write_spec(
        tmp_path,
        axes="axes: {}",
        seeds="seeds: [0]",
        arms=f"arms: {json.dumps(arms)}",
        resources="resources: {workers: 1, threads: 1, memory_limit: 1.3}",
    )
    code, said = run(path, "--plugin", PLUGINS / "observed.py")
    results = tmp_path / "out" / "tiny"
    assert code == 1 and len(said["done"]) == 2
    assert status_of(results) == {"good": "done", "eats": "failed:memory", "good_too": "done"}
    (error,) = said["failed"].values()
    assert error.startswith("it held 1.") and error.endswith(" GiB of memory, more than memory_limit: 1.3")


def test_a_second_command_on_the_same_results_is_refused_or_joins(copied):
    path, results = copied
    with Claims() as claims:
        assert claims.take(results / "driver")
        result = lab("run", path, "--out", path.parent / "out")
        assert result.exit_code == 1
        assert result.stderr == (
            f"process {os.getpid()} on {platform.node()} is working on {results}; wait for it, or share its runs with --join\n"
        )
        assert lab("run", path, "--out", path.parent / "out", "--join").exit_code == 0
    assert run(path)[0] == 0


# Stopping


def alive(pids):
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def started(tmp_path):
    """A sweep of four runs on two workers, caught in the middle of rl: (process, pids of its workers, spec)."""
    path = write_spec(tmp_path, resources="resources: {workers: 2, threads: 1}")
    arguments = (path, "--plugin", TROUBLES, "rl.reward=slow", "--out", tmp_path / "out")
    process = lab_process("run", *arguments, TROUBLE_SECONDS="1", RLHF_LAB_LOAD_PLUGINS="")
    stages = {run["stages"]["rl"] for run in plan_of(path, "--plugin", TROUBLES, "rl.reward=slow")["runs"]}
    wait_for(lambda: sum((tmp_path / "out" / "tiny" / "stages" / stage).is_dir() for stage in stages) == 2)
    workers = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(workers) == 2
    return process, workers, path


def stop(process, workers, results, number):
    """Sends the signal; the exit code, once it is sure that nothing is left running."""
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert alive(workers) == []
    assert "Traceback" not in err and "2 stopped and saved" in out
    assert len(list(results.glob("stages/*/checkpoint-*/COMMIT"))) == 2
    assert sorted(rlhf_lab.load(results, "runs")["status"]) == ["interrupted", "interrupted", "pending", "pending"]
    return process.returncode


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_no_process_and_goes_on_later(tmp_path):
    process, workers, path = started(tmp_path)
    results = tmp_path / "out" / "tiny"
    assert stop(process, workers, results, signal.SIGINT) == 130
    (sft,) = (file for file in marks(results).items() if file[0].name == COMMIT)
    code, said = run(path, "--plugin", TROUBLES, "rl.reward=slow", "resources.workers=1")
    assert code == 0 and len(said["done"]) == 4
    assert sft in marks(results).items(), "the stage that was finished is not computed again"


def test_a_terminated_sweep_leaves_no_process(tmp_path):
    process, workers, _ = started(tmp_path)
    assert stop(process, workers, tmp_path / "out" / "tiny", signal.SIGTERM) == 143


def test_workers_of_a_killed_sweep_end_by_themselves(tmp_path):
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    process = lab_process("run", path, "rl.steps=100000", "--out", tmp_path / "out")
    children = wait_for(
        lambda: list((tmp_path / "out" / "tiny" / "stages").glob("*/steps.jsonl")) and psutil.Process(process.pid).children()
    )
    process.kill()
    process.communicate()
    wait_for(lambda: not alive([child.pid for child in children]), 20)


# Parts


def test_where_results_go(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_LAB_RUNS_DIR", raising=False)
    assert results_folder("kl", None) == tmp_path / "results" / "kl"
    monkeypatch.setenv("RLHF_LAB_RUNS_DIR", str(tmp_path / "elsewhere"))
    assert results_folder("kl", None) == tmp_path / "elsewhere" / "kl"
    assert results_folder("kl", tmp_path / "out") == tmp_path / "out" / "kl"


def test_results_go_where_the_environment_says(tmp_path):
    result = lab("plan", write_spec(tmp_path), "--json", env={"RLHF_LAB_RUNS_DIR": str(tmp_path / "there")})
    assert json.loads(result.stdout)["results"] == str(tmp_path / "there" / "tiny")


def test_workers_run_with_the_threads_that_they_are_given(finished):
    status = [read_json(file) for file in finished.glob("runs/*/status.json")]
    assert {s["threads"] for s in status} == {1}
    assert {s["variables"]["OMP_NUM_THREADS"] for s in status} == {"1"}
    assert all(math.isfinite(s["seconds"]) for s in status)
