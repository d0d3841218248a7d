"""README.md lists every fault with tests that exist, and passed when it was written."""

import re

import pytest
from catalogue import FAULTS, HERE, ROOT, evidence, functions

README = HERE / "README.md"


def rows():
    cells = [
        line.strip("|\n ").split(" | ") for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    return {int(row[0]): row[1:] for row in cells if row[0].isdigit()}


def test_there_are_23_faults_and_each_is_a_test():
    assert list(FAULTS) == list(range(1, 24))
    for number in FAULTS:
        assert evidence(number), f"no test for fault {number}"
        for test in evidence(number):
            file, name = test.split("::")
            assert name in functions(ROOT / "tests" / file), test


@pytest.mark.parametrize("number", FAULTS)
def test_the_catalogue_is_current(number):
    what, then, shown_by, result = rows()[number]
    assert (what, then) == FAULTS[number][:2], "run `python tests/faults/catalogue.py`"
    assert re.findall(r"\[(\w+)\]\(\.\./([\w/.]+)\)", shown_by) == [
        tuple(test.split("::")[::-1]) for test in evidence(number)
    ]
    said = result.split("<br>")
    assert len(said) == len(evidence(number)) and all(re.match(r"[1-9]\d* passed(;|$)", outcome) for outcome in said), (
        said
    )
