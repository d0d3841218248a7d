"""Faults 7 and 9: who computes a stage, when its holder is killed, when it only seems to be there, when many want it."""

import json
import os
import signal
import threading
import time

import pytest

from rlhf_lab.errors import Interrupted, LeaseLost
from rlhf_lab.store import leases
from rlhf_lab.store.files import compute_once, is_committed
from rlhf_lab.store.leases import Owner, holder, lease, place, process_start, this_machine, this_process


def fork(action):
    """A process that does `action` and ends; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return pid


def ends_of(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def note(path, word):
    with open(path, "a") as file:  # one write of less than a page: whole lines, whoever writes
        file.write(f"{word}\n")


def dying_first(log, deaths):
    """A computation that kills its process the first `deaths` times that anybody begins it; it minds company."""

    def compute(folder, held):
        inside = folder / "inside"
        if inside.exists() and process_start(int(inside.read_text())):
            note(log, "two at once")
        inside.write_text(str(os.getpid()))
        note(log, "begin")
        time.sleep(0.01)
        if log.read_text().count("begin") <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        inside.unlink()
        note(log, "end")

    return compute


def test_fault_09_many_processes_compete_and_owners_are_killed(tmp_path):
    """14 processes go through 6 stages, whose first two owners are killed midway: each stage is computed to the end once."""
    deaths, stages = 2, [tmp_path / f"stage{i}" for i in range(6)]

    def go():
        for stage in stages:
            compute_once(stage, dying_first(tmp_path / f"{stage.name}.log", deaths))

    codes = ends_of([fork(go) for _ in range(14)])
    assert sorted(codes) == [-signal.SIGKILL] * 12 + [0] * 2
    for stage in stages:
        assert (tmp_path / f"{stage.name}.log").read_text().split("\n") == ["begin"] * 3 + ["end", ""]
        assert is_committed(stage)
    assert not [path.name for path in tmp_path.iterdir() if "lease" in path.name]


def write_lease(target, owner, number=1):
    place(target, number).write_text(json.dumps(owner._asdict()))


def never():
    return False


@pytest.mark.parametrize(
    "owner",
    {
        "pid is gone": lambda: Owner(this_machine(), dead_pid(), "1"),
        "pid is used again": lambda: this_process()._replace(started="1"),
    }.items(),
    ids=lambda item: item[0],
)
def test_fault_07_a_dead_owner_of_this_machine_is_succeeded_at_once(owner, tmp_path):
    target = tmp_path / "stage"
    write_lease(target, owner[1]())
    assert holder(target) is None
    began = time.monotonic()
    with lease(target, never) as held:
        assert held.number == 2 and holder(target) == this_process()
    assert time.monotonic() - began < 1


def dead_pid():
    pid = fork(lambda: None)
    ends_of([pid])
    return pid


def test_fault_07_a_zombie_holds_nothing(tmp_path):
    pid = fork(lambda: None)
    while process_start(pid) is not None:
        time.sleep(0.001)
    ends_of([pid])


def test_fault_07_a_live_owner_is_never_robbed(tmp_path, monkeypatch):
    """Not even one that has not touched its lease for a year: on its own machine the process counts."""
    monkeypatch.setattr(leases, "PATIENCE", 0.0)
    monkeypatch.setattr(leases, "POLL", 0.001)
    target, looks = tmp_path / "stage", iter(range(100))
    write_lease(target, this_process())
    os.utime(place(target, 1), (1, 1))
    with (
        pytest.raises(Interrupted, match=f"stopped while waiting for stage, which process {os.getpid()} on "),
        lease(target, never, stop=lambda: next(looks) == 50),
    ):
        pass
    assert not place(target, 2).exists()


def test_fault_07_an_owner_elsewhere_lives_as_long_as_it_touches_its_lease(tmp_path, monkeypatch):
    """Its clock does not matter: the times that it writes here go backwards."""
    monkeypatch.setattr(leases, "PATIENCE", 0.3)
    monkeypatch.setattr(leases, "POLL", 0.01)
    target = tmp_path / "stage"
    write_lease(target, Owner("elsewhere/1", os.getpid(), "1"))
    last_touch = [0.0]

    def live():
        for i in range(8):
            os.utime(place(target, 1), (2e9 - 1000 * i,) * 2)
            last_touch[0] = time.monotonic()
            time.sleep(0.1)

    thread = threading.Thread(target=live)
    thread.start()
    with lease(target, never) as held:
        waited = time.monotonic() - last_touch[0]
        assert held.number == 2
    thread.join()
    assert 0.29 < waited < 2


def test_fault_07_who_was_taken_for_dead_may_not_write(tmp_path):
    """It was silent for too long, as a machine that slept; when it wakes up, its work does not count."""
    target = tmp_path / "stage"

    def compute(folder, held):
        (folder / "x").write_text("x")
        held.check()
        write_lease(target, Owner("elsewhere/1", 1, "1"), number=2)

    with pytest.raises(LeaseLost, match="stage was taken over by another process"):
        compute_once(target, compute)
    assert not is_committed(target)


def test_a_lease_that_was_let_go_is_free_and_its_number_is_not_used_again(tmp_path):
    target = tmp_path / "stage"
    for number in (1, 2, 3):
        with lease(target, never) as held:
            assert held.number == number
        assert holder(target) is None


def test_the_owner_touches_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT", 0.01)
    target = tmp_path / "stage"
    with lease(target, never):
        before = place(target, 1).stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while place(target, 1).stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_nobody_waits_for_what_is_finished(tmp_path):
    target = tmp_path / "stage"
    write_lease(target, this_process())
    with lease(target, lambda: True) as held:
        assert held is None
