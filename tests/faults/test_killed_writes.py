"""Faults 3, 5 and 6: killed, or out of disk, at every point of every write."""

import ast
import inspect
import logging
import os
import subprocess
from pathlib import Path

import pytest
import torch

import rlhf_lab
from rlhf_lab.errors import SpecError
from rlhf_lab.results.tables import read_rows
from rlhf_lab.store import faults
from rlhf_lab.store.checkpoint import Checkpoint, cut_tables, keep_only_resumable, newest_checkpoint, write_checkpoint
from rlhf_lab.store.faults import POINTS, armed_by
from rlhf_lab.store.files import append_line, commit, compute_once, is_committed, trouble, verify, write_atomically

WRITE = [point for point in POINTS if point.startswith("write.")]
BEFORE_THE_RENAME = {"write.open", "write.data", "write.fsync", "write.rename"}


def test_every_point_stands_in_the_code_and_in_the_list():
    core = Path(rlhf_lab.__file__).parent
    calls = [
        node.args[0].value
        for path in core.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fault"
    ]
    assert sorted(calls) == sorted(POINTS)


def test_an_unset_fault_is_one_comparison():
    assert faults.armed is None
    assert inspect.getsource(faults.fault).splitlines()[2:] == [
        "    if armed is not None:",
        "        armed.passes(point, os.path.basename(path), partial)",
    ]


@pytest.mark.parametrize("text", ["write.fsynch:kill", "write.fsync:explode", "write.fsync", "write.fsync:kill@0", ":kill"])
def test_a_misspelt_fault_is_said(text):
    with pytest.raises(SpecError, match=r"is not POINT\[FILE\]:ACTION@N with a point of write.open, "):
        armed_by(text)


@pytest.mark.parametrize("point", WRITE)
@pytest.mark.parametrize("action", ["kill", "torn"])
def test_fault_03_a_file_is_old_or_new_after_a_kill(point, action, tmp_path, killed):
    path = tmp_path / "file.txt"
    write_atomically(path, "old content")
    assert killed(f"{point}:{action}", lambda: write_atomically(path, "new content"))
    assert path.read_text() == ("old content" if point in BEFORE_THE_RENAME else "new content")


