"""The mutation check does not rot: each bug can still be planted, its tests exist, and the table is about these bugs."""

import ast
import re
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).parent / "README.md"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.bug)
def test_it_can_be_planted(mutant):
    """`make mutation` plants it; where this fails, adapt `old` in mutants.py and run that again."""
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1 and mutant.old != mutant.new


def test_the_tests_that_must_notice_it_exist():
    for test in {test for mutant in MUTANTS for test in mutant.tests}:
        path, _, name = test.partition("::")
        functions = {node.name for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body if hasattr(node, "name")}
        assert not name or name in functions, test


def test_the_table_is_about_these_bugs():
    rows = re.findall(r"^\| (.*?) \| `(.*?)` \|", TABLE.read_text(encoding="utf-8"), flags=re.M)
    assert rows == [(mutant.bug, mutant.file) for mutant in MUTANTS], "run `make mutation`"
    assert len({mutant.bug for mutant in MUTANTS}) == len(MUTANTS) >= 30
