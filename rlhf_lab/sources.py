"""Which code a plugin is: a hash over its module and the modules of its own that this one imports, however indirectly.

The core is not part of it: what changes there is told by the version of rlhf-lab and by the conditions in stage.json.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path, PurePath

CORE = "rlhf_lab"


@cache
def source_hash(module: str, distribution: str) -> str:
    """Of the files as they are when first asked for in this process, which is when their code was loaded."""
    own = own_packages(module, distribution)
    found: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if name not in found and path is not None:
            found[name] = path.read_bytes()
            waiting += (other for other in imported(name, path, found[name]) if other.partition(".")[0] in own)
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(found):
        digest.update(f"{len(found[name])} ".encode() + found[name])
    return digest.hexdigest()


def own_packages(module: str, distribution: str) -> set[str]:
    """The top-level modules of the distribution, as far as its list of files tells."""
    try:
        listed = [PurePath(file).parts[0] for file in files(distribution) or [] if file.suffix == ".py"]
    except PackageNotFoundError:
        listed = []
    return {module.partition(".")[0], *(name.removesuffix(".py") for name in listed)} - {CORE}


def file_of(module: str) -> Path | None:
    """The source file of a module; None for what is no module, or has no file."""
    try:
        spec = getattr(sys.modules.get(module), "__spec__", None) or importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and Path(spec.origin).is_file() else None


def imported(module: str, path: Path, source: bytes) -> Iterator[str]:
    """The names that import statements may mean, at the top or inside functions, with the packages that they lie in."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            start = ".".join(filter(None, [above, node.module]))
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))
