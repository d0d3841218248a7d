"""Two processes at one run compute what one does."""

import json
import os
import socket
import subprocess
import sys

import pandas as pd
import pytest
import torch
from micro_spec import PLUGINS, lab_process, write_spec
from safetensors.torch import load_file

import rlhf_lab
from rlhf_lab import processes
from rlhf_lab.declaration.resources import Resources
from rlhf_lab.running.pool import worker_command
from rlhf_lab.store.files import read_json


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(world, out, rank=0, size=1, port=0):
    several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, "PYTHONPATH": str(PLUGINS.parent), "OMP_NUM_THREADS": "1"}
    environment |= {key: str(value) for key, value in several.items()} if size > 1 else {}
    command = [sys.executable, PLUGINS / "gradients.py", world, out]
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)


def gradients(world, folder, size):
    out, port = folder / f"{size}.safetensors", free_port()
    found = [started(world, out, rank, size, port) for rank in range(size)]
    said = [process.communicate(timeout=120)[1] for process in found]
    assert all(process.returncode == 0 for process in found), said
    return load_file(out), json.loads(out.with_suffix(".json").read_text())


@pytest.mark.slow
def test_gradients_of_shares_add_up_to_those_of_the_whole(world, tmp_path):
    """Seven sequences in micro-batches of two: four and three; surrogate, value loss, entropy and pretraining mix."""
    (one, said), (two, also) = (gradients(world, tmp_path, size) for size in (1, 2))
    assert one.keys() == two.keys() and len(one) > 10
    scale = max(gradient.abs().max() for gradient in one.values())
    assert max((one[name] - two[name]).abs().max() for name in one) <= 1e-6 * scale
    assert also == pytest.approx(said, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_the_tables_of_two_processes_are_those_of_one(tmp_path):
    frames = {}
    for n in (1, 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        path = write_spec(folder, axes="axes: {}", seeds="seeds: [0]", resources=f"resources: {{threads: 1, processes: {n}}}")
        process = lab_process("run", path, "--out", folder / "out")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        frames[n] = rlhf_lab.load(folder / "out" / "tiny").select_dtypes("number").drop(columns="seconds", errors="ignore")
    pd.testing.assert_frame_equal(frames[1], frames[2], rtol=1e-4, atol=1e-6)
    (status,) = (tmp_path / "2").rglob("status.json")
    (stage,) = [read_json(file) for file in (tmp_path / "2").rglob("stage.json") if read_json(file)["kind"] == "rl"]
    assert read_json(status)["status"] == "done" and stage["conditions"][0]["processes"] == 2


FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_machines: 1
machine_rank: 0
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: false
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_activation_checkpointing: true
"""


def test_a_configuration_of_accelerate_arrives_as_it_was_written(tmp_path):
    """What accelerate itself reads in each process that its launcher starts, values that are not its defaults."""
    config, probe = tmp_path / "fsdp.yaml", tmp_path / "probe.py"
    config.write_text(FSDP)
    probe.write_text(
        "import json, pathlib\n"
        "from accelerate import PartialState\nfrom accelerate.utils import FullyShardedDataParallelPlugin\n"
        "plugin, state = FullyShardedDataParallelPlugin(), PartialState(cpu=True)\n"
        "pathlib.Path(__file__).with_name(f'{state.process_index}.json').write_text(json.dumps("
        "[state.num_processes, plugin.fsdp_version, plugin.reshard_after_forward, "
        "str(plugin.state_dict_type), plugin.activation_checkpointing]))\n"
    )
    command = [*worker_command(Resources(processes=2, accelerate=config))[:-2], str(probe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    said = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]  # a file each: one pipe mixes their lines
    assert said == [[2, 2, False, "StateDictType.FULL_STATE_DICT", True]] * 2


def test_alone_nothing_is_shared():
    assert processes.share(5).tolist() == [0, 1, 2, 3, 4] and processes.count() == 1 and processes.rank() == 0
    assert processes.everybodys("x") == ["x"] and processes.firsts(3) == 3
    weight = torch.nn.Parameter(torch.ones(2))
    processes.add_up_gradients([weight])
    assert weight.grad is None and processes.add_up({"loss": 1.0}) == {"loss": 1.0}
