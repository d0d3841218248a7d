"""The claim of the design: a new KL controller is one file outside the package and one line in a spec."""

import json
import math

import pytest
from micro_spec import PLUGINS, lab, refused, write_spec

import rlhf_lab

PID = PLUGINS / "velocity_pid.py"


def test_the_file_is_short_and_outside_the_package():
    lines = [line for line in PID.read_text().splitlines() if line.strip()]
    assert len(lines) <= 25


def test_it_is_listed():
    components = json.loads(lab("plugins", "list", "--plugin", PID, "--json").stdout)["components"]
    (row,) = [row for row in components if row["name"] == "velocity_pid"]
    assert row["kind"] == "kl_controller" and row["from"].startswith("velocity_pid.py local+")
    assert row["doc"].startswith("log β += p·(e_t − e_{t−1})")
    assert "velocity_pid" not in lab("plugins", "list").stdout


def test_it_is_shown_with_types_defaults_ranges_units_and_sources():
    shown = lab("plugins", "show", "kl_controller", "velocity_pid", "--plugin", PID)
    assert shown.exit_code == 0
    rows = {line.split("\t")[0]: line.split("\t") for line in shown.stdout.splitlines() if "\t" in line}
    assert rows["parameter"] == ["parameter", "type", "default", "range", "unit", "what it is", "source"]
    assert rows["target"] == ["target", "float", "1.0", "> 0", "nats per sequence", "KL that is aimed at", ""]
    assert rows["i"] == ["i", "float", "0.1", "≥ 0, ≤ 10", "", "integral gain", "Åström & Hägglund 1995"]
    data = json.loads(lab("plugins", "show", "kl_controller", "velocity_pid", "--plugin", PID, "--json").stdout)
    assert [row["parameter"] for row in data["parameters"]] == ["beta", "target", "p", "i", "d"]


def test_without_the_file_the_name_is_unknown(tmp_path):
    assert refused(write_spec(tmp_path), "rl.kl=velocity_pid").startswith(
        "override rl.kl=velocity_pid: unknown kl_controller 'velocity_pid'"
    )


def test_its_ranges_are_checked_with_the_place_in_the_spec(tmp_path):
    path = write_spec(tmp_path)
    path.write_text(path.read_text().replace("{name: fixed, beta: 0.2}", "{name: velocity_pid, target: -1}"))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "velocity_pid" in text)
    column = path.read_text().splitlines()[line - 1].index("target") + 1
    expected = f"spec.yaml:{line}:{column}: rl.kl.target must be > 0 nats per sequence, not -1"
    assert refused(path, "--plugin", PID) == expected
    path.write_text(path.read_text().replace("target: -1", "taget: 1"))
    assert refused(path, "--plugin", PID) == f"spec.yaml:{line}:{column}: unknown key 'taget' in rl.kl (did you mean 'target'?)"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The spec with its one line changed, run; the rows of the rl stage."""
    folder = tmp_path_factory.mktemp("pid")
    path = write_spec(folder, axes="axes: {}", seeds="seeds: [0]")
    path.write_text(
        path.read_text().replace("kl: {name: fixed, beta: 0.2}", "kl: {name: velocity_pid, beta: 0.1, target: 0.2, d: 0.2}")
    )
    result = lab(
        "run",
        path,
        "--plugin",
        PID,
        "rl.steps=6",
        "rl.learning_rate=0.2",
        "rl.batch_size=16",
        "--out",
        folder / "out",
        "--quiet",
    )
    assert result.exit_code == 0, result.stderr
    steps = rlhf_lab.load(folder / "out" / "tiny")
    return steps[(steps["stage"] == "rl") & (steps["split"] == "train")]


def test_beta_moves_as_a_hand_computed_pid_of_the_logged_kl(run):
    """Velocity form: log β_{t+1} = log β_t + p Δe + i e + d Δ²e with e before the start 0."""
    p, i, d, target = 0.5, 0.1, 0.2, 0.2
    errors = [0.0, 0.0, *((kl - target) / target for kl in run["kl"])]
    log_beta = [math.log(0.1)]
    for before, last, now in zip(errors, errors[1:], errors[2:], strict=False):
        log_beta.append(log_beta[-1] + p * (now - last) + i * now + d * (now - 2 * last + before))
    assert run["beta"].tolist() == pytest.approx([math.exp(x) for x in log_beta[:-1]], rel=1e-5)


def test_the_controller_had_something_to_do(run):
    assert run["step"].tolist() == list(range(6))
    assert run["kl"].iloc[0] == pytest.approx(0, abs=1e-6) and run["kl"].max() > 0.2
    assert run["beta"].min() < 0.1 < run["beta"].max()
