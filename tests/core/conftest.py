"""One finished sweep for all tests that only look."""

import pytest
from micro_spec import lab, write_spec


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The results folder of the small sweep: two values of β, two seeds. Look, do not touch."""
    folder = tmp_path_factory.mktemp("finished")
    result = lab("run", write_spec(folder), "--out", folder / "out", "--json")
    assert result.exit_code == 0, result.stderr
    return folder / "out" / "tiny"
