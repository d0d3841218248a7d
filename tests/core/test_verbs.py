"""The verbs that look after results: status, ls, show, cancel, retry, reproduce, export, gc, doctor."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from micro_spec import PLUGINS, lab, lab_process, write_spec
from rich.console import Console
from written_results import GONE, Written, held_by, listing

from rlhf_lab import errors
from rlhf_lab.cli import COMMANDS
from rlhf_lab.cli.conventions import VARIABLES
from rlhf_lab.cli.look import clock, status_table, time_left
from rlhf_lab.results.export import csv_text, guarded
from rlhf_lab.results.folder import RunView, run_view, tail
from rlhf_lab.results.reproduce import compared, first_different_row, largest_gap
from rlhf_lab.store.files import commit, read_json
from rlhf_lab.store.leases import this_process

TROUBLES = PLUGINS / "troubles.py"
EVIL = "\x1b[2J\x1b]0;owned\x07red\x9b31m \u202edesrever\r"


def said(*arguments, code=0):
    """What a verb prints as JSON."""
    result = lab(*arguments, "--json")
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Five runs in five states; the one at work is 6 of 10 steps far, and this process works on it."""
    monkeypatch.setenv("RLHF_LAB_RUNS_DIR", str(tmp_path))
    made = Written(tmp_path)
    made.stage("sft0")
    made.stage(
        "rl0", [row(0, 0.0), row(1, 0.5), row(1, 0.7, "validation"), {"stage": "rl", "step": 2, "split": "frontier", "kl": 9}]
    )
    made.stage("rl1", [row(0, 0.0), row(1, 0.25)], committed=False)
    with open(made.folder / "stages" / "rl1" / "steps.jsonl", "a") as file:
        file.write('{"stage": "rl", "step": 2, "split": "train", "kl": 0.')
    made.run("aaaa1", {"status": "done", "seconds": 30.0}, stages={"sft": "sft0", "rl": "rl0"}, axes={"rl.kl.beta": 0.1})
    folder = made.run("aaaa2", "running", stages={"sft": "sft0", "rl": "rl1"}, axes={"rl.kl.beta": 1})
    (folder / "progress.json").write_text(json.dumps({"event": "progress", "stage": "rl", "done": 6, "total": 10, "text": ""}))
    os.utime(folder / "status.json", (time.time() - 12,) * 2)
    held_by(made.folder / "stages" / "rl1", this_process()._asdict())
    made.run("bbbb1", "running", stages={"sft": "sft0", "rl": "rl2"})
    made.run("bbbb2", {"status": "failed", "error": f"no{EVIL}room"}, stages={"sft": "sft0", "rl": "rl3"}, arm=EVIL)
    made.run("cccc1", "pending", stages={"sft": "sft0", "rl": "rl4"})
    return made


def row(step, kl, split="train"):
    return {"stage": "rl", "step": step, "split": split, "kl": kl, "reward_proxy": 10 * kl}


# status


def test_status_says_where_each_run_is(written):
    shown = said("status", written.folder)
    assert shown["counts"] == {"done": 1, "running": 1, "pending": 1, "interrupted": 1, "failed": 1} and shown["at_work"]
    done, running, killed, failed, pending = shown["runs"]
    assert (done["stage"], done["step"], done["kl"], done["reward"]) == ("rl", 1, 0.7, 7.0)
    assert (running["stage"], running["done"], running["total"]) == ("rl", 6, 10)
    assert (running["step"], running["kl"], running["reward"]) == (1, 0.25, 2.5), "the row that is half written does not count"
    assert running["eta"] == pytest.approx(12 / 6 * 4, abs=1), "6 steps took 12 s"
    assert (killed["status"], killed["stage"]) == ("interrupted", "rl"), "nobody is there who runs it"
    assert failed["status"] == "failed" and pending["status"] == "pending" and pending["kl"] is None


