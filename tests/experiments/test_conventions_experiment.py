"""How far conventions move the curves: the statistics by hand, and the spec against the presets that it says it follows."""

from pathlib import Path

import pandas as pd
import pytest
from rlhf_lab_experiments.conventions import spread

from rlhf_lab.declaration.sweep import load_sweep
from rlhf_lab.errors import DataError
from rlhf_lab.registry import discover

SPEC = Path(spread.__file__).parent / "spec.yaml"


def steps(arms):
    """A steps table from {arm: {seed: [kl at steps 0, 5, …]}}."""
    rows = [
        {"arm": arm, "seed": seed, "stage": "rl", "split": "validation", "step": 5 * i, "kl": kl}
        for arm, seeds in arms.items()
        for seed, kls in seeds.items()
        for i, kl in enumerate(kls)
    ]
    return pd.DataFrame(rows)


TWO = steps({"a": {0: [0.0, 1.0], 1: [0.0, 3.0]}, "b": {0: [0.0, 2.0], 1: [0.0, 6.0]}})


def test_distances_by_hand():
    """Differences at the last step 1 and 3: mean 2, error √2/√2 = 1. Apart (0 + 2)/2; seeds √((2 + 8)/2) = √5, 0 before."""
    (row,) = spread.distances(TWO, ["kl"]).to_dict("records")
    assert row["final"] == pytest.approx(2.0) and row["error"] == pytest.approx(1.0)
    assert row["apart"] == pytest.approx(1.0) and row["seed"] == pytest.approx(5**0.5 / 2)
    assert row["in_seeds"] == pytest.approx(2 / 5**0.5)


def test_ends_by_hand():
    table = spread.finals(TWO, ["kl"])
    assert table["kl", "mean"].to_dict() == {"a": 2.0, "b": 4.0}
    assert table["kl", "std"].to_dict() == pytest.approx({"a": 2**0.5, "b": 8**0.5})


def test_the_first_arm_is_the_one_compared_with():
    turned = steps({"b": {0: [0.0, 2.0], 1: [0.0, 6.0]}, "a": {0: [0.0, 1.0], 1: [0.0, 3.0]}})
    assert spread.distances(turned, ["kl"])["final"].tolist() == pytest.approx([-2.0])
    text = spread.markdown(turned, ["kl"])
    assert "| b | 4.00 ± 2.83 |" in text and "| a | -2.00 ± 1.00; 0.9 |" in text


def test_what_cannot_be_compared():
    with pytest.raises(DataError, match="one arm only"):
        spread.distances(steps({"a": {0: [1.0]}}), ["kl"])
    with pytest.raises(DataError, match="fewer than 2 seeds"):
        spread.distances(steps({"a": {0: [1.0], 1: [1.0]}, "b": {0: [1.0], 2: [2.0]}}), ["kl"])


def test_a_blank_number_is_left_out():
    """The frontier's estimate ends somewhere: what is beyond has no gap, and the steps before are still compared."""
    short = steps({"a": {0: [0.0, 1.0, 9.0], 1: [0.0, 3.0, 9.0]}, "b": {0: [0.0, 2.0, float("nan")], 1: [0.0, 6.0, 1.0]}})
    (row,) = spread.distances(short, ["kl"]).to_dict("records")
    assert row["apart"] == pytest.approx(1.0) and row["final"] != row["final"]


# The spec

# What is a convention here, and where a preset leaves it open.
OPEN = {
    "score_at": "eos", "kl_estimator": "k1", "whiten_rewards": False, "whiten_advantages": "rollout", "whiten_ddof": 0,
    "aggregation": "token_mean", "no_eos_score": None, "no_eos_penalty": 0.0, "kl_placement": "reward",
    "truncation": "terminal", "advantages_shift_mean": True, "rewards_shift_mean": False, "baseline": "after_kl",
    "logprob_temperature": "sampling",
}  # fmt: skip


@pytest.fixture(scope="module")
def arms():
    points = load_sweep(SPEC, [], discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})).points
    return {point.arm: point.config.stages["rl"] for point in points}


def test_each_arm_has_the_conventions_of_its_preset(arms):
    registry = discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})
    for name, rl in arms.items():
        values = {path: value for path, (value, _) in registry.get("preset", name).component.values.items()}
        expected = {field: values.get(f"rl.{field}", default) for field, default in OPEN.items()}
        assert {field: getattr(rl, field) for field in OPEN} == expected, name


def test_one_at_a_time():
    """Every arm is the first but for one field; a variant may need more, so that it can run at all."""
    points = load_sweep(SPEC.with_name("one_at_a_time.yaml"), [], discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})).points
    dumps = {point.arm: point.config.model_dump(mode="json")["rl"] for point in points}
    for arm, dump in dumps.items():
        changed = {field for field in dump if dump[field] != dumps["default"][field]}
        assert len(changed) == (arm != "default") or arm == "variant_rloo", arm
        assert arm.startswith("variant_") or changed <= set(OPEN), arm


def test_arms_differ_in_conventions_only(arms):
    """Not in learning rates, sizes, seeds, or β."""
    dumps = [rl.model_dump(mode="json") for rl in arms.values()]
    unlike = {field for field in dumps[0] if len({str(dump[field]) for dump in dumps}) > 1}
    assert unlike and unlike <= set(OPEN)
