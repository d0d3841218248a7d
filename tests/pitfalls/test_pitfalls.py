"""The table of pitfalls: each has a test that exists, and README.md is current."""

import ast
from functools import cache
from pathlib import Path

from pitfalls import IN_SYSTEMS, IN_TUTORIALS, TABLE, page

from rlhf_lab.testing import LAWS
from rlhf_lab.testing.every_kind import LAWS as OF_EVERY_KIND

TESTS = Path(__file__).resolve().parents[1]


def test_all_of_them_are_in_the_table():
    assert (len(IN_SYSTEMS), len(IN_TUTORIALS)) == (32, 9)


def test_each_is_kept_out_by_something_that_exists():
    known = {f"{kind}.{law.__name__}" for kind, laws in {**LAWS, "every kind": OF_EVERY_KIND}.items() for law in laws}
    for pitfall in (*IN_SYSTEMS, *IN_TUTORIALS):
        assert pitfall.tests, pitfall.what
        for test in pitfall.tests:
            if test.startswith("law "):
                assert test.removeprefix("law ") in known, test
            else:
                path, _, name = test.partition("::")
                assert name in functions_of(path), test


@cache
def functions_of(path):
    return {node.name for node in ast.parse((TESTS / path).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_the_table_is_current():
    assert TABLE.read_text(encoding="utf-8") == page(), "run python tests/pitfalls/pitfalls.py"
