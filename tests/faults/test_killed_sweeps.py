"""Faults 1, 2, 4, 6, 9 and 10, and chaos: whole sweeps by the real command, killed and given again until they are done."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from micro_sweeps import SPEC, assert_same, results_of, run_of, spec_in, statuses

import rlhf_lab
from rlhf_lab.store.faults import POINTS
from rlhf_lab.store.files import COMMIT, is_committed, read_json


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """By real processes, so that nothing that the forks have in common can hide in the comparison."""
    folder = tmp_path_factory.mktemp("undisturbed")
    spec_in(folder)
    command = [sys.executable, "-m", "rlhf_lab.cli", *map(str, run_of(folder))]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "RLHF_LAB_LOAD_PLUGINS": ""})
    return results_of(folder)


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def until_done(nursery, folder, limit=40, **environment):
    """The same command until it returns 0; how often that was."""
    for times in range(1, limit):
        code, _, err = nursery.run(run_of(folder), **environment)
        assert "Traceback" not in err
        if code == 0:
            return times
    raise AssertionError(f"not done after {limit} times")


def test_fault_01_killed_after_every_step_and_so_is_what_resumes(nursery, tmp_path, undisturbed):
    """A process gets one step further than the one before; two runs of three steps and an SFT of two."""
    spec_in(tmp_path)
    before = nursery.kills()
    times = until_done(nursery, tmp_path, RLHF_LAB_FAULT="stage.step:kill@2")
    assert nursery.kills() - before >= 4 and times >= 3
    assert_same(results_of(tmp_path), undisturbed)


def test_fault_01_a_kill_between_checkpoints_costs_only_time(nursery, tmp_path, undisturbed):
    """No checkpoint is due before the end: the rows of the lost steps are written once."""
    spec_in(tmp_path, SPEC.replace("checkpoint_every: {steps: 1}", "checkpoint_every: 300"))
    for n in (2, 3):
        assert nursery.run(run_of(tmp_path), RLHF_LAB_FAULT=f"append.done[steps.jsonl]:kill@{n}")[0] == 1
    until_done(nursery, tmp_path)
    assert_same(results_of(tmp_path), undisturbed)


def test_fault_02_the_driver_is_killed(nursery, tmp_path, undisturbed):
    """Its workers end, nothing that was finished is computed again, and no row is there twice."""
    spec_in(tmp_path)
    driver, results = nursery.start(run_of(tmp_path)), results_of(tmp_path)
    until(lambda: list(results.glob(f"stages/*/{COMMIT}")))
    driver.kill()
    driver.communicate()
    finished = {path: path.stat().st_mtime_ns for path in results.glob(f"stages/*/{COMMIT}")}
    until_done(nursery, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    steps = rlhf_lab.load(results)
    assert not steps.duplicated(["run_id", "stage", "step", "split"]).any()
    assert_same(results, undisturbed)


@pytest.mark.parametrize(
    "point", ["stage.committed", "run.end", "write.rename[steps.parquet]", "write.rename[samples.parquet]"]
)
def test_fault_04_killed_between_an_artifact_and_its_index(point, nursery, tmp_path, undisturbed):
    """Stages are the truth and tables their index: what the tables lack is put there by the next command."""
    shutil.copytree(undisturbed.parents[1], tmp_path, dirs_exist_ok=True)
    results = results_of(tmp_path)
    last = read_json(results / "plan.json")["runs"][-1]
    (results / "runs" / last / "status.json").unlink()
    for table in results.glob("*.parquet"):
        table.unlink()
    before = nursery.kills()
    nursery.run(run_of(tmp_path), RLHF_LAB_FAULT=f"{point}:kill")
    assert nursery.kills() == before + 1
    until_done(nursery, tmp_path)
    assert len(rlhf_lab.load(results, "runs")) == 2
    assert_same(results, undisturbed)


def test_fault_06_a_full_disk_pauses_the_sweep(nursery, tmp_path, undisturbed):
    """A file system of the size of one stage: the run is `failed:disk_full`, the others wait; with room all is well."""
    disk = tmp_path / "disk"
    disk.mkdir()
    pages = sum(-(-path.stat().st_size // 4096) for path in undisturbed.rglob("*") if path.is_file())

    def mount(option):
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(disk)], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")

    mount(f"size={pages * 4096 * 2 // 3}")
    try:
        spec_in(tmp_path)
        arguments = ["run", tmp_path / "spec.yaml", "--out", disk]
        code, _, err = nursery.run(arguments)
        assert code == 75 and "Traceback" not in err, err
        assert "disk" in err.lower() and statuses(disk / "small")[0] in ("failed:disk_full", "done")
        assert "failed:disk_full" in statuses(disk / "small")
        mount("remount,size=16m")
        code, _, err = nursery.run(arguments)
        assert code == 0, err
        assert_same(disk / "small", undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("action, status", [("enospc", "failed:disk_full"), ("eio", "failed:io_error")])
def test_fault_06_a_disk_that_fails_once_pauses_the_sweep(action, status, nursery, tmp_path, undisturbed):
    spec_in(tmp_path)
    code, _, err = nursery.run(run_of(tmp_path), RLHF_LAB_FAULT=f"append.data[steps.jsonl]:{action}@4")
    assert code == 75, err
    assert statuses(results_of(tmp_path)) in ([status, ""], ["done", status])
    until_done(nursery, tmp_path)
    assert_same(results_of(tmp_path), undisturbed)


def test_fault_09_two_sweeps_want_one_sft_at_once_and_its_owner_dies(nursery, tmp_path, undisturbed):
    """Two experiments with one store, that start together; the first owner is killed in the SFT. It is computed once."""
    sweeps = [tmp_path / name for name in ("one", "two")]
    (tmp_path / "store").mkdir()
    for folder in sweeps:
        spec_in(folder, SPEC)
        (results_of(folder)).mkdir(parents=True)
        (results_of(folder) / "stages").symlink_to(tmp_path / "store")
    traces = [f"trace:{tmp_path / 'trace'}", "stage.step:kill@2"]
    processes = [nursery.start(run_of(folder), RLHF_LAB_FAULT=fault) for folder, fault in zip(sweeps, traces, strict=True)]
    for process in processes:
        process.communicate(timeout=120)
    for folder in sweeps:
        until_done(nursery, folder, RLHF_LAB_FAULT=traces[0])
    computed = [line.split()[2] for line in (tmp_path / "trace").read_text().splitlines() if " stage.computed " in line]
    assert len(computed) == len(set(computed)), "no stage twice"
    for folder in sweeps:
        assert_same(results_of(folder), undisturbed)


# Asked to end


def worker_stopped_by(nursery, folder, action, **more):
    """Exit code of `python -m rlhf_lab.worker RUN_DIR` that is sent a signal at a step of its first stage."""
    spec_in(folder)
    nursery.run(run_of(folder), RLHF_LAB_FAULT="run.begin:kill")
    run = read_json(results_of(folder) / "plan.json")["runs"][0]
    command = [nursery.stand_in, "-P", "-m", "rlhf_lab.worker", str(results_of(folder) / "runs" / run)]
    environment = {**os.environ, "RLHF_LAB_LOAD_PLUGINS": "", "RLHF_LAB_FAULT": f"stage.step:{action}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, timeout=60).returncode, run


@pytest.mark.parametrize("action, code", [("term", 143), ("int", 130)])
def test_fault_10_a_worker_saves_and_says_how_it_ended(action, code, nursery, tmp_path, undisturbed):
    ended, run = worker_stopped_by(nursery, tmp_path, action)
    assert ended == code
    status = read_json(results_of(tmp_path) / "runs" / run / "status.json")
    assert status["status"] == "interrupted" and "was stopped after step 1" in status["error"]
    assert len(list(results_of(tmp_path).glob("stages/*/checkpoint-00000001/COMMIT"))) == 1
    until_done(nursery, tmp_path)
    assert_same(results_of(tmp_path), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_fault_10_a_sweep_is_asked_to_end(number, nursery, tmp_path):
    """Its runs save at the end of their step and are `interrupted`, not `running`; the exit code says by what."""
    spec_in(tmp_path, SPEC.replace("steps: 3\n", "steps: 100000\n"))
    sweep = nursery.start(run_of(tmp_path))
    until(lambda: list(results_of(tmp_path).glob("stages/*/checkpoint-*/COMMIT")))
    sweep.send_signal(number)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + number and "Traceback" not in err
    assert "interrupted" in statuses(results_of(tmp_path)) and "running" not in statuses(results_of(tmp_path))
    assert list(rlhf_lab.load(results_of(tmp_path), "runs")["status"]).count("running") == 0


def test_fault_10_the_second_signal_is_immediate(nursery, tmp_path):
    """A step that does not end: the first signal waits for it, the second does not."""
    spec_in(tmp_path)
    sweep = nursery.start(run_of(tmp_path), RLHF_LAB_FAULT="stage.step:hang")
    until(lambda: list(results_of(tmp_path).glob("stages/*/steps.jsonl")))
    sweep.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        sweep.wait(0.5)
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=30)
    assert sweep.returncode == 143
    assert "running" not in statuses(results_of(tmp_path))
    assert until_done(nursery, tmp_path) == 1


# Chaos

WRITE = [point for point in POINTS if point.startswith("write.")]


def kinds_of_points(trace):
    """(point, file) that a sweep passes, in the order in which it first does; of the six points of an atomic write two for
    each file, another two for the next, unless CHAOS=all. Where the file is named by a hash, any.
    """
    found, files = {}, []
    for line in trace.read_text().splitlines():
        _, point, name = line.split(" ")
        files += [] if name in files else [name]
        turn = WRITE.index(point) + files.index(name) if point in WRITE else 0
        if turn % 3 == 0 or os.environ.get("CHAOS") == "all":
            found.setdefault(point if len(name) == 16 or "checkpoint" in name else f"{point}[{name}]")
    return list(found)


def test_fault_01_chaos(nursery, tmp_path, undisturbed, finding):
    """Killed once at each point, by whichever process passes it, the driver or a worker: the bytes are the same."""
    spec_in(tmp_path / "traced")
    assert nursery.run(run_of(tmp_path / "traced"), RLHF_LAB_FAULT=f"trace:{tmp_path / 'trace'}")[0] == 0
    todo = kinds_of_points(tmp_path / "trace")
    points, before, sweeps, commands = len(todo), nursery.kills(), 0, 0
    while todo:
        folder, sweeps = tmp_path / f"chaos{sweeps}", sweeps + 1
        spec_in(folder)
        done = False
        while not done:
            kills, commands = nursery.kills(), commands + 1
            assert commands < 4 * points, f"no progress at {todo[:1]}: {nursery.run(run_of(folder))}"
            code, _, err = nursery.run(run_of(folder), RLHF_LAB_FAULT=f"{todo[0]}:kill" if todo else "")
            assert "Traceback" not in err, err
            done = code == 0
            if todo and nursery.kills() > kills:
                todo.pop(0)
            elif todo:  # not passed any more, since all that it belongs to is finished: in the next sweep
                todo.append(todo.pop(0))
        assert_same(results_of(folder), undisturbed)
        assert sweeps < 6, f"never passed: {todo}"
    kills = nursery.kills() - before
    finding(f"{kills} kills at {points} points over {sweeps} sweeps")
    assert kills >= 50 and kills >= points


def test_one_real_kill_by_the_real_command(tmp_path, undisturbed):
    """No forks: an interpreter of its own for the command and for its workers, and the fault from the environment."""
    spec_in(tmp_path)
    command = [sys.executable, "-m", "rlhf_lab.cli", *map(str, run_of(tmp_path))]
    environment = {**os.environ, "RLHF_LAB_LOAD_PLUGINS": ""}
    armed = {**environment, "RLHF_LAB_FAULT": "write.rename[tensors.safetensors]:kill@3"}
    assert subprocess.run(command, env=armed, stderr=subprocess.DEVNULL, timeout=300).returncode == 1
    assert subprocess.run(command, env=environment, timeout=300).returncode == 0
    assert all(is_committed(path) for path in (results_of(tmp_path) / "stages").iterdir())
    assert_same(results_of(tmp_path), undisturbed)
