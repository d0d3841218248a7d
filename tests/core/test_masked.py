"""Masked statistics against numpy on the bare numbers."""

import math

import numpy as np
import pytest
import torch

from rlhf_lab.rl.masked import masked_mean, whiten

RNG = np.random.default_rng(0)
ROWS = [RNG.normal(2, 3, n) for n in (5, 1, 3)]
BARE = np.concatenate(ROWS)


def padded(rows, filler, width=7):
    x_BT = torch.full((len(rows), width), filler, dtype=torch.float64)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for b, row in enumerate(rows):
        x_BT[b, : len(row)], mask_BT[b, : len(row)] = torch.tensor(row), True
    return x_BT, mask_BT


@pytest.mark.parametrize("filler", [0.0, 1e9, math.nan, math.inf])
def test_mean_is_that_of_the_bare_numbers(filler):
    assert masked_mean(*padded(ROWS, filler)).item() == pytest.approx(BARE.mean(), abs=1e-12)


def test_mean_of_nothing_is_nan():
    assert masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)).isnan()


@pytest.mark.parametrize("filler", [0.0, 1e9, math.nan, -math.inf])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_numpys_on_the_bare_numbers(filler, ddof, shift_mean):
    x_BT, mask_BT = padded(ROWS, filler)
    white_BT = whiten(x_BT, mask_BT, shift_mean=shift_mean, ddof=ddof, eps=0.0)
    expected = (BARE - BARE.mean()) / BARE.std(ddof=ddof) + (0 if shift_mean else BARE.mean())
    np.testing.assert_allclose(white_BT[mask_BT].numpy(), expected, atol=1e-12)
    assert (white_BT[~mask_BT] == 0).all()


def test_the_two_variances_differ_by_the_count():
    """Three numbers: √(3/2) between ddof 0 and 1, far more than any tolerance here."""
    x, mask = torch.tensor([[1.0, 2.0, 6.0]]), torch.ones(1, 3, dtype=torch.bool)
    # mean 3, squares 4 + 1 + 9 = 14: deviations 14/3 and 14/2
    assert whiten(x, mask, ddof=0)[0, 2].item() == pytest.approx(3 / math.sqrt(14 / 3), rel=1e-6)
    assert whiten(x, mask, ddof=1)[0, 2].item() == pytest.approx(3 / math.sqrt(7), rel=1e-6)


def test_epsilon_stands_under_the_root():
    x, mask = torch.tensor([[0.0, 2.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    assert whiten(x, mask, eps=3.0)[0, 1].item() == pytest.approx(0.5, abs=1e-12)  # 1 / √(1 + 3)


def test_constant_rewards_whiten_to_zero_not_to_nan():
    x, mask = torch.full((2, 3), 0.7), torch.ones(2, 3, dtype=torch.bool)
    assert whiten(x, mask).abs().max() < 1e-3
    assert whiten(x, mask, shift_mean=False).allclose(x, atol=1e-3)


def test_masked_nan_sends_no_gradient():
    x_BT, mask_BT = padded(ROWS, math.nan)
    x_BT.requires_grad_()
    (whiten(x_BT, mask_BT) ** 3).sum().backward()
    assert x_BT.grad.isfinite().all() and (x_BT.grad[~mask_BT] == 0).all()
