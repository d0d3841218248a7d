"""The launchers' tests run against the launcher that RLHF_LAB_TEST_LAUNCHER names: local if it names none.

`make test-slurm` and `make test-ray` start a real SLURM and a real Ray cluster of several nodes on this machine.
"""

import contextlib
import os

import pytest
from clusters import CLUSTERS


@pytest.fixture(scope="session")
def cluster():
    """Where runs are computed in this session; its servers load no plugins of third parties."""
    with contextlib.ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RLHF_LAB_LOAD_PLUGINS", "")
            cluster = running.enter_context(CLUSTERS[os.environ.get("RLHF_LAB_TEST_LAUNCHER", "local")]())
        yield cluster


@pytest.fixture(autouse=True)
def no_plugins_of_third_parties(monkeypatch):
    monkeypatch.setenv("RLHF_LAB_LOAD_PLUGINS", "")
