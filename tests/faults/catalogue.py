"""The faults that a sweep survives, each with the tests that show it. `python tests/faults/catalogue.py` runs them all and
writes README.md; a test (test_catalogue.py) says when that is no longer current.

A test belongs to fault n if its name begins with `test_fault_<n>`, or if it is named here.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Fault(NamedTuple):
    what: str
    then: str
    elsewhere: tuple[str, ...] = ()


FAULTS = {
    1: Fault(
        "SIGKILL of a run after any step, or at any other point of the code that writes; also of what resumes",
        "the same command goes on from the last checkpoint; tables and weights are those of an undisturbed run, to the byte",
        ("core/test_resume.py::test_stopped_at_every_nth_step_and_resumed",),
    ),
    2: Fault(
        "SIGKILL of the process that runs the sweep",
        "its workers save and end; nothing that was finished is computed again; no row is there twice",
        ("core/test_drive.py::test_runs_of_a_driver_that_was_killed_are_taken_up",),
    ),
    3: Fault(
        "SIGKILL at any point of a save: of a file, a checkpoint, a stage",
        "a file is old or new; the newest whole checkpoint loads, a torn one is set aside, by name; a stage counts or not",
    ),
    4: Fault("SIGKILL between a stage and the tables", "the tables are rebuilt from the stages, and their rows agree"),
    5: Fault(
        "a last line of a table that is torn, or zeros after a power cut",
        "cut back to the last whole line, with a warning that says how many bytes; the run goes on",
    ),
    6: Fault(
        "full disk, quota, input/output error at any write (a small tmpfs, and every point in turn)",
        "what was there stays whole; the run is `failed:disk_full` or `failed:io_error`; the sweep pauses with exit code 75, "
        "and the same command goes on",
        ("core/test_drive.py::test_a_full_disk_pauses_the_sweep",),
    ),
    7: Fault(
        "a lease whose holder is gone: pid dead, pid in use again, a machine that fell silent; or only slow",
        "a dead one is succeeded, by one process; a live one is never robbed, whatever the clocks say",
    ),
    8: Fault(
        "two drivers on one sweep",
        "the second is refused and told who is there, or shares the runs with `--join`; each run is computed once",
        ("core/test_drive.py::test_two_drivers_share_the_runs_and_each_is_computed_once",),
    ),
    9: Fault(
        "two sweeps want one stage at once, and its owner dies midway",
        "one computation at a time, one to the end; who waited takes over",
    ),
    10: Fault(
        "SIGTERM or Ctrl-C, once or twice",
        "checkpoint at the end of the step, status `interrupted`, exit code 143 or 130; the second time at once",
        ("core/test_drive.py::test_the_second_signal_ends_everything_at_once",),
    ),
    11: Fault(
        "a run crashes (SIGSEGV), or uses more memory than it may",
        "only that run fails, and says why; it is tried again a bounded number of times, errors of Python code not by default",
        (
            "core/test_drive.py::test_a_run_that_dies_is_started_again_a_bounded_number_of_times",
            "core/test_drive.py::test_an_error_of_the_code_is_not_tried_again_unless_asked",
        ),
    ),
    12: Fault(
        "a run hangs",
        "it is killed at its time limit with all that it started; status `timeout`; the sweep goes on",
        ("core/test_drive.py::test_a_run_that_hangs_is_ended_with_all_that_it_started",),
    ),
    13: Fault(
        "a loss, gradient or score that is NaN or infinite",
        "`on_nan`: the run fails, the stage stops with the weights from before, or the update is left out; NaN in the tables, "
        "with a count of what was left out",
    ),
    14: Fault(
        "a plugin that cannot be imported, raises, or does not have what its kind needs",
        "listed as broken with the reason; only specs that use it fail, before anything runs",
        (
            "core/test_registry.py::test_a_broken_plugin_is_listed_with_its_reason_and_the_rest_works",
            "core/test_registry.py::test_only_specs_that_use_a_broken_plugin_fail",
        ),
    ),
    15: Fault(
        "two distributions claim one name",
        "refused with both names",
        ("core/test_registry.py::test_a_name_that_two_distributions_claim_is_refused_with_both_names",),
    ),
    16: Fault(
        "a spec with a typo, a duplicate key, tabs, a BOM, aliases without end, 5 MB, 5,000 levels, …",
        "one sentence with file, line and column; exit code 2; nothing is created",
        ("test_bad_input.py::test_a_wrong_spec", "test_bad_input.py::test_a_spec_that_is_no_spec"),
    ),
    17: Fault(
        "a sweep of no points, of the same point twice, of a million; a zip of unequal lengths",
        "refused, or dropped and counted; every point is validated before the first starts",
        (
            "core/test_spec.py::test_every_point_is_validated_before_anything_is_created",
            "core/test_spec.py::test_points_that_come_out_equal_are_counted_and_dropped",
            "core/test_sweeps.py::test_a_million_runs_are_refused_at_once",
            "core/test_axes.py::test_a_zip_of_unequal_lengths_is_refused",
        ),
    ),
    18: Fault(
        "a label such as `../x`, `/`, 300 characters, `CON`, `=1+1`", "folders are named by hashes; a label is only data"
    ),
    19: Fault(
        "code, versions, device or precision change between a crash and the resume",
        "refused with what changed; with `--allow-changed` it goes on, claims nothing, and stage.json has the lineage",
    ),
    20: Fault("results of an older or a newer version", "older ones are read and rebuilt; newer ones refused in one sentence"),
    21: Fault(
        "a reward server that times out, fails, answers wrongly, without end or slowly, and recovers",
        "bounded retries; limits of size and time; what was answered is journaled, and a resume replays it",
        (
            "plugins/test_http_reward.py::test_every_fault_in_turn_then_recovery",
            "plugins/test_http_reward.py::test_a_fault_that_stays_ends_in_one_sentence",
            "plugins/test_http_reward.py::test_a_resume_replays_what_was_answered",
        ),
    ),
    22: Fault("runs that start in the same second, clocks that jump", "nothing is named by the time; durations are monotonic"),
    23: Fault(
        "tables and status read while others write; a folder that is read-only, is a file, or is deleted",
        "whole tables; one sentence that says what cannot be written",
    ),
}


def evidence(number: int) -> list[str]:
    """file::function under tests/, those of this folder first."""
    prefix = f"test_fault_{number:02d}_"
    return [*(test for test in all_tests() if test.split("::")[1].startswith(prefix)), *FAULTS[number].elsewhere]


def all_tests() -> Iterator[str]:
    for path in sorted(HERE.glob("test_*.py")):
        for name in functions(path):
            yield f"faults/{path.name}::{name}"


def functions(path: Path) -> list[str]:
    return [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]


class Outcome(NamedTuple):
    passed: int
    other: int
    findings: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{self.passed} passed" + (f", {self.other} not" if self.other else "")
        return "; ".join([counts, *self.findings])


def outcomes(tests: list[str]) -> dict[str, Outcome]:
    """What pytest says of them, with what they found out."""
    with tempfile.TemporaryDirectory() as folder:
        report, said = Path(folder) / "report.xml", Path(folder) / "findings.txt"
        said.touch()
        where = [str(ROOT / "tests" / test) for test in tests]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *where]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "FAULT_FINDINGS": str(said)})
        cases = list(ElementTree.parse(report).iter("testcase"))
        findings = [line.split("\t") for line in said.read_text(encoding="utf-8").splitlines()]
    found = {}
    for test in tests:
        file, name = test.split("::")
        module = "tests." + file.removesuffix(".py").replace("/", ".")
        mine = [case for case in cases if case.get("classname") == module and case.get("name", "").split("[")[0] == name]
        failed = sum(any(case.find(kind) is not None for kind in ("failure", "error", "skipped")) for case in mine)
        found[test] = Outcome(len(mine) - failed, failed, tuple(text for by, text in findings if by == name))
    return found


def table(results: dict[str, Outcome]) -> str:
    lines = [
        "# Faults\n",
        "What a sweep survives, and the tests that show it. Generated by `python tests/faults/catalogue.py`, which runs them;",
        "a parametrized test counts once for each case. Faults come from `RLHF_LAB_FAULT=point:action@n`",
        "([faults.py](../../rlhf_lab/store/faults.py)), compiled into everything that writes, and not from sleeping until",
        "something is likely. Full disks are file systems of some kilobytes, mounted for the test where that is permitted.\n",
        "| # | fault | what happens | shown by | result |",
        "|---|---|---|---|---|",
    ]
    for number, fault in FAULTS.items():
        tests = evidence(number)
        links = "<br>".join(f"[{name}](../{file})" for file, name in (test.split("::") for test in tests))
        said = "<br>".join(str(results[test]) for test in tests)
        lines.append(f"| {number} | {fault.what} | {fault.then} | {links} | {said} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    wanted = [test for number in FAULTS for test in evidence(number)]
    (HERE / "README.md").write_text(table(outcomes(wanted)), encoding="utf-8")
