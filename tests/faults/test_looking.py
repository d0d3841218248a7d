"""Fault 20: results of another version. Fault 23: looking while others write, folders that cannot be written or are gone."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
from micro_sweeps import SPEC, results_of, run_of, spec_in

import rlhf_lab
from rlhf_lab.errors import DataError
from rlhf_lab.results.tables import compact

SCHEMA_1 = Path(__file__).parents[1] / "data" / "schema_1"


@pytest.fixture
def old(tmp_path):
    """A copy of the results that the first schema left."""
    shutil.copytree(SCHEMA_1, tmp_path / "old")
    return tmp_path / "old"


def test_fault_20_tables_of_schema_1_are_read(old):
    """The numbers were written down when the folder was made."""
    runs, steps, samples = (rlhf_lab.load(old, table) for table in ("runs", "steps", "samples"))
    assert runs["run_id"].tolist() == ["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"] and runs["status"].tolist() == ["done", "failed"]
    assert steps["stage"].tolist() == ["sft", "rl", "sft"] and steps["seed"].tolist() == [0, 0, 0]
    assert steps["kl"].tolist()[1] == 0.0 and steps["loss"].tolist()[::2] == [2.5, 2.5] and steps["grad_norm"][0] == 1.25
    assert samples["response"].tolist() == ["so good !"] and samples["rl.kl.beta"].tolist() == [0.1]


def test_fault_20_tables_of_schema_1_are_rebuilt_from_its_files(old):
    before = {name: pd.read_parquet(old / f"{name}.parquet") for name in ("runs", "steps", "samples")}
    for name in before:
        (old / f"{name}.parquet").unlink()
    for file in old.glob("runs/*/run.json"):
        file.write_text(file.read_text().replace("STORE", str(old / "stages")))
    compact(old)
    for name, frame in before.items():
        pd.testing.assert_frame_equal(pd.read_parquet(old / f"{name}.parquet"), frame)


def test_fault_20_a_newer_table_is_refused_in_one_sentence(old):
    path = old / "steps.parquet"
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, b"rlhf_lab.schema": b"2"}), path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"was written by a newer rlhf_lab \(schema 2, this one knows 1\); install that one"):
        rlhf_lab.load(old)
    assert path.read_bytes() == before


def test_a_sweep_of_a_newer_version_is_left_alone(nursery, tmp_path):
    spec_in(tmp_path)
    results = results_of(tmp_path)
    results.mkdir(parents=True)
    (results / "plan.json").write_text('{"schema": 2, "runs": []}')
    code, _, err = nursery.run(run_of(tmp_path))
    assert code == 1 and "was written by a newer rlhf_lab (schema 2, this one knows 1)" in err and "Traceback" not in err
    assert [path.name for path in results.iterdir()] == ["plan.json"]


def test_fault_20_what_is_no_table_is_said(old):
    (old / "steps.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(DataError, match=r"cannot be read as parquet .*; `rlhf-lab run` writes it anew"):
        rlhf_lab.load(old)


# While others write


def test_fault_23_tables_are_whole_while_they_are_rewritten(old):
    """A process rebuilds them as fast as it can; whoever reads sees one version or the next."""
    for file in old.glob("runs/*/run.json"):
        file.write_text(file.read_text().replace("STORE", str(old / "stages")))
    writer = os.fork()
    if writer == 0:
        while True:
            compact(old)
    try:
        began, reads = time.monotonic(), 0
        while time.monotonic() - began < 1:
            assert len(rlhf_lab.load(old)) == 3
            reads += 1
        assert reads > 20
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    assert len(rlhf_lab.load(old)) == 3


def sentence(nursery, *arguments):
    """Exit code and errors of a command that may not print a traceback."""
    code, _, err = nursery.run(arguments)
    assert "Traceback" not in err, err
    return code, err


def test_fault_23_a_folder_that_cannot_be_written(nursery, tmp_path):
    spec_in(tmp_path)
    (tmp_path / "out").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path / "out")], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        code, err = sentence(nursery, *run_of(tmp_path))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "out")], check=True)
    assert code != 0 and "Read-only file system" in err and len(err.splitlines()) == 1


def test_fault_23_a_file_where_the_folder_should_be(nursery, tmp_path):
    spec_in(tmp_path)
    (tmp_path / "out").write_text("")
    code, err = sentence(nursery, *run_of(tmp_path))
    assert code == 2 and f"{tmp_path / 'out'}' is a file" in err


def test_fault_23_the_folder_is_deleted_under_the_driver(nursery, tmp_path):
    spec_in(tmp_path, SPEC.replace("steps: 3\n", "steps: 100000\n"))
    sweep, results = nursery.start(run_of(tmp_path)), results_of(tmp_path)
    deadline = time.monotonic() + 60
    while not list(results.glob("stages/*/checkpoint-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while results.exists():
        shutil.rmtree(results, ignore_errors=True)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode not in (0, None) and "Traceback" not in err, err
    assert str(results) in err


def test_fault_23_status_while_a_sweep_writes(nursery, tmp_path):
    spec_in(tmp_path)
    sweep, seen = nursery.start(run_of(tmp_path)), 0
    while sweep.poll() is None:
        if (results_of(tmp_path) / "plan.json").is_file():
            code, out, err = nursery.run(["status", results_of(tmp_path), "--json"])
            assert code == 0, err
            json.loads(out)
            seen += 1
    assert sweep.communicate() and sweep.returncode == 0 and seen > 3
