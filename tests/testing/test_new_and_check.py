"""`plugins new` and `plugins check`, as a user meets them: one component of each kind is written, tried, and used."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from micro_spec import lab, write_spec

from rlhf_lab.cli.new_plugin import kinds
from rlhf_lab.contracts import KINDS
from rlhf_lab.testing import laws_of
from rlhf_lab_plugins.kl_controller.adaptive import Adaptive

# A launcher is not a function of its parameters but starts processes: it has a conformance suite of its own instead.
WITHOUT_A_SKELETON = {"launcher"}


def test_there_is_something_to_start_from_for_each_kind():
    assert set(kinds()) == set(KINDS) - WITHOUT_A_SKELETON


@pytest.mark.parametrize("kind", kinds())
def test_what_is_written_runs_as_it_is_and_keeps_every_law(kind, tmp_path):
    """One file per kind: every law of its kind holds, and it says what to fill in."""
    made = lab("plugins", "new", kind, f"my_{kind}", "--file", "--out", tmp_path)
    file = tmp_path / f"my_{kind}.py"
    assert made.exit_code == 0 and made.stdout.split() == [str(file)], made.stderr
    text = file.read_text()
    assert text.count("TODO") >= 2 and "skeleton" not in text.lower() and f'"my_{kind}"' in text
    checked = lab("plugins", "check", file)
    assert checked.exit_code == 0, checked.stdout
    assert f"{kind} my_{kind}" in checked.stdout and "0 are broken" in checked.stdout and "FAIL" not in checked.stdout


BROKEN = '''
import torch
from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import Estimate

class Careless(Component):
    """Rewards less their mean over all places, padding included."""

    kind, name = "advantage", "careless"
    gamma: float = param(1.0, "discount, which is forgotten", ge=0, le=1)

    def estimate(self, batch, state):
        centred_BT = (batch.rewards_BT - batch.rewards_BT.mean()).masked_fill(~batch.mask_BT, 0.0)
        return Estimate(centred_BT, centred_BT)

@hookimpl
def register_components(register):
    register(Careless)
'''


def test_a_broken_plugin_gets_a_readable_verdict(tmp_path):
    """Which law, what was expected, what was seen; exit code 1."""
    file = tmp_path / "careless.py"
    file.write_text(BROKEN)
    result = lab("plugins", "check", file)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    place = lines.index("  FAIL  padding changes nothing")
    assert lines[place + 1].strip() == (
        "expected: Neither more padding on the right nor what stands in it (0, 1e9, NaN, ∞) changes a number."
    )
    assert (
        lines[place + 2]
        .strip()
        .startswith("seen:     advantage 'careless': advantages_BT with 0.0 in 5 more columns of padding")
    )
    assert "gamma changes nothing" in result.stdout and lines[-1].endswith("2 are broken")
    found = json.loads(lab("plugins", "check", file, "--json").stdout)
    assert {v["law"] for v in found if not v["holds"]} == {"padding_changes_nothing", "each_parameter_counts"}


def test_a_plugin_that_cannot_be_loaded_is_3_and_no_plugin_is_2(tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_library\n")
    result = lab("plugins", "check", tmp_path / "bad.py")
    assert result.exit_code == 3 and "no_such_library" in result.stderr
    assert lab("plugins", "check", tmp_path).exit_code == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["kl_controler", "mine"], "unknown kind 'kl_controler' (did you mean 'kl_controller'?)"),
        (["reward", "My Reward"], "'My Reward' cannot be a name"),
        (["reward", "class"], "'class' cannot be a name"),
        (["kl_controller", "fixed"], "there is a kl_controller 'fixed' already, from rlhf-lab"),
    ],
)
def test_what_cannot_be_written_is_said_and_nothing_is_written(arguments, said, tmp_path):
    result = lab("plugins", "new", *arguments, "--out", tmp_path)
    assert result.exit_code == 2 and said in result.stderr and not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    result = lab("plugins", "new", "reward", "mine", "--file", "--out", tmp_path)
    assert result.exit_code == 2 and "is there already" in result.stderr
    assert (tmp_path / "mine.py").read_text() == "x = 1\n"


def test_a_package_is_checked_where_it_lies(tmp_path):
    assert lab("plugins", "new", "kl_controller", "lying", "--out", tmp_path).exit_code == 0
    result = lab("plugins", "check", tmp_path / "rlhf_lab_lying")
    assert result.exit_code == 0 and "kl_controller lying" in result.stdout
    (tmp_path / "rlhf_lab_lying" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert lab("plugins", "check", tmp_path / "rlhf_lab_lying").exit_code == 3


@pytest.mark.slow
def test_a_package_installed_in_an_environment_of_its_own(tmp_path):
    """Its laws, by the test that came with it; and a spec that uses it, run there."""
    assert lab("plugins", "new", "kl_controller", "installed", "--out", tmp_path).exit_code == 0
    package, environment = tmp_path / "rlhf_lab_installed", tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    libraries = Path(sysconfig.get_paths()["purelib"])
    (site / "0_libraries.pth").write_text(f"{libraries}\n")
    for file in libraries.glob("__editable__*.pth"):  # an editable install is found by a path file of its own
        shutil.copy(file, site)
    run(sys.executable, "-m", "pip", "install", "--no-deps", *isolation(), "--quiet", "--target", site, package)
    passed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", package / "tests", cwd=package)
    assert f"{len(laws_of(Adaptive))} passed" in passed
    spec = write_spec(tmp_path, axes="axes: {}", seeds="seeds: [0]")
    said = run(python, "-m", "rlhf_lab.cli", "run", spec, "--out", tmp_path / "results", "--json", "rl.kl=installed")
    assert len(json.loads(said)["done"]) == 1


def isolation() -> list[str]:
    """setuptools new enough for pyproject.toml is here already; otherwise pip fetches one for the build."""
    try:
        return ["--no-build-isolation"] if int(version("setuptools").split(".")[0]) >= 77 else []
    except PackageNotFoundError:
        return []


def run(*command, cwd=None) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RLHF_LAB_RUNS_DIR")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env={**environment, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
