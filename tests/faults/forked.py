"""Processes that start in milliseconds: forks of one that has imported everything, for tests that kill many of them.

They are processes like any other, with an environment, standard streams and signals of their own, and die of real signals.
`Nursery.run(["run", …])` is the command `rlhf-lab run …`; the workers that it starts are forks too, since in them the
interpreter is a script that asks this server for one, and then lives and dies as its stand-in.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

STAND_IN = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps(dict(module=sys.argv[3], arguments=sys.argv[4:], environment=dict(os.environ), folder=os.getcwd()))
def forward(number, frame):
    server.sendall(b"%d\\n" % number)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, forward)
socket.send_fds(server, [request.encode() + b"\\n"], [0, 1, 2])
for number in (0, 1, 2):
    os.close(number)
code = int(server.makefile().readline() or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -9 else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class Nursery:
    """The server, as tests see it."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "nursery")
        stand_in = folder / "python"
        stand_in.write_text(STAND_IN.format(python=sys.executable, address=self.address))
        stand_in.chmod(0o755)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.stand_in = str(stand_in)
        self.server = subprocess.Popen([sys.executable, __file__, self.address, self.stand_in], env=environment)
        while not Path(self.address).exists():
            assert self.server.poll() is None, "the server of forks did not start"
            time.sleep(0.05)

    def start(self, arguments, **environment: str) -> subprocess.Popen[str]:
        """`rlhf-lab ARGUMENTS` as a process."""
        return subprocess.Popen(
            [self.stand_in, "-P", "-m", "rlhf_lab.cli", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RLHF_LAB_LOAD_PLUGINS": "", **environment},
        )

    def run(self, arguments, timeout: float = 120, **environment: str) -> tuple[int, str, str]:
        """(exit code, standard output, errors) of `rlhf-lab ARGUMENTS`."""
        process = self.start(arguments, **environment)
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err

    def kills(self) -> int:
        """How many processes have died of SIGKILL by their own hand so far."""
        return Path(f"{self.address}.killed").stat().st_size

    def close(self) -> None:
        self.server.kill()
        self.server.wait()


def serve(address: str) -> None:
    """Forks a process for each connection; tells it how that process ended, and kills it where nobody waits any more."""
    Path(f"{address}.killed").touch()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address + ".new")
    listening.listen(64)
    os.rename(address + ".new", address)
    children: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listening, *children.values()], [], [], 0.01)
        for connection in ready:
            if connection is listening:
                accept(listening, children)
            else:
                hear(connection, children)
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
                    with open(f"{address}.killed", "ab") as file:
                        file.write(b".")
                connection = children.pop(pid)
                with contextlib.suppress(OSError):
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                connection.close()


def accept(listening: socket.socket, children: dict[int, socket.socket]) -> None:
    connection, _ = listening.accept()
    data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 20)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            listening.close()
            connection.close()
            for other in children.values():
                other.close()
            code = live(json.loads(data), streams)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    for stream in streams:
        os.close(stream)
    children[pid] = connection


def hear(connection: socket.socket, children: dict[int, socket.socket]) -> None:
    (pid,) = (pid for pid, other in children.items() if other is connection)
    said = connection.recv(64)
    with contextlib.suppress(ProcessLookupError):
        for number in map(int, said.split()) if said else [signal.SIGKILL]:
            os.kill(pid, number)
    if not said:
        os.waitpid(pid, 0)
        children.pop(pid).close()


def live(request: dict, streams: list[int]) -> int:
    """What the new process does: `python -m MODULE ARGUMENTS` in its own environment."""
    import torch

    from rlhf_lab import cli, worker
    from rlhf_lab.store import faults

    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    faults.armed = faults.armed_by(os.environ.get("RLHF_LAB_FAULT"))
    sys.argv = [request["module"], *request["arguments"]]
    try:
        return {"rlhf_lab.worker": worker.main, "rlhf_lab.cli": cli.main}[request["module"]]() or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def import_everything() -> None:
    """What the processes would import one after the other, and what of it is loaded at first use."""
    import pandas as pd
    import pyarrow.parquet  # noqa: F401
    import torch
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast  # noqa: F401

    import rlhf_lab.cli.progress
    import rlhf_lab.cli.run
    import rlhf_lab.running.runner
    import rlhf_lab.worker  # noqa: F401
    from rlhf_lab.registry import discover
    from rlhf_lab.store.conditions import code_of_the_core

    code_of_the_core()  # of the code that the forks run, whatever is edited meanwhile
    for registration in discover([], {"RLHF_LAB_LOAD_PLUGINS": ""}).registrations():
        registration.source_hash()
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    AutoModelForCausalLM.from_config(config)
    Accelerator  # noqa: B018
    pd.DataFrame({"a": [1.0]}).merge(pd.DataFrame({"a": [1.0]}), on="a")
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.executable = sys.argv[2]
    import_everything()
    serve(sys.argv[1])
