"""Runs as tasks of a Ray cluster."""

import os
import signal
import time

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab.errors import LabError, SpecError
from rlhf_lab.running.pool import Worker, gpus_per_run, worker_command, worker_variables

PASSED_ON = ("RLHF_LAB_", "HF_", "TRANSFORMERS_", "OMP_", "MKL_")
OLDEST = (2, 52)  # earlier ones have holes that a browser on the same machine can use (CVE-2025-62593)


class Ray(Component):
    """Each run is a task of Ray core, with the CPUs and GPUs that it needs; a run whose node is lost is started elsewhere.

    The folder of results must be on a file system that all nodes share. Without an address a cluster of this machine alone is
    started, and ended with the sweep. Ray is told to retry nothing: what is tried again, and how often, the spec says. If the
    command itself is killed, Ray kills its runs; given again, it goes on from their last checkpoints.
    """

    kind, name = "launcher", "ray"
    address: str | None = param(None, "address of the cluster's head, or auto; default: RAY_ADDRESS, or this machine")

    def open(self, resources, n_runs):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise LabError("the launcher ray needs Ray: pip install 'rlhf-lab[ray]'") from None
        if tuple(map(int, ray.__version__.split(".")[:2])) < OLDEST:
            raise LabError(f"the launcher ray needs Ray >= {OLDEST[0]}.{OLDEST[1]}; here is {ray.__version__}")
        return Tasks(self, resources, n_runs)


class Tasks:
    """A fleet of Ray tasks, each of which attends to one worker process on its node."""

    def __init__(self, cfg, resources, n_runs):
        import ray

        self.started_here = not ray.is_initialized()
        if self.started_here:
            ray.init(address=cfg.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        n_gpus = int(ray.cluster_resources().get("GPU", 0))
        self.cpus = (resources.threads or 1) * resources.processes
        self.gpus = gpus_per_run(resources, n_gpus)
        fitting = sum(places(node["Resources"], self.cpus, self.gpus) for node in ray.nodes() if node["Alive"])
        if fitting == 0:  # Ray would wait for ever, without a word
            raise SpecError(f"no node of the Ray cluster has {self.cpus} CPUs and {self.gpus:g} GPUs, which a run asks for")
        self.slots = resources.workers or n_runs
        variables = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
        self.variables = variables | worker_variables(resources.threads or 1)
        self.command = worker_command(resources)
        self.refs = {}

    def start(self, run_dirs):
        import ray

        task = ray.remote(max_retries=0, num_cpus=self.cpus, num_gpus=self.gpus)(attend)
        for run_dir in run_dirs:
            (run_dir / "kill").unlink(missing_ok=True)
            self.refs[run_dir] = task.remote(self.command, self.variables, run_dir)

    def ended(self, timeout):
        import ray

        if not self.refs:
            time.sleep(timeout)
            return {}
        runs = {ref: run_dir for run_dir, ref in self.refs.items()}
        over, _ = ray.wait(list(runs), num_returns=1, timeout=timeout)
        return {runs[ref]: how_it_ended(self.refs.pop(runs[ref])) for ref in over}

    def stop(self, run_dirs):
        import ray

        for run_dir in run_dirs:
            if run_dir in self.refs:
                ray.cancel(self.refs[run_dir], force=False)

    def kill(self, run_dirs):
        for run_dir in run_dirs:
            if run_dir in self.refs:
                (run_dir / "kill").touch()
        self.stop(run_dirs)

    def close(self):
        import ray

        self.kill(list(self.refs))
        while self.refs:
            self.ended(1.0)
        if self.started_here:
            ray.shutdown()


def places(node, cpus, gpus):
    """How many runs fit on a node."""
    by_gpu = int(node.get("GPU", 0) / gpus + 1e-9) if gpus else float("inf")
    return min(int(node.get("CPU", 0) / cpus + 1e-9), by_gpu)


def attend(command, variables, run_dir):
    """Runs on the node: one worker, which ends when this process does; returns how it ended.

    Ray cancels by a KeyboardInterrupt, which becomes a SIGTERM; a file RUN_DIR/kill says that nothing is to be waited for.
    """
    worker = Worker(command, variables)
    worker.start(run_dir)
    asked = False
    while (how := worker.look()) is None:
        try:
            if (run_dir / "kill").exists():
                worker.kill()
            time.sleep(0.1)
        except KeyboardInterrupt:
            if not asked:
                worker.signal(signal.SIGTERM)
            asked = True
    worker.bury()
    return how


def how_it_ended(ref):
    """What the task said, or what became of it: WorkerCrashedError, NodeDiedError, TaskCancelledError."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        return f"Ray: {type(error).__name__}"


@hookimpl
def register_components(register):
    register(Ray)
