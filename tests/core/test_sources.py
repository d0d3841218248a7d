"""Which files a plugin's source hash covers, on packages written for it; and what a change under one version leads to."""

import shutil
import subprocess
import sys

import pytest
from micro_spec import lab_process, write_spec

from rlhf_lab.sources import source_hash
from rlhf_lab.store.files import read_json

PACKAGE = {
    "__init__.py": "",
    "plugin.py": "import json\nfrom acme.near import x\nimport rlhf_lab.contracts\n",
    "near.py": "def later():\n    from . import far\n",
    "far.py": "FAR = 1\n",
    "deep/__init__.py": "from .. import near\n",
    "deep/other.py": "OTHER = 1\n",
    "stranger.py": "STRANGER = 1\n",
}


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    """`hash_of(file=text)`: the hash of acme.plugin, with those files changed, as a fresh process finds it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "acme" / "deep").mkdir(parents=True)

    def hash_of(module="acme.plugin", **changed):
        for name, text in {**PACKAGE, **{f"{key.replace('__', '/')}.py": text for key, text in changed.items()}}.items():
            (tmp_path / "acme" / name).write_text(text)
        source_hash.cache_clear()
        return source_hash(module, "acme")

    yield hash_of
    source_hash.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]


def test_a_module_counts_with_those_of_its_own_that_it_imports(hash_of):
    before = hash_of()
    assert hash_of() == before and len(before) == 32
    assert hash_of(plugin=PACKAGE["plugin.py"] + "#\n") != before
    assert hash_of(near=PACKAGE["near.py"] + "#\n") != before
    assert hash_of(far="FAR = 2\n") != before, "imported inside a function, from a package"
    assert hash_of(stranger="STRANGER = 2\n") == before
    assert hash_of(deep__other="OTHER = 2\n") == before


def test_relative_imports_from_a_package(hash_of):
    before = hash_of("acme.deep")
    assert hash_of("acme.deep", far="FAR = 2\n") != before
    assert hash_of("acme.deep", deep__other="OTHER = 2\n") == before


def test_a_file_that_moves_its_end_into_the_next_is_another_source(hash_of):
    one = hash_of(near="a = 1\n", far="", plugin="from acme import far, near\n")
    assert one != hash_of(near="", far="a = 1\n", plugin="from acme import far, near\n")


def test_the_world_of_the_built_in_data_is_part_of_its_source():
    """micro.py reads its sentences from micro_grammar.py beside it: both are in the hash, the core is not."""
    code = (
        "import sys, pathlib, rlhf_lab.sources as s\n"
        "read = []\n"
        "real = pathlib.Path.read_bytes\n"
        "pathlib.Path.read_bytes = lambda self: read.append(self.name) or real(self)\n"
        "s.source_hash('rlhf_lab_plugins.data.micro', 'rlhf-lab')\n"
        "print(sorted(read))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'micro.py'" in done.stdout and "'micro_grammar.py'" in done.stdout and "contracts.py" not in done.stdout


# A distribution whose code changes under one version (fault 19)

REWARD = """
from rlhf_lab import Component, hookimpl
from rlhf_lab.contracts import Scores
from edited_parts import scale

class Edited(Component):
    "The length, scaled."
    kind, name = "reward", "edited"

    def open(self, ctx):
        return lambda rollout: Scores(rollout.mask_BT.sum(1) * scale())

@hookimpl
def register_components(register):
    register(Edited)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution on the path of processes that are started: a plugin, and a module of its own beside it."""
    site = tmp_path / "site"
    metadata = site / "edited-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "edited_plugin.py").write_text(REWARD)
    (site / "edited_parts.py").write_text("def scale():\n    return 1.0\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: edited\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rlhf_lab]\nplugin = edited_plugin\n")
    (metadata / "RECORD").write_text("edited_plugin.py,,\nedited_parts.py,,\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.delenv("RLHF_LAB_LOAD_PLUGINS", raising=False)
    return site


def run(path, *arguments):
    process = lab_process("run", path, "--out", path.parent / "out", "rl.reward=edited", "rl.steps=1", *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_a_plugin_that_was_edited_under_its_version_is_refused_unless_it_is_allowed(installed, tmp_path):
    path = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    code, _, err = run(path)
    assert code == 0, err
    results = tmp_path / "out" / "tiny"

    (installed / "edited_parts.py").write_text("def scale():\n    return 2.0\n")
    code, out, err = run(path, "seeds=0,1")
    (run_id,) = read_json(results / "plan.json")["runs"]
    stage = read_json(results / "runs" / run_id / "run.json")["stages"]["rl"]
    then = read_json(results / "stages" / stage / "stage.json")["plugin_sources"]["reward/edited"]
    assert code == 2 and out == ""
    told = f"stage rl {stage} was computed with another source of reward/edited under the same version (then {then[:8]}"
    assert err.startswith(told)
    assert err.count("\n") == 1 and "raise the component's `version`" in err and "--allow-changed" in err
    assert read_json(results / "plan.json")["runs"] == [run_id], "nothing was touched"

    code, _, err = run(path, "--allow-changed", "seeds=0,1")
    assert code == 0, err
    plan = read_json(results / "plan.json")
    (other,) = set(plan["runs"]) - {run_id}
    fresh = read_json(results / "runs" / other / "run.json")["stages"]["rl"]
    now = read_json(results / "stages" / fresh / "stage.json")["plugin_sources"]["reward/edited"]
    assert plan["computed_with_other_code"] == {
        stage: {"stage": "rl", "sources": {"reward/edited": {"computed_with": then, "now": now}}}
    }
    assert now != then and read_json(results / "stages" / stage / "stage.json")["plugin_sources"]["reward/edited"] == then

    # What is edited between planning and start is not computed: the worker that finds it says so.
    shutil.rmtree(results / "stages" / fresh)
    (installed / "edited_parts.py").write_text("def scale():\n    return 3.0\n")
    run_dir = results / "runs" / other
    done = subprocess.run([sys.executable, "-m", "rlhf_lab.worker", run_dir], capture_output=True, text=True, timeout=120)
    status = read_json(run_dir / "status.json")
    assert done.returncode == 1 and status["status"] == "failed"
    assert status["error"] == "the code of reward/edited changed since the sweep was planned; plan it again"
    assert not (results / "stages" / fresh / "COMMIT").exists()
