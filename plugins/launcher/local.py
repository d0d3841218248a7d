"""Runs on this machine."""

from rlhf_lab.contracts import Component, hookimpl
from rlhf_lab.running.pool import Pool


class Local(Component):
    """Warm worker processes on this machine: one for each core, or for each GPU."""

    kind, name = "launcher", "local"

    def open(self, resources, n_runs):
        return Pool(resources, n_runs)


@hookimpl
def register_components(register):
    register(Local)
