"""Fault 18: labels from hell."""

import re

import pytest
from micro_spec import write_spec

from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.registry import discover
from rlhf_lab.results.tables import compact
from rlhf_lab.running.plan import plan_sweep
from rlhf_lab.running.runner import prepare

LABELS = {
    "up": "../../x",
    "root": "/etc/passwd",
    "windows": "..\\x",
    "device": "CON",
    "right to left": "\u202egpj.exe",
    "formula": "=1+1",
    "option": "--help",
    "long": "x" * 300,
    "dot": ".",
    "spaces": " a  b ",
}


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_fault_18_a_label_is_data_and_never_a_path(label, tmp_path):
    (tmp_path / "in").mkdir()
    registry = discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})
    quoted = '"' + label.replace("\\", "\\\\") + '"'
    path = write_spec(tmp_path / "in", arms=f"arms: {{{quoted}: {{rl.steps: 2}}}}\n", axes="axes: {}", seeds="seeds: [0]")
    sweep = load_sweep(path, [], registry)
    results = tmp_path / "in" / "out"
    prepare(sweep, plan_sweep(sweep, registry), results, [])
    (runs, *_) = compact(results).values()
    assert runs["arm"].tolist() == [label]
    (folder,) = (results / "runs").iterdir()
    assert re.fullmatch(r"[0-9a-f]{16}", folder.name)
    assert {found.name for found in tmp_path.iterdir()} == {"in"}
    assert sorted(found.name for found in results.iterdir()) == [
        "plan.json", "runs", "runs.parquet", "samples.parquet", "steps.parquet"
    ]  # fmt: skip
