"""Worker processes on this machine: warm ones, which import torch once and then take one run after another.

Each is the leader of a process group, so that whatever a run starts can be ended with it; if it dies, only its run fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lab.errors import SpecError

# Tensors of many megabytes come and go. By default glibc maps each of them anew, and the kernel clears its pages every time: a
# sixth of a PPO step of a model with a large vocabulary. Kept and reused, they cost nothing; huge pages do the rest.
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"mmap_max": 0, "trim_threshold": 2**40, "top_pad": 2**26, "hugetlb": 1}.items()
)
WORKER = (sys.executable, "-P", "-m", "rlhf_lab.worker")  # -P: nothing is imported from the working directory


def width(resources: Any, n_runs: int, n_gpus: int = 0) -> tuple[int, int]:
    """(workers, threads per process): all cores or GPUs used, none twice."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = gpus_per_run(resources, n_gpus)
    fitting = int(n_gpus / wanted + 1e-9) if wanted else max(1, cores // resources.processes)
    workers = min(resources.workers or fitting, max(1, n_runs))
    return workers, resources.threads or max(1, cores // (workers * resources.processes))


def gpus_per_run(resources: Any, n_gpus: int) -> float:
    """What the spec says, or one for each process where there are any."""
    return float(min(n_gpus, resources.processes) if resources.gpus is None else resources.gpus)


def visible_gpus() -> list[str]:
    """Their names as CUDA_VISIBLE_DEVICES has them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name.strip() for name in said.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def gpu_shares(names: Sequence[str], per_run: float, workers: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each worker: GPUs of its own, or, with less than one per run, one that some others also have.

    Raises SpecError where there are not enough.
    """
    if per_run > 1 and per_run != int(per_run):
        raise SpecError(f"resources.gpus is {per_run}: a run has a part of one GPU, or whole ones")
    if per_run * workers > len(names) + 1e-9:
        raise SpecError(
            f"{workers} runs at a time with {per_run:g} GPUs each need {per_run * workers:g}, but there are {len(names)} here; "
            f"lower resources.workers or resources.gpus"
        )
    if per_run == 0:
        return [""] * workers
    if per_run < 1:
        return [names[int(worker * per_run + 1e-9)] for worker in range(workers)]
    n = int(per_run)
    return [",".join(names[worker * n : (worker + 1) * n]) for worker in range(workers)]


def worker_variables(threads: int) -> dict[str, str]:
    """What the environment of a worker says of its machine; an allocator that was tuned already stays as it is."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ALLOCATOR),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def worker_command(resources: Any) -> list[str]:
    """What starts one run, but for its folder: `python -m rlhf_lab.worker`, as several processes if the spec says so."""
    if resources.processes == 1 and resources.accelerate is None:
        return list(WORKER)
    if resources.accelerate is None:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={resources.processes}"]
    else:
        launch = ["-m", "accelerate.commands.launch", "--num_processes", str(resources.processes)]
        launch += ["--config_file", str(resources.accelerate)]
    return [sys.executable, "-P", *launch, "-m", "rlhf_lab.worker"]


class Pool:
    """A fleet (see contracts.py) of processes of this machine."""

    def __init__(self, resources: Any, n_runs: int) -> None:
        gpus = visible_gpus()
        self.slots, threads = width(resources, n_runs, len(gpus))
        shares = gpu_shares(gpus, gpus_per_run(resources, len(gpus)), self.slots)
        several = resources.processes > 1 or resources.accelerate is not None
        command = worker_command(resources) if several else [*WORKER, "--serve"]
        self.workers = [Worker(command, {**worker_variables(threads), "CUDA_VISIBLE_DEVICES": share}) for share in shares]
        for worker in self.workers[:n_runs]:
            worker.warm_up()

    def start(self, run_dirs: Sequence[Path]) -> None:
        idle = [worker for worker in self.workers if worker.run_dir is None]
        for worker, run_dir in zip(idle[: len(run_dirs)], run_dirs, strict=True):
            worker.start(run_dir)

    def ended(self, timeout: float) -> dict[Path, str]:
        deadline, ends = time.monotonic() + timeout, {}
        while not ends and (left := deadline - time.monotonic()) > 0:
            busy = [worker for worker in self.workers if worker.run_dir is not None]
            select.select([worker.process.stdout for worker in busy if not worker.deaf], [], [], min(left, 0.1))
            ends = {worker.run_dir: how for worker in busy if (how := worker.look()) is not None}
            for worker in busy:
                if worker.run_dir in ends:
                    worker.run_dir = None
        return ends

    def stop(self, run_dirs: Sequence[Path]) -> None:
        for worker in self._at(run_dirs):
            worker.signal(signal.SIGTERM)

    def kill(self, run_dirs: Sequence[Path]) -> None:
        for worker in self._at(run_dirs):
            worker.kill()

    def _at(self, run_dirs: Sequence[Path]) -> list[Worker]:
        return [worker for worker in self.workers if worker.run_dir in run_dirs]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.bury()


class Worker:
    """One process, and the run that it is at. `--serve` processes are kept from run to run, others are started for each."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self.command, self.environment = list(command), {**os.environ, **variables}
        self.serves = "--serve" in command
        self.process: subprocess.Popen[bytes] | None = None
        self.run_dir: Path | None = None
        self.heard, self.deaf, self.leaves = b"", False, False

    def warm_up(self) -> None:
        """Starts a process that serves, if there is none: it imports torch while others already work."""
        if self.serves and (self.process is None or self.process.poll() is not None):
            self._launch([])

    def start(self, run_dir: Path) -> None:
        if self.serves:
            self.warm_up()
            with contextlib.suppress(BrokenPipeError):  # it died just now, which `look` will see
                self.process.stdin.write(f"{run_dir}\n".encode())
        else:
            self._launch([str(run_dir), "--attached"], log=run_dir / "log.txt")
        self.run_dir = run_dir

    def _launch(self, arguments: Sequence[str], log: Path | None = None) -> None:
        self.bury()
        self.heard, self.deaf, self.leaves = b"", False, False
        with open(log, "ab") if log else contextlib.nullcontext() as errors:
            self.process = subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env=self.environment,
                start_new_session=True,
            )

    def look(self) -> str | None:
        """How the run ended; None while it has not."""
        finished = self._listen()
        if finished and self.serves and not self.leaves:
            return ""
        if self.process.poll() is None:
            return None
        code = self.process.returncode
        self.kill()  # what it started and left behind
        return "" if code == 0 else cause_of_death(code)

    def _listen(self) -> bool:
        """Reads what has been said since the last time; whether that the run is finished was among it."""
        while not self.deaf and select.select([self.process.stdout], [], [], 0)[0]:
            more = os.read(self.process.stdout.fileno(), 65536)
            self.heard, self.deaf = self.heard + more, not more
        *lines, self.heard = self.heard.split(b"\n")
        return any(parsed(line).get("event") == "finished" for line in lines)

    def signal(self, number: int) -> None:
        """To the process alone: what it started may be needed until the step is done. After that it takes no further run."""
        self.leaves = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Ends the process group at once, and what has left the group."""
        if self.process is None:
            return
        strays = descendants(self.process.pid) if self.process.poll() is None else []
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for stray in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stray, signal.SIGKILL)

    def bury(self) -> None:
        """Waits for a process that is ending, and lets go of its pipes."""
        if self.process is not None:
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self.process = None


def descendants(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cause_of_death(code: int) -> str:
    """What a return code says; the kernel kills with SIGKILL what needs more memory than there is."""
    if code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}{' (out of memory?)' if -code == signal.SIGKILL else ''}"


def parsed(line: str | bytes) -> dict[str, Any]:
    """An event; empty for a line that is none, such as one that was cut off or what a library printed."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
