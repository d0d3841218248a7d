"""`plugins new`: a component to start from, as one file or as a package that can be installed."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path

from rlhf_lab.declaration.yaml_lines import suggest
from rlhf_lab.errors import SpecError
from rlhf_lab.registry import Registry

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{kind} {name} for rlhf_lab"
requires-python = ">=3.11"
dependencies = ["rlhf-lab"]

[project.optional-dependencies]
test = ["pytest>=8"]

[project.entry-points.rlhf_lab]
{name} = "{module}"

[tool.setuptools]
py-modules = ["{module}"]
"""

README = """\
# {distribution}

The {kind} `{name}` for [rlhf_lab](https://pypi.org/project/rlhf-lab/).

```
pip install -e '.[test]'
rlhf-lab plugins check .            # the laws of its kind, with a verdict for each
rlhf-lab plugins show {kind} {name}
pytest                              # the same laws, as tests
```

In a spec it is chosen by its name, `{name}`. Fill in what says TODO in `{module}.py`.
"""

TEST = '''\
"""The laws of rlhf_lab for everything that this package registers."""

from rlhf_lab.testing import laws

test_laws = laws("{distribution}")
'''


def kinds() -> list[str]:
    """The kinds that there is something to start from for."""
    folder = files("rlhf_lab.skeletons")
    return sorted(
        file.name.removesuffix(".py") for file in folder.iterdir() if file.name.endswith(".py") and file.name[0] != "_"
    )


def module_text(kind: str, name: str) -> str:
    """The module of a new component: the skeleton of its kind under the new name."""
    text = (files("rlhf_lab.skeletons") / f"{kind}.py").read_text(encoding="utf-8")
    title = "".join(part.capitalize() for part in name.split("_"))
    return text.replace("SKELETON", name.upper()).replace("Skeleton", title).replace("skeleton", name)


def package_files(kind: str, name: str) -> dict[str, str]:
    """Path inside the package → text."""
    module = f"rlhf_lab_{name}"
    words = {"kind": kind, "name": name, "module": module, "distribution": module.replace("_", "-")}
    texts = {"pyproject.toml": PYPROJECT, "README.md": README, "tests/test_laws.py": TEST}
    return {f"{module}.py": module_text(kind, name), **{path: text.format(**words) for path, text in texts.items()}}


def checked(kind: str, name: str, registry: Registry) -> None:
    """Raises SpecError where no component of that kind and name can be made."""
    if kind not in kinds():
        raise SpecError(f"unknown kind {kind!r}{suggest(kind, kinds())}; there are {', '.join(kinds())}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise SpecError(f"{name!r} cannot be a name; use small letters, digits and underscores, such as my_{kind}")
    if name in registry.names(kind):
        owner = registry.found[kind, name][0].distribution
        raise SpecError(f"there is a {kind} {name!r} already, from {owner}; choose another name")


def write_new(kind: str, name: str, folder: Path, *, one_file: bool) -> list[Path]:
    """Writes the file or the package into `folder`; returns what was written. Raises SpecError where something is there."""
    root = folder if one_file else folder / f"rlhf_lab_{name}"
    texts = {f"{name}.py": module_text(kind, name)} if one_file else package_files(kind, name)
    there = root / f"{name}.py" if one_file else root
    if there.exists():
        raise SpecError(f"{there} is there already; remove it, or choose another name")
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return [root / path for path in texts]
