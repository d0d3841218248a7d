"""rlhf_lab: the laboratory for classic RLHF.

import rlhf_lab as lab
df = lab.load("results/quickstart")
"""

from importlib.metadata import version
from typing import Any

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab.function_rewards import reward_function

__version__ = version("rlhf-lab")
__all__ = ["Component", "__version__", "hookimpl", "load", "param", "reward_function"]


def __getattr__(name: str) -> Any:
    if name == "load":  # pandas is imported only by those who read tables
        from rlhf_lab.results.tables import load

        return load
    raise AttributeError(f"module 'rlhf_lab' has no attribute {name!r}")
