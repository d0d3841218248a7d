"""Witness: a table of six runs small enough for hand computation."""

import json

import numpy as np
import pandas as pd
import pytest
from rlhf_lab_analysis.expected import check, check_expected

from rlhf_lab.errors import SpecError

FINAL_KL = {"statistic": "final", "column": "kl"}


def one(frame, **options):
    bounds = {key: options.pop(key) for key in ("min", "max") if key in options}
    (check,) = check_expected(frame, {"checks": [{"name": "it", "what": {"column": "reward_gold", **options}, **bounds}]})
    return check


@pytest.mark.parametrize("statistic, value", [
    ("start", 0.0), ("final", 0.2), ("peak", 1.0), ("lowest", 0.0), ("peak_minus_final", 0.8), ("peak_minus_start", 1.0),
    ("final_minus_start", 0.2),
])
def test_each_statistic_passes_and_fails_by_hand(arms, statistic, value):
    lower = arms.assign(reward_gold=arms["reward_gold"] - (arms["step"] == 20) * 1.0)  # gae: mean curve 0, 1, 0.2
    where = {"arm": "gae"}
    good = one(lower, statistic=statistic, where=where, min=value - 0.01, max=value + 0.01)
    assert good.ok and good.value == pytest.approx(value) and good.text.startswith("ok") and "n = 3" in good.text
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
    check = one(arms, statistic="final", where={"arm": "rloo"}, minus={"arm": "gae"}, min=0)
    assert check.ok and check.value == pytest.approx(0.2 / 3)


def test_numbers_match_up_to_rounding_and_other_stages_can_be_asked(arms):
    axis = arms.assign(**{"rl.kl.beta": 0.1 + 0.2})
    assert one(axis, statistic="final", where={"rl.kl.beta": 0.3}, min=1).ok
    accuracy = arms.iloc[:1].assign(stage="reward_model", step=5, accuracy=0.84)
    assert one(pd.concat([arms, accuracy]), column="accuracy", stage="reward_model", statistic="final", min=0.8).ok


@pytest.mark.parametrize("options, said", [
    ({"where": {"arm": "ppo"}}, "no rows with arm = ppo (there are: gae, rloo)"),
    ({"where": {"rl.kl.beta": 1}}, "no column 'rl.kl.beta'"),
    ({"column": "golden"}, "no column 'golden'"),
    ({"stage": "sft"}, "no steps of split 'validation' of stage 'sft'"),
])
def test_what_cannot_be_evaluated_fails_and_says_why(arms, options, said):
    check = one(arms, statistic="final", min=-100, **options)
    assert not check.ok and said in check.text


def test_nan_never_passes(arms):
    gone = arms.assign(reward_gold=np.nan)
    assert not one(gone, statistic="final", min=-100).ok and not one(gone, statistic="final", max=100).ok


@pytest.mark.parametrize("expected, said", [
    ({}, "'checks'"),
    ({"checks": []}, "'checks'"),
    ({"checks": [{"name": "x", "min": 1, "what": {"statistic": "mean", "column": "kl"}}]}, "unknown statistic 'mean'; choose"),
    ({"checks": [{"name": "x", "what": FINAL_KL}]}, "give either min or max"),
    ({"checks": [{"name": "x", "min": 1, "what": {**FINAL_KL, "decreasing_in": "a"}}]}, "give either min or max"),
    ({"checks": [{"name": "x", "minimum": 1, "what": FINAL_KL}]}, "'checks.0.minimum'"),
])
def test_a_wrong_file_is_an_error_that_names_the_place(arms, expected, said):
    with pytest.raises(SpecError) as error:
        check_expected(arms, json.loads(json.dumps(expected)))
    assert said in str(error.value)


def test_a_file_is_read_and_a_broken_one_is_named(arms, tmp_path):
    arms.to_parquet(tmp_path / "steps.parquet")
    arms[["run_id", "arm", "seed"]].drop_duplicates().assign(status="done", seconds=1.0).to_parquet(tmp_path / "runs.parquet")
    expected = tmp_path / "expected.json"
    expected.write_text('{"checks": [{"name": "kl", "max": 3.5, "what": {"statistic": "final", "column": "kl"}}]}')
    assert [(c.ok, c.value) for c in check(tmp_path, expected)] == [(True, pytest.approx(3.0))]
    expected.write_text('{"checks": [')
    with pytest.raises(SpecError, match=r"expected\.json cannot be read as JSON"):
        check(tmp_path, expected)
