"""Witness: a table small enough for hand computation, and scipy's t-tests."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlhf_lab.errors import DataError
from rlhf_lab_analysis.markdown import markdown, plus_minus
from rlhf_lab_analysis.report import fits, paired, summary, text


def test_summary_by_hand(arms):
    table = summary(arms).set_index("arm")
    assert list(table.index) == ["gae", "rloo"] and table["n"].tolist() == [3, 3]
    assert table["gold_final"].tolist() == pytest.approx([1.2, 3.8 / 3])
    assert table["gold_peak"].tolist() == pytest.approx([1.2, 3.8 / 3])  # the mean curves peak at the last step
    assert table["kl_final"].tolist() == pytest.approx([3.0, 3.0])
    test = stats.ttest_1samp([0.5, 0.7, 2.4], 0).confidence_interval()
    assert table.loc["gae", "gold_final_half_width"] == pytest.approx((test.high - test.low) / 2)


def test_peak_is_that_of_the_mean_curve_not_of_each_seed(arms):
    lower = arms.assign(reward_gold=arms["reward_gold"] - (arms["step"] == 20) * 1.0)
    row = summary(lower).set_index("arm").loc["gae"]
    assert row["gold_peak"] == pytest.approx(1.0)  # mean of 1, 2, 0 at step 10; the seeds' own best would give 4.4/3
    assert row["kl_at_peak"] == pytest.approx(2.0)


def test_a_seed_that_stopped_early_is_not_in_the_final_numbers(arms):
    broken = arms[~((arms["run_id"] == "gae2") & (arms["step"] == 20))]
    runs = pd.DataFrame({"arm": ["gae", "gae", "gae", "rloo", "ppo"], "status": ["done", "done", "failed", "done", "failed"]})
    table = summary(broken, runs).set_index("arm")
    assert table.loc["gae", "gold_final"] == pytest.approx(0.6)
    assert table["n"].tolist() == [2, 3, 0] and table["unfinished"].tolist() == [1, 0, 1]
    assert markdown(table.reset_index()).splitlines()[-1] == "| ppo | 0 | 1 |" + " – |" * 6


def test_paired_difference_is_the_paired_t_test(arms):
    table = paired(arms).set_index(["arm", "column"]).loc[("rloo", "reward_gold")]
    test = stats.ttest_rel([0.6, 1.0, 2.2], [0.5, 0.7, 2.4]).confidence_interval()
    assert (table["n"], table["difference"]) == (3, pytest.approx(0.2 / 3))
    assert (table["low"], table["high"]) == pytest.approx((test.low, test.high))


def test_pairs_need_the_seed_in_both_arms(arms):
    table = paired(arms[arms["run_id"] != "rloo1"], ["reward_gold"])
    assert table.loc[0, "n"] == 2 and table.loc[0, "difference"] == pytest.approx((0.1 - 0.2) / 2)


def test_pairs_agree_in_the_other_axes(arms):
    doubled = pd.concat(
        [
            arms.assign(
                **{"rl.lr": lr}, run_id=arms["run_id"] + str(lr), reward_gold=arms["reward_gold"] * (lr if lr == 2 else 1)
            )
            for lr in (1, 2)
        ]
    )
    table = paired(doubled, ["reward_gold"]).set_index("rl.lr")["difference"]
    assert table.to_dict() == pytest.approx({1: 0.2 / 3, 2: 0.4 / 3})


def test_any_baseline_and_any_column_to_pair_by(arms, sweep):
    assert paired(arms, ["reward_gold"], baseline="rloo").loc[0, "difference"] == pytest.approx(-0.2 / 3)
    assert paired(sweep, ["kl"], by="rl.kl.beta")["rl.kl.beta"].tolist() == [0.2, 1.0]
    assert paired(sweep).empty  # a single arm
    with pytest.raises(DataError, match="baseline arm = ppo is not in the table"):
        paired(arms, baseline="ppo")


def test_fits_find_the_coefficients_that_made_the_table(sweep):
    table = fits(sweep).set_index(["group", "reward", "form"])
    gold = table.loc[("beta = 0.02", "reward_gold", "rl")]
    assert (gold["alpha"], gold["beta"], gold["n"]) == (pytest.approx(1.1, abs=0.05), pytest.approx(0.9, abs=0.05), 3)
    bon = table.loc[("all", "reward_proxy", "best_of_n")]
    assert (bon["alpha"], bon["beta"]) == pytest.approx((1.3, 0.1), rel=1e-6)


def test_markdown_puts_mean_and_half_width_into_one_cell():
    table = pd.DataFrame(
        {
            "arm": ["a|b"],
            "n": [3],
            "kl_final": [35.44],
            "kl_final_half_width": [0.283],
            "gold_final": [np.nan],
            "gold_final_half_width": [np.nan],
        }
    )
    assert markdown(table) == (
        "| arm | n | final KL (nats) | final gold |\n| --- | --- | --- | --- |\n| a\\|b | 3 | 35.44 ± 0.28 | – |\n"
    )


@pytest.mark.parametrize(
    "mean, half, expected",
    [
        (0.7512, 0.19, "0.75 ± 0.19"),
        (120.4, 31.0, "120 ± 31"),
        (1.0, 0.0, "1.00 ± 0.00"),
        (0.123456, np.nan, "0.123"),
        (np.nan, np.nan, "–"),
        (0.0123456, 0.00012, "0.01235 ± 0.00012"),
    ],
)
def test_digits_follow_the_half_width(mean, half, expected):
    assert plus_minus(mean, half) == expected


@pytest.mark.parametrize("name", ["sweep", "eight_arms", "one_run", "without_gold"])
def test_the_report_is_written_for_every_kind_of_table(request, name):
    report = text(request.getfixturevalue(name))
    assert report.startswith("### Summary") and "nan" not in report and ("paired by seed" in report) == (name == "eight_arms")
