"""A stage that is stopped, or killed, and goes on leaves the same bytes as one that was never disturbed."""

import pytest
import tiny_world

from rlhf_lab.errors import Interrupted
from rlhf_lab.store.checkpoint import Checkpoint, keep_only_resumable, newest_checkpoint, remove_checkpoints, write_checkpoint

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
