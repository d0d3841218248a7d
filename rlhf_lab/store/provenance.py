"""Where a number came from: code, versions, device, threads. Lists of what is kept, never all there is: no remote URL of a
repository and no environment variable but those named here, for either may hold a token.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from rlhf_lab.contracts import ENTRY_POINT_GROUP

PACKAGES = ("rlhf-lab", "torch", "transformers", "peft", "accelerate", "numpy", "tokenizers")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "RLHF_LAB_LOAD_PLUGINS")
# A repository that came with a spec may name programs that git would start.
NO_PROGRAMS = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def git_state(folder: Path) -> dict[str, str]:
    """Revision and hash of the uncommitted changes of the repository that `folder` lies in; empty outside of one."""

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(folder), *NO_PROGRAMS, *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=20).stdout

    try:
        revision = git("rev-parse", "HEAD").decode().strip()
        changes = git("diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return {}
    dirty = hashlib.blake2b(changes, digest_size=8).hexdigest() if changes else ""
    return {"git_revision": revision, "git_dirty": dirty}


def package_versions() -> dict[str, str]:
    """Of the libraries that make numbers, and of every distribution that brings plugins."""
    plugins = {point.dist.name for point in entry_points(group=ENTRY_POINT_GROUP) if point.dist}
    found = {}
    for name in [*PACKAGES, *sorted(plugins - set(PACKAGES))]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """Of the process that computes: versions, device, threads and a few variables."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
    return {
        "python": platform.python_version(),
        "packages": package_versions(),
        "device": device,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "host": platform.node(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
