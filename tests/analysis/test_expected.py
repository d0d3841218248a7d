"""Witness: a table of six runs small enough for hand computation."""

import json

import numpy as np
import pandas as pd
import pytest

from rlhf_lab.errors import SpecError
from rlhf_lab_analysis.expected import check, check_expected

FINAL_KL = {"statistic": "final", "column": "kl"}


def tables(frame):
    return {"steps": frame, "runs": frame[["run_id", "arm", "seed"]].drop_duplicates().assign(status="done", seconds=1.0)}


def one(frame, **options):
    bounds = {key: options.pop(key) for key in ("min", "max") if key in options}
    expectation = {"name": "it", "what": {"column": "reward_gold", **options}, **bounds}
    done, result = check_expected(tables(frame), {"checks": [expectation]})
    assert done.ok
    return result


@pytest.mark.parametrize(
    "statistic, value",
    [
        ("start", 0.0),
        ("final", 0.2),
        ("peak", 1.0),
        ("lowest", 0.0),
        ("peak_minus_final", 0.8),
        ("peak_minus_start", 1.0),
        ("final_minus_start", 0.2),
    ],
)
def test_each_statistic_passes_and_fails_by_hand(arms, statistic, value):
    lower = arms.assign(reward_gold=arms["reward_gold"] - (arms["step"] == 20) * 1.0)  # gae: mean curve 0, 1, 0.2
    where = {"arm": "gae"}
    good = one(lower, statistic=statistic, where=where, min=value - 0.01, max=value + 0.01)
    assert good.ok and good.value == pytest.approx(value) and "n = 3" in good.text
    assert not one(lower, statistic=statistic, where=where, min=value + 0.01).ok
    assert not one(lower, statistic=statistic, where=where, max=value - 0.01).ok


def test_order_along_an_axis(sweep):
    falling = one(sweep, column="kl", statistic="final", decreasing_in="rl.kl.beta")
    assert falling.ok and [position for position, _ in falling.value] == [0.02, 0.2, 1.0]
    assert not one(sweep, column="kl", statistic="final", increasing_in="rl.kl.beta").ok
    assert not one(sweep, column="kl", statistic="start", decreasing_in="rl.kl.beta").ok  # all zero: not strictly
    single = one(sweep, column="kl", statistic="final", decreasing_in="rl.kl.beta", where={"rl.kl.beta": 0.2})
    assert not single.ok  # one value is no order


def test_difference_of_two_selections(arms):
    result = one(arms, statistic="final", where={"arm": "rloo"}, minus={"arm": "gae"}, min=0)
    assert result.ok and result.value == pytest.approx(0.2 / 3)


def test_numbers_match_up_to_rounding_and_other_stages_can_be_asked(arms):
    axis = arms.assign(**{"rl.kl.beta": 0.1 + 0.2})
    assert one(axis, statistic="final", where={"rl.kl.beta": 0.3}, min=1).ok
    accuracy = arms.iloc[:1].assign(stage="reward_model", step=5, accuracy=0.84)
    assert one(pd.concat([arms, accuracy]), column="accuracy", stage="reward_model", statistic="final", min=0.8).ok


@pytest.mark.parametrize(
    "options, said",
    [
        ({"where": {"arm": "ppo"}}, "no rows with arm = ppo (there are: gae, rloo)"),
        ({"where": {"rl.kl.beta": 1}}, "no column 'rl.kl.beta'"),
        ({"column": "golden"}, "no column 'golden'"),
        ({"stage": "sft"}, "no steps of split 'validation' of stage 'sft'"),
    ],
)
def test_what_cannot_be_evaluated_fails_and_says_why(arms, options, said):
    result = one(arms, statistic="final", min=-100, **options)
    assert not result.ok and said in result.text


def test_nan_never_passes(arms):
    gone = arms.assign(reward_gold=np.nan)
    for result in (one(gone, statistic="final", min=-100), one(gone, statistic="final", max=100)):
        assert not result.ok and result.value is None


def test_a_run_that_failed_fails_the_experiment(arms):
    frames = tables(arms)
    frames["runs"].iloc[2, frames["runs"].columns.get_loc("status")] = "failed"
    first, second = check_expected(frames, {"checks": [{"name": "kl", "max": 3.5, "what": FINAL_KL}]})
    assert not first.ok and first.text == "runs: 5 of 6 are done" and second.ok


def test_checks_are_json(without_gold):
    order = {"name": "x", "what": {**FINAL_KL, "decreasing_in": "rl.kl.beta"}}
    gone = {"name": "y", "min": 0, "what": {"statistic": "final", "column": "reward_gold"}}
    checks = check_expected(tables(without_gold), {"checks": [order, gone]})
    assert [name for name, *_ in json.loads(json.dumps(checks, allow_nan=False))] == ["runs", "x", "y"]


@pytest.mark.parametrize(
    "expected, said",
    [
        ({}, "'checks'"),
        ({"checks": []}, "'checks'"),
        (
            {"checks": [{"name": "x", "min": 1, "what": {"statistic": "mean", "column": "kl"}}]},
            "unknown statistic 'mean'; choose",
        ),
        ({"checks": [{"name": "x", "what": FINAL_KL}]}, "give either min or max"),
        ({"checks": [{"name": "x", "min": 1, "what": {**FINAL_KL, "decreasing_in": "a"}}]}, "give either min or max"),
        ({"checks": [{"name": "x", "minimum": 1, "what": FINAL_KL}]}, "'checks.0.minimum'"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_place(arms, expected, said):
    with pytest.raises(SpecError) as error:
        check_expected(tables(arms), expected)
    assert said in str(error.value)


def test_a_file_is_read_and_a_broken_one_is_named(arms, tmp_path):
    for name, table in tables(arms).items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    expected = tmp_path / "expected.json"
    expected.write_text('{"checks": [{"name": "kl", "max": 3.5, "what": {"statistic": "final", "column": "kl"}}]}')
    assert [(c.ok, c.value) for c in check(tmp_path, expected)] == [(True, 6), (True, pytest.approx(3.0))]
    expected.write_text('{"checks": [')
    with pytest.raises(SpecError, match=r"expected\.json cannot be read as JSON"):
        check(tmp_path, expected)
