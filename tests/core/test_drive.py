"""What the driver does with runs that end well, crash, hang, are asked to stop, or share a stage; on real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from micro_spec import PLUGINS

from rlhf_lab.declaration.sweep import Resources
from rlhf_lab.running import pool
from rlhf_lab.running.claims import Claims
from rlhf_lab.running.drive import Halt, Task, drive
from rlhf_lab.running.pool import Pool
from rlhf_lab.store.files import read_json

PLAIN = PLUGINS / "plain_worker.py"


class Site:
    """Runs to be driven, by workers that start in milliseconds (tests/data/plain_worker.py)."""

    def __init__(self, folder):
        self.folder, self.heard = folder, []
        (folder / "stages").mkdir()

    def task(self, name, *does, stages=(("own", 0.05),)):
        """A run that does `does`, one at each start, in stages that take so many seconds; `own` is nobody else's."""
        folder = self.folder / "runs" / name
        folder.mkdir(parents=True)
        places = {s: [str(self.folder / "stages" / (name if s == "own" else s)), seconds] for s, seconds in stages}
        (folder / "run.json").write_text(json.dumps({"does": does or ("done",), "stages": places}))
        return Task(name, folder, tuple(self.folder / "stages" / (name if s == "own" else s) for s, _ in stages))

    def drive(self, tasks, halt=None, listen=None, **resources):
        rules = Resources(**{"workers": 2, "threads": 1, "gpus": 0, **resources})
        fleet = Pool(rules, len(tasks))
        try:
            with Claims() as claims:
                return drive(fleet, tasks, rules, Halt() if halt is None else halt, claims, listen or self.listen)
        finally:
            fleet.close()
            assert not [w for w in fleet.workers if w.process is not None]

    def listen(self, run_id, event):
        self.heard.append((run_id, event["event"]))

    def notes(self, what=None, run=None):
        path = self.folder / "notes.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if what in (None, row["what"]) and run in (None, row["run"])]


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "WORKER", (sys.executable, str(PLAIN)))
    return Site(tmp_path)


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# Runs that end well


def test_every_run_is_computed_once_on_two_warm_workers(site):
    ends = site.drive([site.task(f"r{i}") for i in range(7)])
    assert sorted(ends.done) == [f"r{i}" for i in range(7)] and not ends.others
    assert len(site.notes("begins")) == 7 and len({note["pid"] for note in site.notes()}) == 2
    assert site.heard.count(("r3", "started")) == site.heard.count(("r3", "finished")) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_at_a_time_than_there_are_workers(site, workers):
    site.drive([site.task(f"r{i}", stages=[("own", 0.15)]) for i in range(6)], workers=workers)
    spans = [(site.notes("begins", f"r{i}")[0]["at"], site.notes("ends", f"r{i}")[0]["at"]) for i in range(6)]
    assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) == workers


def test_no_slot_waits_for_a_stage_that_another_run_computes(site):
    """Of four runs that share a stage one computes it; meanwhile the run behind them has the other slot."""
    sharing = [site.task(f"s{i}", stages=[("shared", 0.6), ("own", 0.05)]) for i in range(4)]
    ends = site.drive([*sharing, site.task("other", stages=[("own", 0.1)])])
    assert len(ends.done) == 5
    assert len(site.notes("computes shared")) == 1
    order = [note["run"] for note in site.notes("begins")]
    assert set(order[:2]) == {"s0", "other"}
    done_at = site.notes("computes s0")[0]["at"]  # s0 goes on to its own stage when the shared one is there
    assert all(site.notes("begins", f"s{i}")[0]["at"] >= done_at - 0.05 for i in (1, 2, 3))


def test_a_stage_that_runs_share_at_their_end_holds_nobody_up(site):
    """The second run computes its own stage while the first does, whatever the first will compute afterwards."""
    site.drive([site.task(f"r{i}", stages=[("own", 0.4), ("late", 0.1)]) for i in range(2)])
    first, second = (site.notes("begins", f"r{i}")[0]["at"] for i in range(2))
    assert second - first < 0.3


