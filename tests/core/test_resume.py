"""A stage that is stopped, or killed, and goes on leaves the same bytes as one that was never disturbed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_world

from rlhf_lab.checkpoint import Checkpoint, keep_only_resumable, newest_checkpoint, remove_checkpoints, write_checkpoint
from rlhf_lab.errors import Interrupted

CASES = {
    "rl": {
        "steps": 4,
        "batch_size": 4,
        "kl": {"name": "adaptive", "target": 1.0},
        "ema": 0.9,
        "reward": "words",
        "gold": "words",
        "response_length": 4,
        "evaluation": {"every": 2, "prompts": 4},
    },
    "rl_lora": {
        "name": "rl",
        "steps": 3,
        "batch_size": 4,
        "policy": {"name": "causal_lm", "adaptation": "lora"},
        "reward": "words",
        "response_length": 4,
        "evaluation": {"every": 2, "prompts": 4},
    },
    "sft": {"epochs": 2, "batch_size": 5, "dropout": 0.1, "sample_length": 4},
    "reward_model": {"epochs": 2, "batch_size": 5, "sample_length": 4, "normalize_examples": 8, "validate_at_start": True},
}


class StopAfter:
    """Asks to stop at the n-th step of each process."""

    def __init__(self, n):
        self.n = n

    def __call__(self):
        self.n -= 1
        return self.n == 0


def run(stage, parameters, folder, world, **context):
    folder.mkdir(exist_ok=True)
    ctx = tiny_world.context(stage, parameters, folder, world)
    for name, value in context.items():
        setattr(ctx, name, value)
    keep_only_resumable(folder)
    ctx.config.stages[stage].run(ctx)
    remove_checkpoints(folder)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("every", [1, 3])
def test_stopped_at_every_nth_step_and_resumed(case, every, world, tmp_path):
    stage = CASES[case].get("name", case)
    run(stage, CASES[case], tmp_path / "undisturbed", world)
    interruptions = 0
    while True:
        try:
            run(stage, CASES[case], tmp_path / "resumed", world, stop_requested=StopAfter(every))
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= (2 if every == 1 else 1)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "undisturbed")


def test_rows_written_after_the_last_checkpoint_are_written_once(world, tmp_path):
    """A kill between checkpoints: the table has rows that the checkpoint does not know."""
    run("rl", CASES["rl"], tmp_path / "undisturbed", world)
    folder = tmp_path / "killed"
    with pytest.raises(Interrupted):
        run("rl", CASES["rl"], folder, world, stop_requested=StopAfter(2))
    with open(folder / "steps.jsonl", "a") as file:
        file.write('{"stage": "rl", "step": 2, "split": "train", "kl": 99.0}\n{"stage": "rl", "st')
    run("rl", CASES["rl"], folder, world)
    assert contents(folder) == contents(tmp_path / "undisturbed")


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    import torch

    (tmp_path / "steps.jsonl").write_text("a\n")
    write_checkpoint(tmp_path, Checkpoint(3, {"w": torch.tensor([1.0])}, {"beta": 0.1}))
    torn = tmp_path / "checkpoint-00000005"
    torn.mkdir()
    (torn / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "steps.jsonl").write_text("a\nb\n")
    found = newest_checkpoint(tmp_path)
    assert (found.step, found.state, found.tensors["w"].tolist()) == (3, {"beta": 0.1}, [1.0])
    assert (tmp_path / "steps.jsonl").read_text() == "a\n"
    assert not torn.exists()


def test_a_checkpoint_with_a_flipped_byte_does_not_count(tmp_path):
    import torch

    write_checkpoint(tmp_path, Checkpoint(3, {"w": torch.tensor([1.0])}, {}))
    path = tmp_path / "checkpoint-00000003" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert newest_checkpoint(tmp_path) is None


WORKER = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
import torch; torch.set_num_threads(1)
import tiny_world
from pathlib import Path
from rlhf_lab.cadence import Cadence
from rlhf_lab.checkpoint import keep_only_resumable, remove_checkpoints
from test_resume import CASES
folder, world, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])
ctx = tiny_world.context("rl", CASES["rl"], folder, world)
ctx.checkpoint_every, done = Cadence(steps=1), [0]
plain = ctx.log
def log(step, split, **metrics):
    plain(step, split, **metrics)
    done[0] += 1
    if done[0] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
ctx.log = log
keep_only_resumable(folder)
ctx.config.stages["rl"].run(ctx)
remove_checkpoints(folder)
"""


@pytest.mark.slow
def test_sigkill_between_any_two_rows_twice(world, tmp_path):
    """A real process kills itself after the k-th row, and the process that resumes does so again."""
    run("rl", CASES["rl"], tmp_path / "undisturbed", world)
    here = Path(__file__).parent
    folder = tmp_path / "killed"
    folder.mkdir()
    codes = []
    for kill_at in (3, 2, 1, 10_000):
        arguments = [sys.executable, "-c", WORKER, str(folder), str(world), str(here.parent), str(kill_at)]
        environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
        codes.append(subprocess.run(arguments, env=environment, stderr=subprocess.DEVNULL, timeout=300).returncode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert contents(folder) == contents(tmp_path / "undisturbed")
