"""Tables from files that were written by hand."""

import json
import math

import pyarrow.parquet
import pytest

from rlhf_lab.errors import DataError
from rlhf_lab.results.tables import COLUMNS, axis_label, compact, load
from rlhf_lab.store.files import commit


@pytest.fixture
def results(tmp_path):
    add_run(tmp_path, "bbbb", seed=1, axes={"rl.kl.beta": 0.2}, stages={"sft": "s0", "rl": "r1"})
    add_run(tmp_path, "aaaa", seed=0, axes={"rl.kl.beta": 0.02}, stages={"sft": "s0", "rl": "r0"})
    add_stage(tmp_path, "s0", [{"stage": "sft", "step": 0, "split": "train", "loss": 2.5}])
    add_stage(
        tmp_path,
        "r0",
        [
            {"stage": "rl", "step": 0, "split": "train", "kl": 0.0, "reward_gold": None, "beta": 1e999},
            {"stage": "rl", "step": 1, "split": "train", "kl": 0.1 + 0.2},
        ],
        samples=[{"stage": "rl", "step": 0, "prompt": "x", "response": "y", "reward_proxy": 1.5, "reward_gold": None}],
    )
    (tmp_path / "plan.json").write_text(json.dumps({"runs": ["bbbb", "aaaa"]}))
    return tmp_path


def add_run(results, run_id, *, seed, axes, stages, status="done"):
    folder = results / "runs" / run_id
    folder.mkdir(parents=True)
    run = {"run_id": run_id, "arm": "base", "axes": axes, "seed": seed, "stages": stages, "store": str(results / "stages")}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "status.json").write_text(
        json.dumps({"status": status, "seconds": 2.0, "packages": {"torch": "2"}, "device": "cpu"})
    )


def add_stage(results, name, rows, samples=(), committed=True):
    folder = results / "stages" / name
    folder.mkdir(parents=True)
    for file, lines in (("steps.jsonl", rows), ("samples.jsonl", samples)):
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if committed:
        commit(folder)


def test_a_row_per_run_stage_and_step_in_the_order_of_the_plan(results):
    compact(results)
    steps = load(results)
    assert steps["run_id"].tolist() == ["bbbb", "aaaa", "aaaa", "aaaa"]
    assert steps["stage"].tolist() == ["sft", "sft", "rl", "rl"]
    assert steps["rl.kl.beta"].tolist() == [0.2, 0.02, 0.02, 0.02]
    assert steps["seed"].tolist() == [1, 0, 0, 0]
    assert steps["kl"].tolist()[2:] == [0.0, 0.1 + 0.2]
    assert steps["loss"].tolist()[:2] == [2.5, 2.5]
    assert math.isnan(steps["reward_gold"][2]) and math.isinf(steps["beta"][2])


def test_runs_keep_status_axes_and_provenance(results):
    compact(results)
    runs = load(results, "runs")
    assert runs["run_id"].tolist() == ["bbbb", "aaaa"]
    assert runs["version_torch"].tolist() == ["2", "2"] and runs["seconds"].tolist() == [2.0, 2.0]
    assert tuple(runs.columns[:5]) == COLUMNS["runs"]


def test_samples_come_with_their_arm_and_axes(results):
    compact(results)
    (sample,) = load(results, "samples").to_dict("records")
    assert (sample["response"], sample["reward_proxy"], sample["rl.kl.beta"], sample["seed"]) == ("y", 1.5, 0.02, 0)


def test_an_unfinished_stage_has_no_rows(results):
    add_stage(results, "r1", [{"stage": "rl", "step": 0, "split": "train", "kl": 9.0}], committed=False)
    compact(results)
    assert 9.0 not in load(results)["kl"].tolist()


def test_a_run_that_has_not_begun_is_pending(results):
    (results / "runs" / "aaaa" / "status.json").unlink()
    compact(results)
    assert load(results, "runs")["status"].tolist() == ["done", "pending"]


def test_promised_columns_are_there_even_when_nothing_ran(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"runs": []}))
    tables = compact(tmp_path)
    assert {name: tuple(table.columns) for name, table in tables.items()} == dict(COLUMNS)


def test_rebuilding_gives_the_same_bytes_and_states_the_schema(results):
    compact(results)
    first = (results / "steps.parquet").read_bytes()
    compact(results)
    assert (results / "steps.parquet").read_bytes() == first
    assert pyarrow.parquet.read_schema(results / "steps.parquet").metadata[b"rlhf_lab.schema"] == b"1"
    assert not [p for p in results.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    "value, label",
    [
        (0.02, 0.02),
        ("gae", "gae"),
        (True, True),
        ([1, 2], "[1, 2]"),
        ({"name": "rloo"}, "rloo"),
        ({"name": "adaptive", "target": 6, "gain": 0.1}, "adaptive(target=6, gain=0.1)"),
        ({"name": "a", "source": {"name": "b", "x": 1}}, "a(source=b(x=1))"),
    ],
)
def test_axis_labels(value, label):
    assert axis_label(value) == label


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="no table 'losses'; there are runs, steps, samples"):
        load(tmp_path, "losses")
    with pytest.raises(DataError, match=r"does not exist; is .* the folder of a finished sweep"):
        load(tmp_path)


def test_runs_that_the_plan_does_not_list_are_left_out_and_kept(results):
    (results / "plan.json").write_text(json.dumps({"runs": ["aaaa"]}))
    compact(results)
    assert load(results, "runs")["run_id"].tolist() == ["aaaa"]
    assert (results / "runs" / "bbbb" / "run.json").is_file()


def test_the_frontier_of_best_of_n_stands_beside_the_validation_rows(results):
    """Points of R = √KL at β = dR/dKL = 1/(2√KL), which the interpolation must give back between them."""
    shared = {"split": "frontier", "ess": 99.0, "reward_proxy_se": 0.0}
    points = [{"step": 0, "kl": d * d, "reward_proxy": d, "beta": 1 / (2 * d), **shared} for d in (0.1, 0.5, 1.0)]
    rl = [
        {"step": 5, "split": split, "kl": kl, "reward_proxy": 0.25}
        for split, kl in (("validation", 0.36), ("train", 0.36), ("validation", 4.0))
    ]
    add_stage(results, "b0", points)
    add_stage(results, "r2", rl)
    add_run(results, "cccc", seed=2, axes={"rl.kl.beta": 0.1}, stages={"rl": "r2", "best_of_n": "b0"})
    (results / "plan.json").write_text(json.dumps({"runs": ["cccc"]}))
    compact(results)
    rows = load(results).query("stage == 'rl'")
    assert rows["reward_optimal_at_kl"].tolist()[0] == pytest.approx(0.6, abs=1e-9)
    assert rows["frontier_gap"].tolist()[0] == pytest.approx(0.35, abs=1e-9)
    assert rows["reward_optimal_at_kl"].isna().tolist() == [False, True, True]  # not of training rows, not beyond the estimate