def test_status_as_text(written):
    lines = lab("status", "tiny").stdout.splitlines()
    cells = [line.split("\t") for line in lines[:-1]]
    assert cells[0] == ["run", "arm, axes, seed", "status", "stage", "done", "step", "KL", "reward", "ETA"]
    assert cells[1] == ["aaaa1", "base beta=0.1 seed=0", "done", "rl", "", "1", "0.70", "7.000", ""]
    assert cells[2][:8] == ["aaaa2", "base beta=1 seed=0", "running", "rl", "6/10", "1", "0.25", "2.500"]
    assert re.fullmatch("[789]s", cells[2][8])
    assert re.fullmatch(
        r"tiny: 5 runs: 1 done, 1 running, 1 pending, 1 interrupted, 1 failed; about 3[789]s left", lines[-1]
    ), "what runs, and then one more like the one that is done"
    assert not any(ord(c) < 32 and c not in "\t\n" for c in lab("status", "tiny").stdout)


def test_the_live_table_shows_those_at_work_first_and_no_more_than_fit(written):
    console = Console(file=io.StringIO(), force_terminal=True, width=130, color_system=None)
    console.print(status_table(written.folder, 2))
    text = console.file.getvalue()
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:1] == ["run"] and lines[1][0] == "aaaa2" and lines[2][0] in ("bbbb1", "bbbb2")
    assert (
        "(and 3 more)" in text and "owned" not in text.replace("]0;owned", "") and "\x9b" not in text and "\u202e" not in text
    )


