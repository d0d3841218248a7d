"""What the tests share: a world small enough to enumerate, its models on disk, and stages that run in it."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import tiny_world
import torch
from micro_spec import lab, write_spec


def pytest_configure(config):
    """Warnings are errors, but for this one, which peft and transformers have to settle between them."""
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Byte-equal reruns need a fixed number of threads; tiny models are fastest with one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folders of the stages that others read: `sft` and `reward_model`, untrained but far from uniform."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_world.save_policy(folder / "sft")
    tiny_world.save_reward_model(folder / "reward_model")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The results folder of the small sweep: two values of β, two seeds. Look, do not touch."""
    folder = tmp_path_factory.mktemp("finished")
    result = lab("run", write_spec(folder), "--out", folder / "out", "--json")
    assert result.exit_code == 0, result.stderr
    return folder / "out" / "tiny"


@pytest.fixture
def run_stage(world, tmp_path):
    """`run_stage("rl", {…parameters…})` computes a stage of the tiny world and returns what it wrote."""
    count = iter(range(10_000))

    def run(stage, parameters=None, *, seed=0, inputs=None, data="tiny", model="tiny"):
        folder = tmp_path / f"{stage}.{next(count)}"
        folder.mkdir()
        ctx = tiny_world.context(stage, parameters or {}, folder, world, seed=seed, inputs=inputs, data=data, model=model)
        ctx.config.stages[stage].run(ctx)
        return tiny_world.Finished(folder)

    return run


@pytest.fixture
def open_stage(world, tmp_path):
    """`open_stage("rl", {…})` gives the validated component and its context, without running it."""

    def open_(stage, parameters=None, *, seed=0, inputs=None):
        ctx = tiny_world.context(stage, parameters or {}, tmp_path, world, seed=seed, inputs=inputs)
        return ctx.config.stages[stage], ctx

    return open_
