"""A sweep whose machines fail under it: nothing is lost, and nothing computed twice."""

import json
import os
import subprocess
import sys
from collections import Counter

from clusters import pid_of, wait_for
from micro_spec import write_spec

import rlhf_lab
from rlhf_lab.store.files import COMMIT, read_json


def start(path, out, launcher, trace):
    command = [sys.executable, "-m", "rlhf_lab.cli", "run", path, f"resources.launcher={json.dumps(launcher)}", "--out", out]
    return subprocess.Popen(
        [*map(str, command), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RLHF_LAB_FAULT": f"trace:{trace}"},
    )


def finished(process):
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return json.loads(out)


def passes(trace, point):
    """How often each stage passed a point of its work (rlhf_lab/store/faults.py), in all processes together."""
    found = Counter()
    for line in trace.read_text().splitlines():
        _, passed, name = line.split(" ", 2)
        if passed == point:
            found[name] += 1
    return found


def at_work(results):
    """Runs that are in the middle of reinforcement learning."""
    found = []
    for file in results.glob("runs/*/run.json"):
        run_dir, run = file.parent, read_json(file)
        stage = results / "stages" / run["stages"]["rl"]
        if pid_of(run_dir) and (stage / "steps.jsonl").exists() and not (stage / COMMIT).exists():
            found.append(run_dir)
    return found


def rows(results):
    return {file.parent.name: file.read_bytes() for file in results.glob("stages/*/steps.jsonl")}


def test_a_sweep_survives_the_loss_of_machines(tmp_path, cluster):
    """Twice a run is lost: a node with it, or its job requeued. Tables are those of a sweep that nothing happened to."""
    seeds = 1 if cluster.launcher == "local" else 3
    path = write_spec(
        tmp_path,
        axes="axes: {rl.kl.beta: [0.1, 0.2, 0.5, 1]}",
        seeds=f"seeds: {list(range(seeds))}",
        resources="resources: {workers: 2, threads: 1, checkpoint_every: {steps: 1}}",
    )
    path.write_text(path.read_text().replace("steps: 3", "steps: 60"))
    results, trace = tmp_path / "out" / "tiny", tmp_path / "trace"
    sweep, lost = start(path, tmp_path / "out", cluster.launcher, trace), set()
    with sweep:
        try:
            for _ in range(2):
                run_dir = wait_for(lambda: next(iter(set(at_work(results)) - lost), None), 120)
                cluster.lose(run_dir)
                lost.add(run_dir)
            said = finished(sweep)
        finally:
            sweep.kill()
    assert len(said["done"]) == 4 * seeds and said["failed"] == said["interrupted"] == {}

    runs = [read_json(file) for file in results.glob("runs/*/run.json")]
    stages = {stage for run in runs for stage in run["stages"].values()}
    assert len(stages) == 4 * seeds + 1
    assert passes(trace, "stage.computed") == dict.fromkeys(stages, 1)
    assert {name for name, times in passes(trace, "stage.begin").items() if times > 1} <= {
        read_json(run_dir / "run.json")["stages"]["rl"] for run_dir in lost
    }
    steps, hashes = passes(trace, "stage.step"), {run["stages"]["rl"] for run in runs}
    assert all(60 <= steps[stage] <= 62 for stage in hashes), "at most the step that was cut off is done again"
    assert sum(steps[stage] for stage in hashes) <= 60 * len(hashes) + len(lost)

    finished(start(path, tmp_path / "undisturbed", "local", tmp_path / "other_trace"))
    assert rows(results) == rows(tmp_path / "undisturbed" / "tiny")
    frame = rlhf_lab.load(results, "steps")
    assert not frame.duplicated(["run_id", "stage", "step", "split"]).any()
