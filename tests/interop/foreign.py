"""Single functions and classes out of other projects' released wheels, run by themselves.

Their packages import deepspeed, ray or versions of transformers that are gone; the formulas need torch and numpy only. The
wheels lie unpacked, without their dependencies, in `sources` of the environment (see the Makefile target). The text of a
definition is executed as it is, minus decorators, which only register it.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

SOURCES = Path(sys.prefix) / "sources"


def definitions(wheel: str, path: str, *names: str, **given: Any) -> SimpleNamespace:
    """The named top-level functions and classes of a file; `given` are further names that they use."""
    file = SOURCES / wheel / path
    assert file.is_file(), f"{wheel} is not in {SOURCES}; `make interop` puts it there"
    wanted = [node for node in ast.parse(file.read_text()).body if getattr(node, "name", None) in names]
    assert {node.name for node in wanted} == set(names), f"{file} lacks some of {names}"
    for node in wanted:
        node.decorator_list = []
    future = ast.parse("from __future__ import annotations").body
    scope = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "np": np, "defaultdict": defaultdict, **given}
    # annotations are not evaluated; `Optional` and the like need not exist
    exec(compile(ast.Module(future + wanted, []), str(file), "exec"), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


def method(wheel: str, path: str, class_name: str, name: str) -> Any:
    """A method of a class, as a function whose first argument is called self."""
    file = SOURCES / wheel / path
    assert file.is_file(), f"{wheel} is not in {SOURCES}; `make interop` puts it there"
    classes = [node for node in ast.parse(file.read_text()).body if getattr(node, "name", None) == class_name]
    (found,) = [node for node in classes[0].body if getattr(node, "name", None) == name]
    found.decorator_list = []
    scope = {"torch": torch}
    exec(compile(ast.Module([*ast.parse("from __future__ import annotations").body, found], []), str(file), "exec"), scope)
    return scope[name]
