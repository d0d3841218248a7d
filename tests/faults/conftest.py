"""What the tests of faults share: processes that start fast, and an undisturbed sweep to compare with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from forked import Nursery

from rlhf_lab.store import faults


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Starts `rlhf-lab` and its workers as forks of one process that has imported everything."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture
def finding(request):
    """`finding("57 kills")`: what a test found out, for the catalogue."""

    def finding(text):
        if "FAULT_FINDINGS" in os.environ:
            with open(os.environ["FAULT_FINDINGS"], "a", encoding="utf-8") as file:
                file.write(f"{request.node.originalname}\t{text}\n")

    return finding


@pytest.fixture
def armed(monkeypatch):
    """`armed("write.fsync:enospc")`: the fault that this process meets next."""
    return lambda text: monkeypatch.setattr(faults, "armed", faults.armed_by(text))


@pytest.fixture
def passed(tmp_path, monkeypatch):
    """`passed(action)`: the points that an action passes, as (point, file name), in order."""

    def passed(action):
        trace = tmp_path / "trace.txt"
        trace.unlink(missing_ok=True)
        monkeypatch.setattr(faults, "armed", faults.armed_by(f"trace:{trace}"))
        action()
        monkeypatch.setattr(faults, "armed", None)
        return [tuple(line.split(" ")[1:]) for line in trace.read_text().splitlines()]

    return passed


@pytest.fixture
def killed():
    """`killed(fault, action)`: does the action in a process of its own that meets the fault; True if SIGKILL ended it."""

    def killed(fault, action):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                faults.armed = faults.armed_by(fault)
                action()
                code = 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9

    return killed
