"""A sweep that takes seconds: the embedded world at its smallest, and the command line run on it as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from rlhf_lab.cli import main

PLUGINS = Path(__file__).parent / "data"

SPEC = """\
experiment: tiny
base:
  data: {name: micro, sentences: 64, pretraining_sentences: 8}
  model: {name: scratch, hidden_size: 8, layers: 1, heads: 1}
  sft: {batch_size: 32, log_samples: 2, sample_length: 6}
  rl:
    reward: length
    critic: none
    advantage: monte_carlo
    objective: [ppo_clip]
    kl: {name: fixed, beta: 0.2}
    steps: 3
    batch_size: 4
    inner_epochs: 1
    response_length: 6
    evaluation: {prompts: 4}
axes:
  rl.kl.beta: [0.1, 1]
seeds: [0, 1]
resources: {workers: 1, threads: 1}
"""


def write_spec(folder: Path, text: str = SPEC, **replacements: str) -> Path:
    """The spec in a file; `replacements` are whole top-level blocks, such as axes="axes: {}", or additions."""
    blocks = {block.split(":")[0]: block for block in split_blocks(text)}
    blocks |= {key: value for key, value in replacements.items()}
    path = folder / "spec.yaml"
    path.write_text("".join(block if block.endswith("\n") else block + "\n" for block in blocks.values()))
    return path


def split_blocks(text: str) -> list[str]:
    """The text cut before each line that is not indented."""
    blocks: list[str] = []
    for line in text.splitlines(keepends=True):
        if line[0].isspace() and blocks:
            blocks[-1] += line
        else:
            blocks.append(line)
    return blocks


def lab(*arguments: object, **options) -> Result:
    """The command line, in this process; what it does in worker processes it does in worker processes."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


def lab_process(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf_lab.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def plan_of(path: Path, *arguments: object) -> dict:
    """`rlhf-lab plan --json` as data."""
    result = lab("plan", path, "--json", *arguments)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(path: Path, *arguments: object, code: int = 2) -> str:
    """What `run` says when it refuses a spec; nothing may have been created."""
    out = path.parent / "refused"
    result = lab("run", path, "--out", out, *arguments)
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert result.stdout == "" and not out.exists()
    return result.stderr.removesuffix("\n")
