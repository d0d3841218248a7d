"""One run in one process: what it writes, what it says, and what it refuses."""

import json
import os
import subprocess
import sys

import pytest
from micro_spec import PLUGINS, plan_of, write_spec

from rlhf_lab.declaration.overrides import parse_override
from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.registry import discover
from rlhf_lab.running.plan import plan_sweep
from rlhf_lab.running.pool import ALLOCATOR, worker_variables
from rlhf_lab.running.runner import prepare
from rlhf_lab.store.files import is_committed, read_json
from rlhf_lab.worker import execute, log_level, output_to, reporter


@pytest.fixture
def prepared(tmp_path):
    """`prepared(*overrides)`: the folder of the one run of the small sweep, ready to be executed."""

    def prepared(*overrides, plugins=()):
        registry = discover(plugins, {"RLHF_LAB_LOAD_PLUGINS": ""})
        path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
        sweep = load_sweep(path, [parse_override(text) for text in overrides], registry)
        plan = plan_sweep(sweep, registry)
        prepare(sweep, plan, tmp_path / "results", plugins)
        return tmp_path / "results" / "runs" / plan.runs[0].run_id

    return prepared


def test_a_run_writes_its_stages_and_its_status(prepared):
    folder, said = prepared(), []
    assert execute(folder, lambda **event: said.append(event)) == "done"
    status, run = read_json(folder / "status.json"), read_json(folder / "run.json")
    assert status["status"] == "done" and status["seconds"] > 0 and status["packages"]["torch"] and status["host"]
    for name, stage in run["stages"].items():
        path = folder.parents[1] / "stages" / stage
        assert is_committed(path)
        written = read_json(path / "stage.json")
        assert written["kind"] == name and written["inputs"] == ({} if name == "sft" else {"sft": run["stages"]["sft"]})
        assert len(written["plugin_sources"]["data/micro"]) == 32 and written["seed"] == 0
    assert {event["stage"] for event in said} == {"sft", "rl"}
    assert all(0 < event["done"] <= event["total"] for event in said if event["event"] == "progress")
    assert [e["done"] for e in said if e["stage"] == "rl"][-1] == 3, "the end is always reported"


def test_a_second_time_nothing_is_computed(prepared):
    folder = prepared()
    execute(folder)
    said = []
    assert execute(folder, lambda **event: said.append(event)) == "done" and said == []


def test_a_failure_is_a_status_and_a_traceback(prepared):
    folder = prepared("rl.reward=raises", plugins=[PLUGINS / "troubles.py"])
    assert execute(folder) == "failed"
    status = read_json(folder / "status.json")
    assert status["error"] == r"KeyError: 'no such\nword'" and status["packages"]
    assert "KeyError" in (folder / "traceback.txt").read_text()


def test_a_plan_that_no_longer_holds_is_refused(prepared):
    folder = prepared()
    run = read_json(folder / "run.json")
    (folder / "run.json").write_text(json.dumps({**run, "stages": {**run["stages"], "rl": "0" * 16}}))
    assert execute(folder) == "failed"
    assert read_json(folder / "status.json")["error"] == (
        "data, plugins or versions changed since the sweep was planned (stages rl); plan it again"
    )
    assert not (folder.parents[1] / "stages").exists()


def test_one_run_by_the_module_as_any_launcher_starts_it(prepared, tmp_path):
    folder = prepared()
    command = [sys.executable, "-m", "rlhf_lab.worker", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)["event"] == "progress" for line in done.stdout.splitlines())
    assert read_json(folder / "status.json")["status"] == "done"
    missing = subprocess.run([*command[:-1], str(tmp_path)], capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.startswith("usage: python -m rlhf_lab.worker RUN_DIR")


def test_progress_is_said_now_and_then_and_at_the_end():
    said = []
    report = reporter(lambda **event: said.append(event["done"]), "rl", interval=1000)
    for done in range(1, 6):
        report(done, 5, "")
    assert said == [1, 5]
    eager = reporter(lambda **event: said.append(event["done"]), "rl", interval=0)
    for done in range(1, 4):
        eager(done, 5, "")
    assert said == [1, 5, 1, 2, 3]


def test_what_code_prints_goes_to_the_log(tmp_path, capfd):
    with output_to(tmp_path / "log.txt"):
        print("from python")
        os.system("echo from a child; echo and its errors >&2")
    print("afterwards")
    log = (tmp_path / "log.txt").read_text()
    assert "from a child" in log and "and its errors" in log
    out, err = capfd.readouterr()
    assert "afterwards" in out and "child" not in out + err


def test_seeds_give_other_numbers_and_a_seed_the_same(finished):
    rows = {}
    for run in plan_of(finished.parents[1] / "spec.yaml")["runs"]:
        rows[run["axes"]["rl.kl.beta"], run["seed"]] = (finished / "stages" / run["stages"]["rl"] / "steps.jsonl").read_text()
    first = {key: json.loads(text.splitlines()[1]) for key, text in rows.items()}
    assert first[0.1, 0]["response_length"] == first[1, 0]["response_length"], "arms of one seed share prompts and noise"
    assert len(set(rows.values())) == 4


@pytest.mark.parametrize(
    ("said", "level"), [(None, 30), ("", 30), ("debug", 10), ("INFO", 20), ("ERROR", 40), ("nonsense", 30)]
)
def test_how_much_is_logged_is_up_to_a_variable(said, level):
    """Levels as the logging module numbers them."""
    assert log_level({} if said is None else {"RLHF_LAB_LOG_LEVEL": said}) == level


MEMORY = """
import os, psutil, torch
from rlhf_lab.worker import give_memory_back
held = lambda: psutil.Process().memory_info().rss / 2**20
def used():
    for _ in range(3):
        first, second = torch.ones(2**26), torch.ones(2**26)
before = held(); used(); kept = held(); give_memory_back(); print(kept - before, held() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or not hasattr(os, "confstr"), reason="an allocator of glibc")
def test_a_worker_keeps_memory_within_a_run_and_gives_it_back_after():
    """Without the setting a freed tensor leaves at once, and every new one is cleared by the kernel page by page."""
    environment = os.environ | worker_variables(1)

    def mebibytes(**variables):
        done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, env=environment | variables)
        return [float(word) for word in done.stdout.split()]

    kept, after = mebibytes()
    assert kept > 400 and after < 100  # of twice 256
    kept, _ = mebibytes(GLIBC_TUNABLES="")
    assert kept < 100


def test_an_allocator_that_is_tuned_already_stays_so(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert worker_variables(2)["GLIBC_TUNABLES"] == ALLOCATOR
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    assert worker_variables(2)["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"
