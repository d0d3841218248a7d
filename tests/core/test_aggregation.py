"""Weights of tokens in a loss, by hand."""

import pytest
import torch

from rlhf_lab.rl.aggregation import weights

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    "how, expected",
    [
        ("token_mean", [[1 / 4, 1 / 4, 1 / 4, 0], [1 / 4, 0, 0, 0]]),
        ("sequence_mean", [[1 / 6, 1 / 6, 1 / 6, 0], [1 / 2, 0, 0, 0]]),
        ("constant", [[1 / 16, 1 / 16, 1 / 16, 0], [1 / 16, 0, 0, 0]]),
    ],
)
def test_by_hand(how, expected):
    torch.testing.assert_close(weights(MASK, how, 8), torch.tensor(expected))


def test_what_they_sum_to():
    """The means to 1; the constant to mean length / longest length, here 2/8."""
    assert weights(MASK, "token_mean", 8).sum().item() == pytest.approx(1)
    assert weights(MASK, "sequence_mean", 8).sum().item() == pytest.approx(1)
    assert weights(MASK, "constant", 8).sum().item() == pytest.approx(2 / 8)


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "constant"])
def test_padding_changes_nothing(how):
    wider = torch.nn.functional.pad(MASK, (0, 5))
    assert torch.equal(weights(wider, how, 8)[:, :4], weights(MASK, how, 8))
    assert (weights(wider, how, 8)[:, 4:] == 0).all()


def test_a_response_without_tokens_weighs_nothing():
    empty = torch.tensor([[1, 1], [0, 0]], dtype=torch.bool)
    assert weights(empty, "sequence_mean", 2).tolist() == [[0.25, 0.25], [0.0, 0.0]]


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "constant"])
def test_a_minibatch_without_any_token_weighs_nothing(how):
    assert weights(torch.zeros(2, 3, dtype=torch.bool), how, 3).tolist() == [[0.0] * 3] * 2