def test_watch_on_a_terminal_ends_with_the_sweep(finished):
    """The real program on a real terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rlhf_lab.cli", "status", str(finished), "--watch"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "130"})
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while select.select([ours], [], [], 60)[0]:
            text += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(60) == 0
    assert b"base beta=0.1 seed=0" in text and b"tiny: 4 runs: 4 done" in text


def test_times_are_short():
    assert [clock(s) for s in (0, 59.4, 60, 185, 3600, 7800, math.nan, math.inf)] == [
        "0s", "59s", "1m00s", "3m05s", "1h00m", "2h10m", "", ""
    ]  # fmt: skip


def test_time_left_is_what_runs_plus_rounds_of_what_waits():
    def runs(status, n, **known):
        return [RunView(f"{status}{i}", "base", {}, 0, status, {}, **known) for i in range(n)]

    assert time_left([*runs("done", 3, seconds=10.0), *runs("running", 2, eta=4.0), *runs("pending", 5)]) == 4 + 3 * 10
    assert time_left([*runs("running", 1, eta=4.0)]) == 4
    assert math.isnan(time_left([*runs("running", 1, eta=4.0), *runs("pending", 1)])), "nothing is known of those that wait"
    assert math.isnan(time_left(runs("done", 1, seconds=1.0)))


def test_the_tail_of_a_long_table_is_read_from_its_end(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps({"step": n, "text": "x" * 200}) + "\n" for n in range(2000)) + '{"step": 20')
    rows = list(tail(path))
    assert (
        rows[0]["step"] == 1999
        and [r["step"] for r in rows] == list(range(1999, 1999 - len(rows), -1))
        and 200 < len(rows) < 400
    )
    assert list(tail(tmp_path / "none")) == []


# ls, show


def test_ls_lists_experiments(written, tmp_path):
    Written(tmp_path, "empty")
    (tmp_path / "no_results").mkdir()
    shown = said("ls", tmp_path)["experiments"]
    assert [e["experiment"] for e in shown] == ["empty", "tiny"]
    assert (shown[1]["runs"], shown[1]["done"], shown[1]["running"]) == (5, 1, 1)
    assert shown[1]["others"] == {"pending": 1, "interrupted": 1, "failed": 1} and shown[0]["changed"] is None
    assert "1 pending, 1 interrupted, 1 failed" in lab("ls").stdout


def test_show_takes_the_beginning_of_an_id(written):
    assert said("show", "aaaa1")["status"] == "done"
    assert (
        said("show", "b", "--results", "tiny", code=2)["error"]["message"]
        == "'b' is the beginning of 2 runs: bbbb1 (tiny), bbbb2 (tiny)"
    )
    for wrong in ("zz", ""):
        error = said("show", wrong, code=2)["error"]
        assert error["kind"] == "SpecError" and error["message"].startswith("no run in ")


def test_show_says_where_a_run_came_from(finished):
    run_id = read_json(finished / "plan.json")["runs"][2]
    shown = said("show", run_id[:12], "--results", finished, "--samples", 2)
    assert shown["axes"] == {"rl.kl.beta": 1} and [stage["stage"] for stage in shown["stages"]] == ["sft", "rl"]
    assert all(stage["done"] and stage["bitwise"] for stage in shown["stages"])
    assert shown["config"]["rl"]["kl"]["beta"] == 1 and "torch" in shown["provenance"]["packages"]
    assert len(shown["samples"]) == 2 and "response" in shown["samples"][0]
    text = lab("show", run_id, "--results", finished, "--samples", 1).stdout
    assert text.startswith(f"run      {run_id}") and "stage    sft: " in text and "\ny  " in text


def test_what_a_model_wrote_cannot_steer_the_terminal(written):
    sample = {"stage": "rl", "step": 0, "prompt": f"hi{EVIL}", "response": EVIL + "\u2028x", "reward_proxy": 1.0}
    written.stage("rl3", samples=[sample])
    result = lab("show", "bbbb2", "--samples", 1)
    assert result.exit_code == 0 and "red" in result.stdout and "desrever" in result.stdout
    for text in (result.stdout, lab("show", "bbbb2", "--samples", 1, "--json").stdout, lab("status", "tiny").stdout):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
    assert said("show", "bbbb2", "--samples", 1)["samples"] == [sample], "as data it is whole"


# export


def test_the_export_is_the_tables(finished, tmp_path):
    shown = said("export", finished, "--out", tmp_path / "a")
    folder = tmp_path / "a"
    names = {f"{table}.{form}" for table in ("runs", "steps", "samples") for form in ("csv", "parquet")}
    assert {path.name for path in folder.iterdir()} == {*names, "spec.yaml", "plan.json", "SHA256SUMS"}
    for table in ("runs", "steps", "samples"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / f"{table}.parquet"), pd.read_parquet(finished / f"{table}.parquet")
        )
        assert shown["rows"][table] == len(pd.read_csv(folder / f"{table}.csv"))
    steps = pd.read_csv(folder / "steps.csv", float_precision="round_trip")
    assert steps["kl"].equals(pd.read_parquet(finished / "steps.parquet")["kl"]), "every digit"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert sorted(said("export", finished, "--out", tmp_path / "b", "--format", "csv")["rows"]) == ["runs", "samples", "steps"]
    assert not list((tmp_path / "b").glob("*.parquet"))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\0"])
def test_no_text_becomes_a_formula(start):
    text = f'{start}HYPERLINK("http://evil","x"), "y"\nz'
    frame = pd.DataFrame(
        {"response": [text, "fine = 1", None], "kl": [-1.5, 2.0, math.nan], "ok": [True, False, True], start + "h": 1}
    )
    rows = list(csv.reader(io.StringIO(csv_text(frame), newline="")))
    assert rows[0][:3] == ["response", "kl", "ok"] and rows[0][3].startswith("'")
    assert rows[1][0] == "'" + text.replace("\0", "") and rows[2][0] == "fine = 1" and rows[3][0] == ""
    assert [r[1] for r in rows[1:]] == ["-1.5", "2.0", ""], "a negative number is a number"
    assert guarded(-1) == -1 and guarded("1-1") == "1-1"


# gc


def test_gc_lists_what_no_run_needs_and_removes_it_only_if_asked(written, tmp_path):
    unused = written.stage("old0", [row(0, 0.0)] * 50)
    held_by(written.stage("busy", committed=False), this_process()._asdict())
    shared = written.stage("shared")
    neighbour = Written(tmp_path, "neighbour")
    neighbour.run("dddd1", stages={"sft": "shared"}, store=str(written.folder / "stages"))
    dropped = written.run("eeee1", stages={"sft": "sft0", "rl": "old1"}, planned=False)
    only_there = written.stage("old1")

    def weight(*folders):
        return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())

    before = listing(tmp_path)
    shown = said("gc", "tiny")
    assert (
        {one["path"] for one in shown["garbage"]} == {str(unused)} and shown["bytes"] == weight(unused) and not shown["deleted"]
    )
    wider = said("gc", "tiny", "--unplanned")
    assert {one["path"] for one in wider["garbage"]} == {str(unused), str(only_there), str(dropped)}
    assert wider["bytes"] == weight(unused, only_there, dropped)
    assert listing(tmp_path) == before
    heavy = weight(unused)
    deleted = said("gc", "tiny", "--delete")
    assert deleted["deleted"] and deleted["bytes"] == heavy
    assert not unused.exists() and shared.exists() and only_there.exists() and (written.folder / "stages" / "busy").exists()
    assert said("gc", "tiny")["garbage"] == []


def test_gc_deletes_nothing_under_a_sweep(written):
    unused = written.stage("old0")
    held_by(written.folder / "driver", this_process()._asdict())
    error = said("gc", "tiny", "--delete", code=1)["error"]
    assert error["kind"] == "SweepBusy" and f"process {os.getpid()}" in error["message"] and unused.exists()


# doctor


def findings(*arguments, code=0):
    return [(f["level"], f["what"]) for f in said("doctor", *arguments, code=code)["findings"]]


def test_doctor_finds_nothing_wrong_with_a_good_sweep(finished):
    before = listing(finished)
    found = findings(finished)
    assert {level for level, _ in found} == {"ok"} and listing(finished) == before
    assert ("ok", "5 stages hold what their COMMIT says, by size and blake2b") in found
    assert ("ok", "the tables list the 4 runs as they are") in found


def test_doctor_finds_what_is_broken(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "tiny")
    results = tmp_path / "tiny"
    for file in results.glob("runs/*/run.json"):
        file.write_text(file.read_text().replace(str(finished), str(results)))
    first, second, third, *_ = sorted(path for path in (results / "stages").iterdir() if path.is_dir())
    (weights,) = first.rglob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (second / "steps.jsonl").write_text("")
    (third / "COMMIT").unlink()
    held_by(third)
    (results / "runs.parquet").unlink()
    found = findings(results, code=1)
    bad = [what for level, what in found if level == "bad"]
    assert f"stage {first.name}: {weights.relative_to(first)} changed or missing" in bad, "one bit, the same size"
    assert f"stage {second.name}: steps.jsonl changed or missing" in bad
    assert any("is done, but its stages" in what for what in bad) and "runs.parquet is missing or broken" in bad
    odd = [what for level, what in found if level == "odd"]
    assert f"stage {third.name} was interrupted" in odd
    assert f"stages/{third.name} was held by process {GONE['pid']} on {GONE['machine'].split('/')[0]}, which is gone" in odd


def test_doctor_rebuilds_the_tables_from_the_files(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "tiny")
    for file in (tmp_path / "tiny").glob("runs/*/run.json"):
        file.write_text(file.read_text().replace(str(finished), str(tmp_path / "tiny")))
    for table in ("runs", "steps", "samples"):
        (tmp_path / "tiny" / f"{table}.parquet").unlink()
    assert lab("doctor", tmp_path / "tiny", "--rebuild").exit_code == 0
    for table in ("runs", "steps", "samples"):
        assert (tmp_path / "tiny" / f"{table}.parquet").read_bytes() == (finished / f"{table}.parquet").read_bytes()
    assert lab("doctor", "--rebuild").exit_code == 2


def test_doctor_looks_at_the_machine(monkeypatch):
    monkeypatch.setenv("RLHF_LAB_RUN_DIR", "x")
    monkeypatch.setenv("RLHF_LAB_KEY_JUDGE", "x")
    monkeypatch.setenv("RLHF_LAB_RUN_QUIET", "1")
    found = said("doctor")["findings"]
    (odd,) = [f for f in found if f["level"] == "odd"]
    assert odd["what"] == "the variable RLHF_LAB_RUN_DIR means nothing (did you mean 'RLHF_LAB_RUNS_DIR'?)"
    assert any(f["what"].startswith("torch uses 1 threads on") for f in found) and any("bf16" in f["what"] for f in found)


# cancel, retry, reproduce


def test_nothing_to_do_is_5(written):
    (written.folder / "stages" / "rl1.lease.1").unlink()
    assert said("cancel", "tiny", code=5)["error"]["message"] == f"no process is running {written.folder}"
    shutil.rmtree(written.folder / "runs" / "bbbb2")
    assert said("retry", "tiny", "--failed", code=5)["error"]["kind"] == "NothingToDo"
    assert lab("retry", "tiny").exit_code == 2, "what to retry has to be said"


@pytest.mark.timeout(120)
def test_from_another_terminal_a_sweep_is_watched_exported_and_cancelled(tmp_path):
    """Fault 23 and the polite end: every look while it writes is whole, and the same command goes on where it stopped."""
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    results = tmp_path / "out" / "tiny"
    command = ["run", path, "rl.steps=4000", "--out", tmp_path / "out", "--quiet"]
    driver = lab_process(*command)
    try:
        seen = []
        while not seen or not (seen[-1]["runs"] and (seen[-1]["runs"][0]["step"] or 0) > 3):
            assert driver.poll() is None and len(seen) < 500, driver.communicate()
            time.sleep(0.2)
            if (results / "plan.json").is_file():
                seen.append(said("status", results))
        (run,) = seen[-1]["runs"]
        assert run["status"] == "running" and run["stage"] == "rl" and run["total"] == 4000 and seen[-1]["at_work"]
        watcher = lab_process("status", results, "--watch", "--every", "0.2")
        assert watcher.stdout.readline().startswith("run\t") and "\trunning\trl\t" in watcher.stdout.readline()
        assert len(said("ls", tmp_path / "out")["experiments"]) == 1
        exported = said("export", results, "--out", tmp_path / "archive")["rows"]
        assert exported["runs"] == 1 and exported["steps"] > 0, "the finished SFT stage, and nothing of the unfinished one"
        assert set(pd.read_csv(tmp_path / "archive" / "steps.csv")["stage"]) == {"sft"}
        assert said("doctor", results, code=1 if not (results / "runs.parquet").is_file() else 0)
        stopped = said("cancel", results)
        assert stopped["stopped"] and stopped["asked"][0]["pid"] == driver.pid
        assert driver.wait(30) == 143
        text, _ = watcher.communicate(timeout=30)
        assert watcher.returncode == 0 and text.splitlines()[-1].endswith("1 interrupted")
    finally:
        for process in psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []:
            process.kill()
        driver.kill()
        driver.communicate()
    (after,) = said("status", results)["runs"]
    assert after["status"] == "interrupted" and after["step"] >= run["step"]
    (checkpoint,) = results.glob("stages/*/checkpoint-*")
    assert read_json(checkpoint / "state.json")["step"] > 3


@pytest.fixture(scope="module")
def one_failed(tmp_path_factory):
    """A sweep of two arms, of which one cannot do it; (spec, results)."""
    folder = tmp_path_factory.mktemp("failed")
    arms = "arms:\n  fine: {}\n  bad: {rl.reward: raises}"
    path = write_spec(folder, axes="axes: {}", seeds="seeds: [0]", arms=arms)
    result = lab("run", path, "--plugin", TROUBLES, "--out", folder / "out", "--quiet", "rl.steps=1")
    assert result.exit_code == 1, result.stderr
    return path, folder / "out" / "tiny"


def test_retry_computes_the_failed_runs_and_no_others(one_failed, monkeypatch):
    _, results = one_failed
    fine, bad = read_json(results / "plan.json")["runs"]
    plan = read_json(results / "plan.json")
    touched = (results / "runs" / fine / "status.json").stat().st_mtime_ns
    error = said("retry", results, "--failed", code=2)["error"]["message"]
    assert error == f"this run used the plugin file {TROUBLES}; if you trust it, add --plugin {TROUBLES} to the command"
    monkeypatch.setenv("TROUBLE_MENDED", "1")
    again = said("retry", results, "--failed", "--plugin", TROUBLES)
    assert again["done"] == [bad] and again["failed"] == {}
    assert said("status", results)["counts"] == {"done": 2}
    assert (results / "runs" / fine / "status.json").stat().st_mtime_ns == touched
    assert {**read_json(results / "plan.json"), "packages": 0} == {**plan, "packages": 0}, "the plan is the old one"
    assert len(pd.read_parquet(results / "runs.parquet")) == 2


def test_a_run_is_reproduced_to_the_byte(finished, tmp_path):
    run_id = read_json(finished / "plan.json")["runs"][1]
    before = listing(finished)
    result = said("reproduce", run_id, "--results", finished, "--out", tmp_path / "again")
    assert result["same"] and not any(file["difference"] for file in result["files"])
    names = {(file["stage"], file["file"]) for file in result["files"]}
    assert {
        ("rl", "steps.jsonl"),
        ("rl", "samples.jsonl"),
        ("rl", "policy/model.safetensors"),
        ("sft", "model.safetensors"),
    } <= names
    assert listing(finished) == before
    for stage in ("sft", "rl"):
        hash = read_json(finished / "runs" / run_id / "run.json")["stages"][stage]
        mine, theirs = (root / "stages" / hash / "steps.jsonl" for root in (tmp_path / "again", finished))
        assert mine.read_bytes() == theirs.read_bytes() and mine.stat().st_ino != theirs.stat().st_ino
    assert said("reproduce", run_id, "--results", finished, "--out", tmp_path / "again", code=2)["error"]["message"].endswith(
        "is not empty; name a folder that is not there yet"
    )


def test_a_difference_is_named_with_its_row_and_its_weights(tmp_path):
    import torch
    from safetensors.torch import save_file

    old, new = tmp_path / "old", tmp_path / "new"
    for folder, kl, weight in ((old, 0.25, 1.0), (new, 0.26, 1.5)):
        folder.mkdir()
        (folder / "steps.jsonl").write_text(
            json.dumps({"step": 0, "kl": 0.0}) + "\n" + json.dumps({"step": 1, "kl": kl}) + "\n"
        )
        (folder / "same.json").write_text("{}")
        save_file({"w": torch.tensor([weight, 2.0]), "v": torch.zeros(0)}, folder / "model.safetensors")
        commit(folder)
    found = {file.file: file.difference for file in compared("rl", old, new)}
    assert found == {
        "steps.jsonl": "row 2: kl 0.25 became 0.26",
        "same.json": "",
        "model.safetensors": "weights differ by at most 0.5 (w)",
    }
    assert first_different_row([b"{}", b""], [b"{}", b"{}", b""]) == "row 2: other bytes"
    save_file({"other": torch.zeros(2)}, new / "model.safetensors")
    assert largest_gap(old / "model.safetensors", new / "model.safetensors") == "other tensors"


def test_only_a_whole_run_can_be_reproduced(written):
    assert "stage rl of run cccc1 is not finished" in said("reproduce", "cccc1", code=1)["error"]["message"]
    (written.folder / "stages" / "rl0" / "steps.jsonl").write_text("")
    assert "steps.jsonl is not the file that was written" in said("reproduce", "aaaa1", code=1)["error"]["message"]


# All of them

READING = [("status",), ("show", "aaaa"), ("gc",), ("doctor",), ("export",)]


@pytest.mark.parametrize("verb", ["status", "cancel", "retry --failed", "export --out x", "gc", "doctor"])
def test_what_is_no_results_folder_is_said_in_one_sentence(verb, written, tmp_path):
    name, *options = verb.split()
    (tmp_path / "something").mkdir()
    for folder, expected in (
        (tmp_path / "something", f"{tmp_path / 'something'} is no results folder: there is no plan.json in it; "),
        ("tinny", "there is no results folder tinny (did you mean 'tiny'?)"),
        (tmp_path / "none", f"there is no results folder {tmp_path / 'none'}"),
    ):
        result = lab(name, folder, *options)
        assert result.exit_code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith(expected)
        assert said(name, folder, *options, code=2)["error"]["kind"] == "SpecError"


def test_looking_changes_nothing(written, tmp_path):
    before = listing(written.folder)
    for arguments in (["status", "tiny"], ["show", "aaaa1", "--samples", 3], ["ls"], ["gc", "tiny"], ["doctor", "tiny"]):
        assert lab(*arguments).exit_code in (0, 1)
    assert listing(written.folder) == before


POWERLESS = """
import ctypes
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc = ctypes.CDLL(None)
libc.capget(header, sets)
sets[0] &= ~0b110
libc.capset(header, sets)
"""
"""Takes from root the power to write where nobody may (CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities, if run by root")
def test_a_folder_that_cannot_be_written_can_be_read(finished, tmp_path):
    results = tmp_path / "tiny"
    shutil.copytree(finished, results)
    run_id = read_json(finished / "plan.json")["runs"][0]
    looks = ["status", "show", "ls", "gc", "doctor", "doctor --rebuild"]
    commands = [[*look.split(), *([run_id, "--results"] if look == "show" else []), str(results)] for look in looks]
    script = f"""
from rlhf_lab.cli import main
for arguments in {commands!r}:
    try:
        main(arguments)
    except SystemExit as end:
        print("exit", end.code)
"""
    for path in [results, *results.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = subprocess.run([sys.executable, "-c", POWERLESS + script], capture_output=True, text=True)
    for path in [results, *results.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    ends = [line for line in done.stdout.splitlines() if line.startswith("exit")]
    assert ends == ["exit 0"] * 5 + ["exit 1"], (done.stdout, done.stderr)
    assert done.stderr.splitlines()[-1].endswith("Permission denied") and "Traceback" not in done.stderr


def test_every_verb_has_an_example_and_speaks_json():
    for command in COMMANDS:
        for verb in getattr(command, "commands", {"": command}).values():
            names = {option for parameter in verb.params for option in parameter.opts}
            if verb.callback.__module__.rpartition(".")[2] in ("look", "again", "upkeep"):
                assert "--json" in names and "Example" in verb.epilog, verb.name


def test_a_run_that_vanishes_while_it_is_looked_at(written):
    shutil.rmtree(written.folder / "runs" / "aaaa1")
    assert [run["run_id"] for run in said("status", "tiny")["runs"]] == ["aaaa2", "bbbb1", "bbbb2", "cccc1"]
    assert run_view(written.folder / "runs" / "aaaa1") is None


def test_errors_are_raised_for_those_who_want_to_see_where(written, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_RAISE_ERRORS", "1")
    assert type(lab("status", "nothing").exception).__name__ == "SpecError"


def test_every_option_is_also_an_environment_variable_but_consent_is_not(written, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_STATUS_AS_JSON", "1")
    assert json.loads(lab("status", "tiny").stdout)["results"] == str(written.folder)
    monkeypatch.setenv("RLHF_LAB_RETRY_TRUST_REMOTE_CODE", "nonsense")
    monkeypatch.setenv("RLHF_LAB_RETRY_PLUGIN_FILES", "/nowhere.py")
    assert "bbbb2" in said("show", "bbbb2")["run_id"]
    assert said("retry", "tiny", "--failed", code=2)["error"]["message"].startswith("run aaaa1 is not valid any more"), (
        "neither"
    )


def test_the_readme_lists_every_command_code_and_variable():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    section = text[text.index("## Commands, exit codes, environment variables") :].partition("## What a spec may not")[0]
    for command in COMMANDS:
        assert re.search(rf"`{command.name}[ `]", section), command.name
    for variable in VARIABLES:
        assert f"`{variable}`" in section, variable
    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.LabError)
    }
    for code in codes | {0, 130, 143}:
        assert re.search(rf"^\|.*\b{code}\b.*\|.*\|$", section, re.MULTILINE), code
