"""What a user gets from `pip install .`: built as a wheel, installed away from the checkout, and run there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import rlhf_lab

pytestmark = pytest.mark.slow

ROOT = Path(rlhf_lab.__file__).parents[1]
SOURCE = ["rlhf_lab", "plugins", "analysis", "experiments", "pyproject.toml", "README.md"]
SMALL = [
    "seeds=0", "rl.kl.beta=0.2", "data.sentences=200", "sft.epochs=1", "sft.log_samples=0", "comparisons.prompts=16",
    "comparisons.validation_prompts=8", "reward_model.epochs=1", "reward_model.batch_size=8",
    "reward_model.normalize_examples=8", "rl.steps=2", "rl.batch_size=4", "rl.evaluation.prompts=4",
    "rl.gold.samples=16", "best_of_n.gold.samples=16",
    "best_of_n.prompts=2", "best_of_n.samples=4", "resources.workers=1", "resources.threads=1",
]  # fmt: skip


def builds_offline():
    """setuptools new enough for pyproject.toml is here already; otherwise pip fetches one for the build."""
    try:
        return int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        return False


def call(*command, cwd, **options):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the source, so that the checkout is not written to."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    isolation = ["--no-build-isolation"] if builds_offline() else []
    call(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--quiet", *isolation, "-w", out, cwd=source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A fresh environment with the wheel. Its libraries are those of this one, by a path file: an editable install of the
    checkout, which works by a path file of its own, is not seen through it.
    """
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    interpreter = folder / "bin" / "python"
    site = Path(call(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    paths = sysconfig.get_paths()
    (site / "libraries.pth").write_text("".join(f"{path}\n" for path in {paths["purelib"], paths["platlib"]}))
    call(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", site, wheel, cwd=folder)
    return interpreter


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


def lab(python, elsewhere, *arguments):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RLHF_LAB_RUNS_DIR")}
    return call(python, "-m", "rlhf_lab.cli", *arguments, cwd=elsewhere, env={**environment, "OMP_NUM_THREADS": "1"})


def test_the_wheel_holds_modules_under_names_of_our_own_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    ours = {"rlhf_lab", "rlhf_lab_plugins", "rlhf_lab_analysis", "rlhf_lab_experiments"}
    assert {name for name in top if not name.endswith(".dist-info")} == ours
    assert not top & {"plugins", "analysis", "experiments", "tests"}


def test_the_wheel_holds_every_module_of_the_source(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (("rlhf_lab", "rlhf_lab"), ("plugins", "rlhf_lab_plugins"), ("analysis", "rlhf_lab_analysis")):
        missing = [
            path for path in (ROOT / folder).rglob("*.py")
            if f"{package}/{path.relative_to(ROOT / folder).as_posix()}" not in names
        ]  # fmt: skip
        assert not missing, "add their packages to pyproject.toml"


def test_the_default_experiment_ships_with_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in ("spec.yaml", "expected.json"):
        if (ROOT / "experiments" / "quickstart" / file).exists():
            assert f"rlhf_lab_experiments/quickstart/{file}" in names
    assert "rlhf_lab_experiments/quickstart/spec.yaml" in names


def test_the_wheel_carries_no_data_or_results(wheel):
    suffixes = {Path(name).suffix for name in zipfile.ZipFile(wheel).namelist()}
    assert suffixes <= {".py", ".yaml", ".json", ".txt", "", ".md"}
    assert wheel.stat().st_size < 1_000_000


def test_it_is_imported_from_where_it_was_installed(python, elsewhere):
    code = "import rlhf_lab, rlhf_lab_plugins, rlhf_lab_analysis, rlhf_lab_experiments as e\n"
    code += "for m in (rlhf_lab, rlhf_lab_plugins, rlhf_lab_analysis, e): print(m.__file__)"
    files = call(python, "-c", code, cwd=elsewhere).split()
    assert all(Path(file).is_relative_to(python.parents[1]) for file in files) and len(files) == 4


def test_no_plugin_is_broken_there(python, elsewhere):
    data = json.loads(lab(python, elsewhere, "plugins", "list", "--json"))
    assert data["broken"] == [] and len(data["components"]) > 30


def test_the_default_experiment_is_planned_and_run_there(python, elsewhere):
    assert len(json.loads(lab(python, elsewhere, "plan", "quickstart", "--json"))["runs"]) == 9
    said = json.loads(lab(python, elsewhere, "run", "quickstart", "--json", *SMALL))
    assert len(said["done"]) == 1 and said["failed"] == {}
    assert said["results"] == str(elsewhere / "results" / "quickstart")
    figures = lab(python, elsewhere, "plot", "frontier", "results/quickstart").split()
    assert figures and all((elsewhere / figure).is_file() for figure in figures)
