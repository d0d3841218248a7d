"""The launchers' tests run against the launcher that RLHF_LAB_TEST_LAUNCHER names: local if it names none.

`make test-slurm` and `make test-ray` start a real SLURM and a real Ray cluster of several nodes on this machine.
"""

import os

import pytest
from clusters import CLUSTERS

os.environ["RLHF_LAB_LOAD_PLUGINS"] = ""


@pytest.fixture(scope="session")
def cluster():
    """Where runs are computed in this session."""
    with CLUSTERS[os.environ.get("RLHF_LAB_TEST_LAUNCHER", "local")]() as cluster:
        yield cluster
