"""The laws of a launcher (contracts.py, Launcher and Fleet), over the one that this session tests."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from clusters import alive, pid_of, wait_for
from micro_spec import PLUGINS, write_spec

from rlhf_lab.declaration.overrides import parse_override
from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.registry import discover
from rlhf_lab.running.plan import plan_sweep
from rlhf_lab.running.runner import prepare
from rlhf_lab.store.files import COMMIT, read_json
from rlhf_lab.worker import execute

PLUGIN = PLUGINS / "observed.py"


class Site:
    """Runs that wait to be started, and fleets to start them with."""

    def __init__(self, folder, launcher):
        self.folder, self.launcher, self.seen = folder, launcher, folder / "seen.jsonl"

    def write_spec(self, arms, resources="{workers: 2, threads: 1}", seeds=(0,)):
        """`arms` maps a name to the parameters of the reward `observed`."""
        rewards = {
            arm: {"rl.reward": {"name": "observed", "file": str(self.seen), "label": arm, **p}} for arm, p in arms.items()
        }
        return write_spec(
            self.folder,
            arms=f"arms: {json.dumps(rewards)}",
            axes="axes: {}",
            seeds=f"seeds: {list(seeds)}",
            resources=f"resources: {resources}",
        )

    def prepared(self, arms, **resources):
        """(RUN_DIR of each arm, the sweep); the stage that the runs share is computed."""
        registry = discover([PLUGIN])
        choices = [f"resources.{key}={json.dumps(value)}" for key, value in (resources | {"launcher": self.launcher}).items()]
        sweep = load_sweep(self.write_spec({"opener": {}, **arms}), [parse_override(choice) for choice in choices], registry)
        plan = plan_sweep(sweep, registry)
        prepare(sweep, plan, self.folder / "results", [PLUGIN])
        folders = {run.arm: self.folder / "results" / "runs" / run.run_id for run in plan.runs}
        shared = self.folder / "results" / "stages" / plan.runs[0].stages[0].hash
        first = folders.pop("opener")
        assert execute(first, stop=lambda: (shared / COMMIT).exists()) == "interrupted"
        shutil.rmtree(shared.with_name(read_json(first / "run.json")["stages"]["rl"]))
        for file in (first / "status.json", self.seen):
            file.unlink(missing_ok=True)
        return folders, sweep

    @contextlib.contextmanager
    def fleet(self, sweep, n_runs):
        fleet = sweep.file.resources.launcher.open(sweep.file.resources, n_runs)
        try:
            yield fleet
        finally:
            fleet.close()

    def lines(self, label=None):
        rows = [json.loads(line) for line in self.seen.read_text().splitlines()] if self.seen.exists() else []
        return [row for row in rows if label in (None, row["label"])]


@pytest.fixture
def site(tmp_path, cluster):
    return Site(tmp_path, cluster.launcher)


def all_ends(fleet, n):
    ends = {}
    wait_for(lambda: ends.update(fleet.ended(0.2)) or len(ends) >= n, 180)
    assert len(ends) == n and fleet.ended(0.5) == {}, "each is named once"
    return ends


def status_of(run_dir):
    return read_json(run_dir / "status.json")["status"]


def test_runs_start_are_isolated_and_their_output_is_kept(site, cluster):
    """One run of three kills its process; the others do not notice, and what they print is in their folders."""
    trap = site.folder / "trap"
    trap.touch()
    folders, sweep = site.prepared({"good": {}, "bad": {"dies_if": str(trap)}, "good_too": {}})
    with site.fleet(sweep, 3) as fleet:
        assert fleet.slots == 2
        fleet.start([folders["good"], folders["bad"]])
        ends = all_ends(fleet, 2)
        assert ends[folders["good"]] == "" and any(word in ends[folders["bad"]] for word in ("KILL", cluster.lost))
        fleet.start([folders["good_too"]])
        assert all_ends(fleet, 1) == {folders["good_too"]: ""}
    for arm in ("good", "good_too"):
        assert status_of(folders[arm]) == "done"
        log = (folders[arm] / "log.txt").read_text()
        assert "said in python" in log and "said by a child" in log and "and as an error" in log
    assert status_of(folders["bad"]) == "running", "it could not say otherwise"
    assert {row["OMP_NUM_THREADS"] for row in site.lines()} == {"1"}


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(site):
    folders, sweep = site.prepared({"slow": {"seconds": 0.7}, "other": {"seconds": 0.1}})
    slow, other = folders["slow"], folders["other"]
    with site.fleet(sweep, 2) as fleet:
        fleet.start([slow, other])
        wait_for(lambda: site.lines("slow"))
        fleet.stop([slow])
        ends = all_ends(fleet, 2)
        assert set(ends) == {slow, other} and status_of(slow) == "interrupted" and status_of(other) == "done"
        before = len(site.lines("slow"))
        fleet.start([slow])
        assert all_ends(fleet, 1)[slow] == "" and status_of(slow) == "done"
    run = read_json(slow / "run.json")
    rows = (Path(run["store"]) / run["stages"]["rl"] / "steps.jsonl").read_text()
    steps = [json.loads(row)["step"] for row in rows.splitlines() if '"train"' in row]
    assert steps == [0, 1, 2] and len(site.lines("slow")) - before < before + 3, "it did not begin again"


def test_a_killed_run_leaves_no_process(site):
    folders, sweep = site.prepared({"endless": {"seconds": 600}})
    (run_dir,) = folders.values()
    with site.fleet(sweep, 1) as fleet:
        fleet.start([run_dir])
        pid = wait_for(lambda: pid_of(run_dir))
        family = wait_for(lambda: [p.pid for p in psutil.Process(pid).children(recursive=True)] + [pid])
        fleet.kill([run_dir])
        (how,) = all_ends(fleet, 1).values()
        assert how != ""
        wait_for(lambda: not any(map(alive, family)), 10)


def test_closing_ends_what_is_left(site):
    folders, sweep = site.prepared({"endless": {"seconds": 600}})
    (run_dir,) = folders.values()
    with site.fleet(sweep, 1) as fleet:
        fleet.start([run_dir])
        pid = wait_for(lambda: pid_of(run_dir))
    assert not alive(pid)


# Whole sweeps, by the command line


def sweep_process(site, spec, *more):
    launcher = f"resources.launcher={json.dumps(site.launcher)}"
    command = [sys.executable, "-m", "rlhf_lab.cli", "run", spec, launcher, "--plugin", PLUGIN, "--out", site.folder / "out"]
    return subprocess.Popen([*map(str, [*command, *more])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def test_no_more_runs_at_a_time_than_there_are_slots(site, cluster):
    arms = {f"a{i}": {"seconds": cluster.pace} for i in range(4)}
    spec = site.write_spec(arms)
    said = finished(sweep_process(site, spec, "--json"))
    assert len(said["done"]) == 4
    spans = [(min(row["begun"] for row in rows), max(row["ended"] for row in rows)) for rows in map(site.lines, arms)]
    assert max(sum(begun <= at < ended for begun, ended in spans) for at, _ in spans) == 2


def test_nothing_is_lost_or_repeated_when_the_driver_is_killed(site, cluster):
    """Its processes save and end, or are adopted: either way each step is computed once. Ray kills what its driver leaves."""
    arms, resources = {"a": {"seconds": 0.6}, "b": {"seconds": 0.6}}, "{workers: 2, threads: 1, checkpoint_every: {steps: 1}}"
    spec = site.write_spec(arms, resources)
    driver = sweep_process(site, spec)
    wait_for(lambda: len(site.lines()) >= 2, 120)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    said = finished(sweep_process(site, spec, "--json"))
    assert len(said["done"]) + len(said["reused"]) == 2 and not said["failed"]
    results = site.folder / "out" / "tiny"
    for file in results.glob("stages/*/steps.jsonl"):
        steps = [(row["step"], row["split"]) for row in map(json.loads, file.read_text().splitlines())]
        assert len(steps) == len(set(steps))
    # three training steps and evaluations before and after: what one uninterrupted run asks of its reward, and one
    # measurement more where a run was opened a second time
    for arm in arms:
        assert len(site.lines(arm)) <= len_of_an_undisturbed_run(site) + 1 + cluster.steps_lost_with_the_driver


def len_of_an_undisturbed_run(site):
    undisturbed = Site(site.folder / "undisturbed", "local")
    if not undisturbed.folder.exists():
        undisturbed.folder.mkdir()
        finished(sweep_process(undisturbed, undisturbed.write_spec({"a": {}}), "--json"))
    return len(undisturbed.lines())


def test_a_lost_run_is_started_again_and_goes_on(site, cluster):
    """The process is killed, the job requeued, or the node lost: the sweep ends as if nothing had been."""
    spec = site.write_spec({"a": {"seconds": 2.0}}, resources="{threads: 1, checkpoint_every: {steps: 1}}")
    sweep = sweep_process(site, spec, "--json")
    (run_dir,) = wait_for(lambda: list((site.folder / "out" / "tiny").glob("runs/*")), 60)
    wait_for(lambda: len(site.lines()) >= 2, 120)
    cluster.lose(run_dir)
    said = finished(sweep)
    assert said["done"] == [run_dir.name] and not said["failed"]
    assert len({row["pid"] for row in site.lines()}) == 2
    assert len(site.lines()) <= len_of_an_undisturbed_run(site) + 2, "at most the step that was cut off"
