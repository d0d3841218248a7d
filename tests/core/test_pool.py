"""How wide a sweep is, who gets which GPU, and what a worker process says of its end."""

import os

import pytest

from rlhf_lab.declaration.sweep import Resources
from rlhf_lab.errors import SpecError
from rlhf_lab.running.pool import cause_of_death, gpu_shares, parsed, visible_gpus, width, worker_command


@pytest.mark.parametrize(
    ("workers", "threads", "n_runs", "cores", "expected"),
    [(None, None, 9, 4, (4, 1)), (None, None, 2, 8, (2, 4)), (None, None, 0, 4, (1, 4)), (3, None, 9, 8, (3, 2)),
     (3, 5, 9, 8, (3, 5)), (16, None, 99, 4, (16, 1)), (None, 2, 1, 4, (1, 2))],
)  # fmt: skip
def test_how_many_workers_and_threads(monkeypatch, workers, threads, n_runs, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert width(Resources(workers=workers, threads=threads), n_runs) == expected


@pytest.mark.parametrize(
    ("resources", "n_gpus", "expected"),
    [({}, 4, (4, 4)), ({"gpus": 2}, 4, (2, 8)), ({"gpus": 0.5}, 1, (2, 8)), ({"gpus": 0.25, "workers": 3}, 1, (3, 5)),
     ({"gpus": 0}, 4, (16, 1)), ({"processes": 2}, 4, (2, 4)), ({"processes": 2}, 0, (8, 1)),
     ({"processes": 32, "gpus": 0}, 0, (1, 1))],
)  # fmt: skip
def test_width_follows_gpus_and_processes(monkeypatch, resources, n_gpus, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert width(Resources(**resources), 99, n_gpus) == expected


@pytest.mark.parametrize(
    ("names", "per_run", "workers", "expected"),
    [(["0", "1"], 1, 2, ["0", "1"]), (["0", "1", "2", "3"], 2, 2, ["0,1", "2,3"]), (["7"], 0.5, 2, ["7", "7"]),
     (["0", "1"], 0.25, 8, ["0"] * 4 + ["1"] * 4), ([], 0, 3, ["", "", ""]), (["0", "1"], 0, 1, [""]),
     (["0"], 1 / 3, 3, ["0", "0", "0"])],
)  # fmt: skip
def test_no_gpu_is_given_twice_unless_it_is_shared(names, per_run, workers, expected):
    assert gpu_shares(names, per_run, workers) == expected


def test_too_few_gpus_are_said_before_anything_starts():
    with pytest.raises(SpecError, match="3 runs at a time with 1 GPUs each need 3, but there are 2 here"):
        gpu_shares(["0", "1"], 1, 3)
    with pytest.raises(SpecError, match="a run has a part of one GPU, or whole ones"):
        gpu_shares(["0", "1"], 1.5, 1)


@pytest.mark.parametrize(("said", "names"), [("", []), ("-1", []), ("2,3", ["2", "3"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])])
def test_gpus_are_those_that_the_environment_leaves(monkeypatch, said, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert visible_gpus() == names


def test_several_processes_are_started_by_those_who_can():
    assert worker_command(Resources())[-2:] == ["-m", "rlhf_lab.worker"]
    several = worker_command(Resources(processes=4))
    assert "--nproc-per-node=4" in several and several[-2:] == ["-m", "rlhf_lab.worker"]
    configured = worker_command(Resources(processes=2, accelerate="fsdp.yaml"))
    assert configured[configured.index("--config_file") + 1] == "fsdp.yaml"


def test_what_ended_a_worker():
    assert cause_of_death(-9) == "killed by SIGKILL (out of memory?)"
    assert cause_of_death(-11) == "killed by SIGSEGV"
    assert cause_of_death(3) == "exit code 3"


def test_lines_that_are_no_events_are_passed_over():
    assert parsed('{"event": "progress"}\n') == {"event": "progress"}
    assert parsed('{"event": "prog') == parsed("a library says hello\n") == parsed("3\n") == {}
    assert parsed(b"\xff\xfe") == {}
