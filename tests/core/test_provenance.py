"""Where a number came from is recorded, and nothing that is nobody's business."""

import hashlib
import json
import os
import subprocess
from importlib.metadata import distributions, version

import pytest
import torch

from rlhf_lab.store.provenance import VARIABLES, git_state, package_versions, provenance


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True).stdout

    git("init", "-q")
    (tmp_path / "spec.yaml").write_text("experiment: a\n")
    git("add", "spec.yaml")
    git("commit", "-q", "-m", "first")
    return tmp_path, git


def test_the_revision_is_that_of_the_folder(repository):
    folder, git = repository
    (folder / "inner").mkdir()
    revision = git("rev-parse", "HEAD").decode().strip()
    assert git_state(folder) == git_state(folder / "inner") == {"git_revision": revision, "git_dirty": ""}


def test_changes_have_a_hash_of_their_own(repository):
    folder, git = repository
    seen = set()
    for text in ("experiment: b\n", "experiment: c\n"):
        (folder / "spec.yaml").write_text(text)
        state = git_state(folder)
        assert state["git_dirty"] == hashlib.blake2b(git("diff", "HEAD"), digest_size=8).hexdigest()
        seen.add(state["git_dirty"])
    git("add", "spec.yaml")
    assert git_state(folder)["git_dirty"] in seen and len(seen) == 2, "staged or not"


def test_outside_of_a_repository_there_is_no_revision(tmp_path):
    assert git_state(tmp_path) == {}
    assert git_state(tmp_path / "not there") == {}


def test_without_git_there_is_no_revision(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state(repository[0]) == {}


def test_a_repository_that_came_with_a_spec_starts_no_program(repository):
    """Settings of git that name programs, as a downloaded folder may have them."""
    folder, git = repository
    program = folder / "program.sh"
    program.write_text(f"#!/bin/sh\necho ran >> {folder / 'ran'}\n")
    program.chmod(0o755)
    for key in ("core.fsmonitor", "diff.external", "diff.evil.textconv", "diff.evil.command"):
        git("config", key, str(program))
    hooks = folder / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / "post-index-change").write_text(program.read_text())
    (hooks / "post-index-change").chmod(0o755)
    (folder / ".gitattributes").write_text("*.yaml diff=evil\n")
    (folder / "spec.yaml").write_text("experiment: changed\n")
    (folder / "ran").unlink(missing_ok=True)
    assert git_state(folder)["git_dirty"] and not (folder / "ran").exists()


def test_versions_are_those_that_are_installed():
    found = package_versions()
    assert found["torch"] == torch.__version__ or found["torch"] == version("torch")
    plugins = {d.name for d in distributions() if any(point.group == "rlhf_lab" for point in d.entry_points)}
    assert {"rlhf-lab", "transformers", "numpy"} | plugins <= set(found)
    assert all(found[name] == version(name) for name in found)


def test_the_process_is_described(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = provenance()
    assert found["threads"] == torch.get_num_threads() and found["variables"] == {"OMP_NUM_THREADS": "3"}
    assert found["deterministic"] is False and "cpu" in found["device"] and found["host"] == os.uname().nodename
    assert "hf_secret" not in json.dumps(found)
