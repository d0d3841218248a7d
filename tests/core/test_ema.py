"""The moving average against its closed form."""

import pytest
import torch

from rlhf_lab.rl.ema import WeightAverage


def linear(value):
    module = torch.nn.Linear(1, 1, bias=False).double()
    module.weight.data.fill_(value)
    return module


def test_closed_form():
    """θ_ema after k steps is d^k θ_0 + (1 − d) Σ_i d^(k−i) θ_i."""
    module, decay, path = linear(1.0), 0.992, [1.0, 3.0, -2.0, 0.5, 4.0]
    average = WeightAverage(module, decay)
    for value in path[1:]:
        module.weight.data.fill_(value)
        average.update()
    k = len(path) - 1
    expected = decay**k * path[0] + sum((1 - decay) * decay ** (k - i) * path[i] for i in range(1, k + 1))
    with average.applied():
        assert module.weight.item() == pytest.approx(expected, abs=1e-12)
    assert module.weight.item() == 4.0


def test_own_weights_come_back_after_an_error():
    module = linear(1.0)
    average = WeightAverage(module, 0.5)
    module.weight.data.fill_(3.0)
    with pytest.raises(KeyError), average.applied():
        assert module.weight.item() == 1.0
        raise KeyError
    assert module.weight.item() == 3.0


def test_frozen_weights_are_not_averaged():
    module = torch.nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    assert set(WeightAverage(module, 0.5).average) == {"weight"}


def test_without_a_decay_it_is_the_module():
    module = linear(1.0)
    average = WeightAverage(module, None)
    module.weight.data.fill_(2.0)
    average.update()
    with average.applied():
        assert module.weight.item() == 2.0