def test_gpus_are_dealt_out(site, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6")
    ends = site.drive([site.task(f"r{i}", stages=[("own", 0.2)]) for i in range(6)], gpus=None, workers=None)
    assert len(ends.done) == 6
    by_pid = {note["pid"]: note["cuda"] for note in site.notes()}
    assert sorted(by_pid.values()) == ["4", "6", "GPU-5"]


# Runs that end badly


def test_a_run_that_dies_is_started_again_a_bounded_number_of_times(site):
    tasks = [site.task("twice", "die", "segv", "done"), site.task("always", "die"), site.task("fine")]
    ends = site.drive(tasks, retries=2)
    assert sorted(ends.done) == ["fine", "twice"]
    assert ends.others["always"]["error"] == "the worker process ended: killed by SIGKILL (out of memory?)"
    assert ends.others["always"]["status"] == "failed" == read_json(tasks[1].folder / "status.json")["status"]
    assert [len(site.notes("begins", run)) for run in ("twice", "always", "fine")] == [3, 3, 1]
    assert site.heard.count(("always", "retry")) == 2


def test_an_error_of_the_code_is_not_tried_again_unless_asked(site):
    ends = site.drive([site.task("a", "raise", "done")])
    assert ends.others["a"]["error"] == "KeyError: 'x'" and len(site.notes("begins")) == 1
    ends = site.drive([site.task("b", "raise", "done")], retries={"exception": 1})
    assert ends.done == ["b"]


@pytest.mark.parametrize("act", ["hang", "child"])
def test_a_run_that_hangs_is_ended_with_all_that_it_started(site, act):
    """`child` is one that left the process group."""
    tasks = [site.task("stuck", act), site.task("a"), site.task("b")]
    begun = time.monotonic()
    ends = site.drive(tasks, time_limit=0.5)
    assert sorted(ends.done) == ["a", "b"] and time.monotonic() - begun < 5
    assert ends.others["stuck"] == {
        "status": "timeout", "error": "it took longer than time_limit: 0.5 s", "cause": "timeout"
    }  # fmt: skip
    child = int((tasks[0].folder / "child").read_text())
    assert not alive(child) and len(site.notes("begins", "stuck")) == 1


def test_fail_fast_stops_the_rest(site):
    tasks = [site.task("bad", "raise"), site.task("long", stages=[("own", 60)]), *(site.task(f"r{i}") for i in range(3))]
    ends = site.drive(tasks, fail_fast=True)
    assert ends.others["bad"]["status"] == "failed" and ends.others["long"]["status"] == "interrupted"
    assert len(ends.others) + len(ends.done) < 5, "some were never started"


def test_a_full_disk_pauses_the_sweep(site):
    halt = Halt()
    ends = site.drive([site.task("full", "disk_full"), *(site.task(f"r{i}", stages=[("own", 0.3)]) for i in range(9))], halt)
    assert halt.paused == "OSError: no space" and ends.others["full"]["status"] == "failed:disk_full"
    assert len(site.notes("begins")) <= 3


# Stopping


def test_asked_to_stop_each_run_saves(site):
    halt = Halt()

    def listen(run_id, event):
        if event["event"] == "started" and run_id == "b":
            threading.Timer(0.3, lambda: setattr(halt, "signal", signal.SIGTERM)).start()

    ends = site.drive([site.task(name, stages=[("own", 30)]) for name in "abc"], halt, listen)
    assert {run: end["status"] for run, end in ends.others.items()} == {"a": "interrupted", "b": "interrupted"}
    assert len(site.notes("begins")) == 2 and not ends.done


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import test_drive
from rlhf_lab.running import pool
from rlhf_lab.running.drive import Halt
pool.WORKER = (sys.executable, str(test_drive.PLAIN))
site = test_drive.Site.__new__(test_drive.Site)
site.folder, site.heard = Path({folder!r}), []
tasks = [test_drive.Task(f.name, f, (site.folder / "stages" / f.name,)) for f in sorted((site.folder / "runs").iterdir())]
with Halt().on_signals() as halt:
    ends = site.drive(tasks, halt)
print(sorted(ends.done), sorted(ends.found_done), flush=True)
sys.exit(128 + halt.signal if halt.signal else 0)
"""


def driver(site):
    paths = [os.path.dirname(__file__), str(PLUGINS.parent)]
    code = DRIVER.format(path=paths, folder=str(site.folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_everything_at_once(site, number):
    tasks = [site.task("deaf", "hang"), site.task("b", stages=[("own", 30)])]
    process = driver(site)
    wait_for(lambda: (tasks[0].folder / "child").exists() and len(site.notes()) >= 3)
    child = int((tasks[0].folder / "child").read_text())
    process.send_signal(number)
    wait_for(lambda: read_json(tasks[1].folder / "status.json")["status"] == "interrupted")
    assert process.poll() is None and alive(child), "the first one waits for the end of a step"
    process.send_signal(number)
    begun = time.monotonic()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number and time.monotonic() - begun < 3
    assert not alive(child) and "Traceback" not in err and "stopping" in err


def test_two_drivers_share_the_runs_and_each_is_computed_once(site):
    for i in range(8):
        site.task(f"r{i}", stages=[("own", 0.25)])
    processes = [driver(site), driver(site)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert len(site.notes("begins")) == 8 == len({note["run"] for note in site.notes("begins")})
    done = [json.loads(out.replace("'", '"').replace("] [", "], [").join("[]")) for out, _ in said]
    assert sorted(done[0][0] + done[1][0]) == [f"r{i}" for i in range(8)]
    assert all(sorted(mine + others) == [f"r{i}" for i in range(8)] for mine, others in done)


def test_runs_of_a_driver_that_was_killed_are_taken_up(site):
    for i in range(4):
        site.task(f"r{i}", stages=[("own", 0.4)])
    first = driver(site)
    wait_for(lambda: site.notes("begins"))
    first.kill()
    first.communicate()
    second = driver(site)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert not [path for path in (site.folder / "runs").glob("*/status.json") if read_json(path)["status"] != "done"]
