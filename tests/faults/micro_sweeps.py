"""A sweep that computes for less than a second, and what it must come to whatever happens to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_lab.store.files import is_committed, read_json, verify

SPEC = """\
experiment: small
base:
  data: {name: micro, sentences: 64, pretraining_sentences: 8}
  model: {name: scratch, hidden_size: 8, layers: 1, heads: 1}
  sft: {batch_size: 32, log_samples: 2, sample_length: 4}
  rl:
    reward: length
    critic: none
    advantage: monte_carlo
    objective: [ppo_clip]
    kl: {name: adaptive, beta: 0.2, target: 1}
    steps: 3
    batch_size: 4
    inner_epochs: 1
    response_length: 4
    evaluation: {prompts: 2}
seeds: [0, 1]
resources: {workers: 1, threads: 1, checkpoint_every: {steps: 1}, retries: 0}
"""


def spec_in(folder: Path, text: str = SPEC) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(text)
    return folder / "spec.yaml"


def run_of(folder: Path, *more: object) -> list[object]:
    """The arguments of `rlhf-lab run` for the spec of a folder, with results beside it."""
    return ["run", folder / "spec.yaml", "--out", folder / "out", "--quiet", *more]


def results_of(folder: Path) -> Path:
    return folder / "out" / "small"


def assert_same(results: Path, undisturbed: Path) -> None:
    """Tables and everything in the stages, byte for byte, but for the seconds that it took and what machine it was."""
    for table in ("steps", "samples"):
        assert (results / f"{table}.parquet").read_bytes() == (undisturbed / f"{table}.parquet").read_bytes(), table
    runs = [pd.read_parquet(folder / "runs.parquet").drop(columns="seconds") for folder in (results, undisturbed)]
    pd.testing.assert_frame_equal(*runs)
    stages, found = (
        {path.name for path in (folder / "stages").iterdir() if path.is_dir()} for folder in (undisturbed, results)
    )
    assert found == stages
    for stage in stages:
        found, expected = (contents(folder / "stages" / stage) for folder in (results, undisturbed))
        assert found == expected, [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
        assert is_committed(results / "stages" / stage) and verify(results / "stages" / stage) == []


def contents(stage: Path) -> dict[str, Any]:
    files = {path.relative_to(stage).as_posix(): path.read_bytes() for path in stage.rglob("*") if path.is_file()}
    files.pop("COMMIT")  # holds the digest of stage.json, which says where it was computed and how long it took
    told = json.loads(files.pop("stage.json"))
    return {**files, **{key: told[key] for key in ("kind", "parameters", "seed", "inputs", "bitwise")}}


def statuses(results: Path) -> list[str]:
    """Of each run, in the order of the plan; empty where there is none."""
    files = [results / "runs" / run / "status.json" for run in read_json(results / "plan.json")["runs"]]
    return [read_json(file)["status"] if file.is_file() else "" for file in files]
