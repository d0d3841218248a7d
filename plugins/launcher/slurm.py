"""Runs as jobs of a SLURM cluster, by submitit."""

import os
import re
import subprocess
import sys
import time

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab.errors import LabError
from rlhf_lab.running.pool import worker_command, worker_variables
from rlhf_lab.store.files import read_json, write_json

ARRAY = 1000  # jobs in one array: the smallest limit in use (MaxArraySize is 1001 unless a cluster says otherwise)


class Slurm(Component):
    """Each run is a job of an array (submitit); a preempted or requeued one goes on from its checkpoint.

    The folder of results must be on a file system that all nodes share, and so must the Python that gives the command. A job
    outlives the command: given again, the command finds the jobs that are queued or running and submits only the others.
    """

    kind, name = "launcher", "slurm"
    partition: str | None = param(None, "partition; default: the cluster's")
    minutes: int = param(240, "longest time of a job; what takes longer saves, and is submitted again", ge=1, unit="min")
    memory: float | None = param(None, "memory of a job; default: resources.memory_limit, or the cluster's", gt=0, unit="GiB")
    options: dict[str, str | int | bool] = param(
        {}, "further options of sbatch, by their long names: account, qos, constraint, …"
    )
    poll: float = param(5.0, "how often squeue is asked", gt=0, unit="s")

    def open(self, resources, n_runs):
        try:
            import submitit
        except ImportError:
            raise LabError("the launcher slurm needs submitit: pip install 'rlhf-lab[slurm]'") from None
        if submitit.SlurmExecutor.affinity() < 0:
            raise LabError("the launcher slurm needs srun, sbatch, squeue and scancel on PATH; is this a login node?")
        return Jobs(self, resources, n_runs)


class Jobs:
    """A fleet of SLURM jobs. RUN_DIR/slurm.json names the job of a run."""

    def __init__(self, cfg, resources, n_runs):
        self.cfg, self.resources = cfg, resources
        self.slots = resources.workers or n_runs
        self.jobs, self.asked_at = {}, 0.0

    def start(self, run_dirs):
        alive = living_jobs()
        fresh = []
        for run_dir in run_dirs:
            before = read_json(run_dir / "slurm.json")["job"] if (run_dir / "slurm.json").is_file() else None
            if before in alive:
                self.jobs[run_dir] = before
            else:
                fresh.append(run_dir)
        for first in range(0, len(fresh), ARRAY):
            self._submit(fresh[first : first + ARRAY])

    def _submit(self, run_dirs):
        threads = self.resources.threads or 1
        command = worker_command(self.resources)
        executor = self._executor(run_dirs[0].parents[1] / "slurm", threads, len(run_dirs))
        submitted = executor.map_array(become, [[*command, str(path)] for path in run_dirs], [threads] * len(run_dirs))
        for run_dir, job in zip(run_dirs, submitted, strict=True):
            self.jobs[run_dir] = job.job_id
            write_json(run_dir / "slurm.json", {"job": job.job_id})

    def _executor(self, folder, threads, n_jobs):
        import submitit

        folder.mkdir(mode=0o700, exist_ok=True)
        executor = submitit.SlurmExecutor(folder=folder, python=f"{sys.executable} -P")
        gib = self.cfg.memory or self.resources.memory_limit
        executor.update_parameters(
            job_name="rlhf-lab",
            time=self.cfg.minutes,
            cpus_per_task=threads * self.resources.processes,
            array_parallelism=min(self.slots, n_jobs),
            signal_delay_s=max(30, 15 * min(self.cfg.minutes, 8)),
            **({"partition": self.cfg.partition} if self.cfg.partition else {}),
            **({"mem": f"{int(gib * 1024)}M"} if gib else {}),
            **({"gpus_per_node": int(-(-self.resources.gpus // 1))} if self.resources.gpus else {}),
            additional_parameters={"requeue": True, **self.cfg.options},
        )
        return executor

    def ended(self, timeout):
        time.sleep(timeout)
        if time.monotonic() - self.asked_at < self.cfg.poll or not self.jobs:
            return {}
        alive, self.asked_at = living_jobs(), time.monotonic()
        gone = [run_dir for run_dir, job in self.jobs.items() if job not in alive]
        return {run_dir: how_it_ended(self.jobs.pop(run_dir)) for run_dir in gone}

    def stop(self, run_dirs):
        """Running jobs are sent SIGTERM and no more: scancel without a signal would kill them half a minute later."""
        jobs = [self.jobs[run_dir] for run_dir in run_dirs if run_dir in self.jobs]
        cancel(jobs, "--state=PENDING")
        cancel(jobs, "--state=RUNNING", "--signal=TERM")

    def kill(self, run_dirs):
        jobs = [self.jobs[run_dir] for run_dir in run_dirs if run_dir in self.jobs]
        cancel(jobs, "--state=RUNNING", "--signal=KILL")
        cancel(jobs)

    def close(self):
        self.kill(list(self.jobs))
        while set(self.jobs.values()) & living_jobs():
            time.sleep(0.5)
        self.jobs.clear()


def become(command, threads):
    """Runs on the node: this process turns into the worker, so that SLURM's signals are the worker's."""
    os.environ.update(worker_variables(threads))
    os.execv(command[0], command)


def living_jobs():
    """All jobs of this user that are queued, running or about to end; each job of an array by itself, as 12_3."""
    said = ask("squeue", "--me", "--array", "--noheader", "--format=%i")
    return {re.sub(r"\[.*", "", line.strip()) for line in said.splitlines()}


def how_it_ended(job):
    """What the controller remembers of it, for a few minutes; without accounting nothing else does."""
    shown = ask("scontrol", "show", "job", "--oneliner", job, check=False)
    said = dict(re.findall(r"(JobState|Reason|ExitCode)=(\S+)", shown))
    if said.get("ExitCode") == "0:0" and said.get("JobState") == "COMPLETED":
        return ""
    return f"SLURM job {job}: " + (" ".join(f"{key}={value}" for key, value in said.items()) or "no longer known")


def cancel(jobs, *options):
    for first in range(0, len(jobs), ARRAY):
        ask("scancel", "--quiet", *options, *jobs[first : first + ARRAY], check=False)


def ask(*command, check=True):
    """What a SLURM command prints. The controller may be away for a while; then it is asked again."""
    for wait in (1, 5, 25, 0):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0 or not check:
            return done.stdout
        time.sleep(wait)
    raise LabError(f"{command[0]} fails: {' '.join(done.stderr.split())}")


@hookimpl
def register_components(register):
    register(Slurm)
