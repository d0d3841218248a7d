import pandas as pd
import pytest

from rlhf_lab.errors import DataError
from rlhf_lab_analysis.frames import axes, best_of_n_curve, best_of_n_curves, grouping, groups, label, select, short_names


def test_axes_are_dotted_and_constant_within_a_run(sweep):
    noisy = sweep.assign(**{"loss.policy": range(len(sweep))})
    assert axes(noisy) == ["rl.kl.beta"]


def test_groups_are_the_axis_values_in_ascending_order(sweep):
    cut = groups(select(sweep))
    assert [group.label for group in cut] == ["beta = 0.02", "beta = 0.2", "beta = 1"]
    assert [group.rows["rl.kl.beta"].unique().tolist() for group in cut] == [[0.02], [0.2], [1.0]]


def test_arms_keep_the_order_of_the_table_whatever_the_run_ids(eight_arms):
    hashed = eight_arms.assign(run_id=eight_arms["run_id"].str[::-1]).sort_values("step", ascending=False, kind="stable")
    expected = ["gae", "monte_carlo", "rloo", "grpo", "adaptive_kl", "pid_kl", "ppo_ptx", "no_critic"]
    assert [group.label for group in groups(select(hashed))] == expected
    assert select(hashed).groupby("run_id")["step"].agg(list).map(lambda steps: steps == sorted(steps)).all()


def test_an_axis_that_the_arm_determines_is_left_out():
    frame = pd.DataFrame({"run_id": list("abcd"), "arm": ["x", "x", "y", "y"], "seed": [0, 1, 0, 1], "rl.lr": [1, 1, 2, 2]})
    assert grouping(frame) == ["arm"]
    assert grouping(frame.assign(**{"rl.kl.beta": [1, 2, 1, 2]})) == ["arm", "rl.kl.beta"]
    assert grouping(frame, "rl.lr") == ["rl.lr"]


def test_short_names_stay_apart():
    assert short_names(["rl.kl.beta", "rl.lr"]) == {"rl.kl.beta": "beta", "rl.lr": "lr"}
    assert short_names(["rl.lr", "sft.lr"]) == {"rl.lr": "rl.lr", "sft.lr": "sft.lr"}
    assert label(["arm", "rl.lr"], ["rloo", 1e-5]) == "rloo, lr = 1e-05"


def test_missing_values_of_an_axis_form_a_last_group():
    frame = pd.DataFrame({"run_id": list("abc"), "arm": "x", "seed": 0, "rl.target": [float("nan"), 6.0, 3.0]})
    assert [group.label for group in groups(frame)] == ["target = 3", "target = 6", "no target"]


def test_rows_of_a_shared_stage_count_once(sweep):
    curve = best_of_n_curve(sweep)
    assert curve["n"].tolist() == [1, 2, 4, 8, 16, 32, 64, 128, 256] and set(curve["curves"]) == {1}
    ((number, shared),) = best_of_n_curves(sweep, groups(select(sweep)))
    assert number is None and shared.equals(curve)


def test_different_curves_of_groups_stay_apart_and_those_of_seeds_are_averaged(sweep):
    bon = sweep["stage"] == "best_of_n"
    per_seed = sweep.assign(reward_proxy=sweep["reward_proxy"].where(~bon, sweep["seed"].astype(float)))
    assert best_of_n_curve(per_seed)["reward_proxy"].tolist() == [1.0] * 9  # seeds 0, 1, 2
    assert best_of_n_curve(per_seed)["curves"].tolist() == [3] * 9
    per_axis = sweep.assign(reward_proxy=sweep["reward_proxy"].where(~bon, sweep["rl.kl.beta"]))
    found = best_of_n_curves(per_axis, groups(select(per_axis)))
    assert [(number, curve["reward_proxy"].iloc[0]) for number, curve in found] == [(0, 0.02), (1, 0.2), (2, 1.0)]


def test_no_best_of_n_no_curve(one_run):
    assert best_of_n_curve(one_run) is None


def test_what_is_not_there_is_said(sweep):
    with pytest.raises(DataError, match=r"no steps of split 'validation' of stage 'ppo'.*best_of_n, rl"):
        select(sweep, "ppo")
    with pytest.raises(DataError, match="no column 'beta_' to group by"):
        grouping(sweep, "beta_")
