"""Where a number came from: code, versions, device, threads. An allow-list, never the whole environment."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("rlhf-lab", "torch", "transformers", "peft", "accelerate", "numpy", "tokenizers")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RLHF_LAB_LOAD_PLUGINS")


def git_state(folder: Path) -> dict[str, str]:
    """Revision and hash of the uncommitted changes of the repository that `folder` lies in; empty outside of one."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True, timeout=20).stdout

    try:
        revision, changes = git("rev-parse", "HEAD").decode().strip(), git("diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return {}
    dirty = hashlib.blake2b(changes, digest_size=8).hexdigest() if changes else ""
    return {"git_revision": revision, "git_dirty": dirty}


def package_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
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
        "host": platform.node(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
