"""The three places where launchers are tested: this machine, a SLURM and a Ray cluster, each with two CPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

from rlhf_lab.store.files import read_json


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def pid_of(run_dir: Path) -> int | None:
    """The process that is at a run."""
    with contextlib.suppress(FileNotFoundError):
        return read_json(run_dir / "status.json").get("pid")
    return None


class Local:
    """This machine. A run is lost when its process is."""

    launcher = "local"
    lost = "KILL"
    steps_lost_with_the_driver = 0
    pace = 0.8  # seconds for a batch, of which a run has five: longer than it takes to start one

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def lose(self, run_dir: Path) -> None:
        os.kill(pid_of(run_dir), signal.SIGKILL)


class Slurm:
    """The SLURM that slurm.sh has started. A run is lost when its job is requeued."""

    def __init__(self):
        self.launcher = {"name": "slurm", "poll": 0.5, "minutes": 30}

    lost = "SLURM job"
    steps_lost_with_the_driver = 0
    pace = 3.0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def lose(self, run_dir: Path) -> None:
        job = read_json(run_dir / "slurm.json")["job"]
        pid = pid_of(run_dir)
        subprocess.run(["scontrol", "requeue", job], check=True)
        wait_for(lambda: not alive(pid))
        # a requeued job waits for two minutes, unless it is told not to
        wait_for(lambda: told("scontrol", "update", f"jobid={job}", "StartTime=now") and pid_of(run_dir) not in (pid, None))


def told(*command: str) -> bool:
    """True, whatever comes of it."""
    subprocess.run(command, capture_output=True)
    return True


class Ray:
    """A Ray cluster of a head without CPUs and nodes of one CPU each. A run is lost when its node is."""

    lost = "Ray: "
    steps_lost_with_the_driver = 1
    pace = 1.5

    def __enter__(self):
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # which means, also here, the loopback device alone
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "node_ip_address": "127.0.0.1", **self.small},
        )
        self.nodes = [self.add_node(), self.add_node()]
        self.cluster.wait_for_nodes()
        self.launcher = {"name": "ray", "address": self.cluster.address}
        return self

    small = {"object_store_memory": 80 * 2**20}  # noqa: RUF012

    def add_node(self):
        return self.cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", **self.small)

    def __exit__(self, *error):
        self.cluster.shutdown()

    def lose(self, run_dir: Path) -> None:
        """The node with all its processes, as if its plug were pulled; another one takes its place."""
        family = [psutil.Process(pid_of(run_dir)), *psutil.Process(pid_of(run_dir)).parents()]
        (node,) = [node for node in self.nodes if {p.pid for p in family} & pids_of(node)]
        self.nodes.remove(node)
        for process in family[:1]:
            process.kill()
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.add_node())


def pids_of(node) -> set[int]:
    return {info.process.pid for infos in node.all_processes.values() for info in infos}


CLUSTERS = {"local": Local, "slurm": Slurm, "ray": Ray}
