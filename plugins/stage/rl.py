"""The reinforcement learning stage; the loop itself is `rlhf_lab/loop.py`."""

from rlhf_lab.contracts import hookimpl
from rlhf_lab.loop import RL


@hookimpl
def register_components(register):
    register(RL)
