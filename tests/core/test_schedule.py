"""Learning-rate factors at steps where they can be said by heart."""

import math

import pytest
import torch

from rlhf_lab.rl.schedule import rate, set_rates


@pytest.mark.parametrize(
    "schedule, step, floor, expected",
    [
        ("constant", 0, 0.0, 1.0),
        ("constant", 9, 0.0, 1.0),
        ("constant", 9, 0.1, 1.0),
        ("linear", 0, 0.0, 1.0),
        ("linear", 5, 0.0, 0.5),
        ("linear", 10, 0.0, 0.0),
        ("linear", 5, 0.2, 0.6),
        ("linear", 10, 0.2, 0.2),
        ("cosine", 0, 0.1, 1.0),
        ("cosine", 5, 0.1, 0.55),
        ("cosine", 10, 0.1, 0.1),
        ("cosine", 10 / 3, 0.0, 0.75),
        ("cosine", 20 / 3, 0.0, 0.25),  # cos 60° = 1/2
    ],
)
def test_without_warm_up(schedule, step, floor, expected):
    assert rate(step, 10, schedule, floor=floor) == pytest.approx(expected, abs=1e-12)


def test_warm_up_from_a_tenth():
    """Ouyang et al. 2022, C.4: 10 iterations from 0.1 of the rate, then constant."""
    rates = [rate(step, 500, "constant", warmup=10, warmup_from=0.1) for step in range(12)]
    assert rates == pytest.approx([0.1, 0.19, 0.28, 0.37, 0.46, 0.55, 0.64, 0.73, 0.82, 0.91, 1.0, 1.0])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_begins_where_warm_up_ends(schedule):
    assert rate(4, 10, schedule, warmup=4) == 1.0
    assert rate(7, 10, schedule, warmup=4) == pytest.approx(0.5)
    assert rate(9, 10, schedule, warmup=4) > 0


def test_it_never_divides_by_zero():
    assert rate(0, 1, "linear") == 1.0
    assert math.isfinite(rate(3, 3, "cosine", warmup=3))


def test_each_group_keeps_its_own_rate():
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "initial_lr": lr} for lr in (0.1, 0.5)]
    optimizer = torch.optim.SGD(groups)
    set_rates(optimizer, 0.5)
    set_rates(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.1])