@pytest.mark.parametrize("point", sorted(BEFORE_THE_RENAME))
@pytest.mark.parametrize("action, kind", [("enospc", "disk_full"), ("edquot", "disk_full"), ("eio", "io_error")])
def test_fault_06_a_failed_write_leaves_the_old_file_alone(point, action, kind, tmp_path, armed):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    armed(f"{point}:{action}")
    with pytest.raises(OSError) as error:
        write_atomically(path, "new")
    assert trouble(error.value) == kind
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_what_rust_says_of_a_full_disk_is_understood():
    """safetensors and tokenizers raise errors of their own, that have the number in their words."""
    assert trouble(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")) == "disk_full"
    wrapped = ValueError("could not save")
    wrapped.__cause__ = OSError(5, "Input/output error")
    assert trouble(wrapped) == "io_error"
    assert trouble(ValueError("os error")) is None and trouble(FileNotFoundError(2, "none")) is None


# A checkpoint


def checkpoint(step):
    return Checkpoint(step, {"w": torch.full((64,), float(step))}, {"beta": float(step)})


def stage_with_a_checkpoint(folder):
    folder.mkdir(parents=True)
    append_line(folder / "steps.jsonl", '{"step": 1}\n')
    write_checkpoint(folder, checkpoint(1))
    append_line(folder / "steps.jsonl", '{"step": 2}\n')
    return folder


def is_whole(found, folder):
    rows = [row["step"] for row in read_rows(folder / "steps.jsonl")]
    return found.tensors["w"].tolist() == [found.step] * 64 and found.state == {"beta": found.step} and rows[-1] == found.step


def test_fault_03_killed_at_every_point_of_a_save(tmp_path, passed, killed, caplog):
    """The newest whole checkpoint loads, the tables are cut to it, and a torn one is set aside under a name that says so."""
    points = passed(lambda: write_checkpoint(stage_with_a_checkpoint(tmp_path / "traced"), checkpoint(2)))
    save = points[points.index(("checkpoint.begin", "checkpoint-00000002")) - 1 :]
    assert len(save) >= 24 and {point for point, _ in save} > {*WRITE, "commit.fsync", "commit.marker", "checkpoint.remove"}
    steps = []
    for i, (point, name) in enumerate(save):
        for action in ("kill", "torn") if point == "write.data" else ("kill",):
            folder = stage_with_a_checkpoint(tmp_path / f"{i}{action}" / "traced")
            n = save[: i + 1].count((point, name))
            assert killed(f"{point}[{name}]:{action}@{n}", lambda folder=folder: write_checkpoint(folder, checkpoint(2)))
            began, caplog_before = (folder / "checkpoint-00000002").exists(), len(caplog.records)
            keep_only_resumable(folder)
            found = newest_checkpoint(folder)
            assert is_whole(found, folder)
            assert not list(folder.rglob("*.tmp"))
            torn = [record.getMessage() for record in caplog.records[caplog_before:]]
            if found.step == 1 and began:
                assert len(torn) == 1 and "kept as torn-checkpoint-00000002" in torn[0]
                assert (folder / "torn-checkpoint-00000002").is_dir()
            else:
                assert not torn
            steps.append(found.step)
    committed = steps.index(2)
    assert steps == [1] * committed + [2] * (len(steps) - committed), "no point brings back what was saved before"
    assert 0 < committed < len(steps)


def test_fault_06_out_of_disk_at_every_point_of_a_save(tmp_path, passed, armed):
    points = passed(lambda: write_checkpoint(stage_with_a_checkpoint(tmp_path / "traced"), checkpoint(2)))
    save = points[points.index(("checkpoint.begin", "checkpoint-00000002")) :]
    before_the_commit = save[: save.index(("write.folder", "COMMIT"))]
    for i, (point, name) in enumerate(before_the_commit):
        folder = stage_with_a_checkpoint(tmp_path / str(i))
        armed(f"{point}[{name}]:enospc@{before_the_commit[: i + 1].count((point, name))}")
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(folder, checkpoint(2))
        found = newest_checkpoint(folder)
        assert found.step == 1 and is_whole(found, folder)


def test_fault_03_a_table_that_lost_rows_makes_its_checkpoint_void(tmp_path, caplog):
    """A power cut took what was said to be on the disk: better an earlier checkpoint than zeros in the table."""
    folder = stage_with_a_checkpoint(tmp_path / "s")
    (folder / "steps.jsonl").write_text('{"step"')
    assert newest_checkpoint(folder) is None
    assert "steps.jsonl lacks rows that it counts on" in caplog.text


def test_fault_03_killed_at_every_point_of_a_commit(tmp_path, passed, killed):
    """A stage counts with all its files or not at all, and the next process computes it once more or not."""

    def compute(folder, held=None):
        (folder / "a").write_text("a")
        (folder / "b").write_text("b")

    points = passed(lambda: compute_once(tmp_path / "traced", compute))
    computed = []
    for i, (point, name) in enumerate(points):
        folder = tmp_path / str(i) / "traced"
        n = points[: i + 1].count((point, name))
        assert killed(f"{point}[{name}]:kill@{n}", lambda folder=folder: compute_once(folder, compute))
        whole = is_committed(folder)
        assert not whole or verify(folder) == []
        computed.append(compute_once(folder, compute))
        assert computed[-1] == (not whole) and verify(folder) == []
        assert not whole or sorted(path.name for path in folder.iterdir()) == ["COMMIT", "a", "b"]
    assert True in computed and False in computed


# Tables


@pytest.mark.parametrize(
    "tail, n_bytes",
    [(b'{"step": 2, "kl": 0.', 20), (b"\0" * 4096, 4096), (b'{"step": 2}\0\0', 13)],
    ids=["torn", "zeros", "both"],
)
def test_fault_05_a_torn_tail_is_cut_off_and_said_with_its_bytes(tail, n_bytes, tmp_path, caplog):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    assert [row["step"] for row in read_rows(path)] == [1], "whoever only reads passes over it"
    with caplog.at_level(logging.WARNING):
        append_line(path, '{"step": 2}\n')
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert caplog.messages == [f"{path}: the last {n_bytes} bytes are no whole line (a write was cut off); truncated"]


def test_fault_05_a_table_without_any_whole_line(tmp_path, caplog):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b"\0\0\0")
    append_line(path, "{}\n")
    assert path.read_bytes() == b"{}\n" and "the last 3 bytes" in caplog.text


def test_fault_05_killed_in_the_middle_of_a_row(tmp_path, killed, caplog):
    path = tmp_path / "steps.jsonl"
    append_line(path, '{"step": 1}\n')
    assert killed("append.data:torn", lambda: append_line(path, '{"step": 2}\n'))
    assert path.read_bytes() == b'{"step": 1}\n{"step'
    cut_tables(tmp_path, {"steps.jsonl": 12})
    assert path.read_bytes() == b'{"step": 1}\n' and "the last 6 bytes" in caplog.text


# A disk that is really full


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(bytes)`: the folder of a file system of that size; again with another size: the same one, resized."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def small_disk(size):
        how = ["-o", f"remount,size={size}"] if mounted else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        made = subprocess.run(["mount", *how, str(folder)], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield small_disk
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_fault_06_a_checkpoint_on_a_full_disk(small_disk):
    folder = stage_with_a_checkpoint(small_disk(2**16) / "s")
    big = Checkpoint(2, {"w": torch.zeros(2**15)}, {})
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(folder, big)
    keep_only_resumable(folder)
    assert is_whole(newest_checkpoint(folder), folder)
    small_disk(2**20)
    write_checkpoint(folder, big)
    assert newest_checkpoint(folder).step == 2


def test_fault_06_a_commit_on_a_full_disk(small_disk):
    folder = small_disk(2**15) / "s"
    folder.mkdir()
    (folder / "weights").write_bytes(os.urandom(2**15))
    with pytest.raises(OSError, match="No space left"):
        commit(folder)
    assert not is_committed(folder) and [path.name for path in folder.iterdir()] == ["weights"]
