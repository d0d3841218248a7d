"""Atomic files and stages that count once."""

import hashlib
import json
import math
import os
import threading

import pytest

from rlhf_lab.store.files import (
    COMMIT,
    canonical,
    commit,
    compute_once,
    digest,
    file_digest,
    is_committed,
    json_row,
    read_json,
    verify,
    write_atomically,
    write_json,
)


def test_a_digest_is_blake2b_of_sorted_json():
    text = '{"a":[1,2.5,null],"b":"β"}'
    assert canonical({"b": "β", "a": [1, 2.5, None]}) == text
    assert digest({"b": "β", "a": [1, 2.5, None]}) == hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    assert digest({"a": 1}) != digest({"a": 1.0}) != digest({"a": "1"})


def test_nan_has_no_digest():
    with pytest.raises(ValueError):
        digest({"a": math.nan})


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "old")
    write_atomically(path, b"new\x00")
    assert path.read_bytes() == b"new\x00"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert file_digest(path) == hashlib.blake2b(b"new\x00", digest_size=16).hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def full(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_json_refuses_what_json_has_not(tmp_path):
    write_json(tmp_path / "a.json", {"β": [1]})
    assert read_json(tmp_path / "a.json") == {"β": [1]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", {"a": math.nan})
    assert not (tmp_path / "b.json").exists()


def test_rows_are_json_lines_that_every_reader_takes():
    line = json_row({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1, "e": 'x"\n', "f": True, "g": None})
    assert line.endswith("\n") and line.count("\n") == 1
    assert json.loads(line) == {"a": None, "b": math.inf, "c": -math.inf, "d": 0.1, "e": 'x"\n', "f": True, "g": None}


def test_floats_survive_a_row():
    values = [0.1 + 0.2, 1e-310, 1 / 3, 123456789.123456789]
    assert json.loads(json_row({str(i): v for i, v in enumerate(values)})) == {str(i): v for i, v in enumerate(values)}


def test_a_stage_is_computed_once(tmp_path):
    calls = []

    def compute(folder, lease):
        calls.append(folder)
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("hello")

    assert compute_once(tmp_path / "s", compute) and not compute_once(tmp_path / "s", compute)
    assert calls == [tmp_path / "s"]
    assert read_json(tmp_path / "s" / COMMIT) == {
        "sub/x": {"size": 5, "blake2b": hashlib.blake2b(b"hello", digest_size=16).hexdigest()}
    }


def test_the_next_attempt_is_given_what_a_failed_one_left(tmp_path):
    """It does not count until it is whole."""
    seen = []

    def fail(folder, lease):
        (folder / "half").write_text("x")
        raise RuntimeError

    def finish(folder, lease):
        seen.extend(path.name for path in folder.iterdir())
        (folder / "half").rename(folder / "whole")

    with pytest.raises(RuntimeError):
        compute_once(tmp_path / "s", fail)
    assert not is_committed(tmp_path / "s")
    assert compute_once(tmp_path / "s", finish) and seen == ["half"]
    assert sorted(read_json(tmp_path / "s" / COMMIT)) == ["whole"]


def test_a_changed_or_missing_file_of_a_committed_folder_is_found(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    commit(tmp_path)
    assert verify(tmp_path) == []
    (tmp_path / "b").write_text("B")
    (tmp_path / "c").unlink()
    assert verify(tmp_path) == ["b", "c"]


def test_of_many_at_once_one_computes(tmp_path):
    computed, start = [], threading.Barrier(4)

    def compute(folder, lease):
        computed.append(threading.get_ident())
        (folder / "x").write_text("x")

    def go():
        start.wait()
        compute_once(tmp_path / "s", compute)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1 and is_committed(tmp_path / "s")


def test_a_folder_without_its_marker_does_not_count(tmp_path):
    (tmp_path / "x").write_text("x")
    assert not is_committed(tmp_path)
    commit(tmp_path)
    assert is_committed(tmp_path)
