"""Random streams by their documented rule."""

import binascii

import numpy as np
import pytest
import torch

from rlhf_lab.streams import shuffled_batches, stream, torch_stream


def by_the_rule(seed, name, *counters):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, binascii.crc32(name.encode("utf-8")), *counters])))


@pytest.mark.parametrize("key", [(0, "rollout", 0), (3, "rollout", 17), (0, "prompts"), (5, "minibatches", 2, 1)])
def test_the_rule_can_be_followed_without_the_package(key):
    assert np.array_equal(stream(*key).random(5), by_the_rule(*key).random(5))


def test_a_known_number():
    """Fixes the rule across versions: numpy promises PCG64 and SeedSequence for good."""
    assert stream(0, "rollout", 0).integers(2**63) == 4_940_006_402_036_150_366


def test_seed_name_and_counters_all_matter():
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (0, "a", 1, 1)]
    assert len({stream(*key).integers(2**63) for key in keys}) == len(keys)


def test_a_name_must_keep_its_number_of_counters():
    """SeedSequence fills up with zeros: a counter more that happens to be 0 is no other stream."""
    assert stream(0, "a").integers(2**63) == stream(0, "a", 0).integers(2**63)


def test_drawing_disturbs_nobody():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.rand(1).item(), np.random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    torch.rand(4, generator=torch_stream(0, "lora"))
    stream(0, "rollout").random(4)
    assert (torch.rand(1).item(), np.random.random()) == before


def test_torch_is_seeded_by_the_stream():
    expected = torch.rand(3, generator=torch.Generator().manual_seed(int(by_the_rule(4, "head").integers(2**63))))
    assert torch.equal(torch.rand(3, generator=torch_stream(4, "head")), expected)


def test_batches_walk_through_shuffled_passes():
    """Seven items in batches of three: every seven draws hold each item once, wherever a batch begins."""
    batches = [shuffled_batches(7, 3, 3 * i, 0, "prompts") for i in range(14)]
    walk = np.concatenate(batches).reshape(6, 7)
    assert all(sorted(one_pass) == list(range(7)) for one_pass in walk)
    assert len({tuple(one_pass) for one_pass in walk}) > 1
    assert np.array_equal(shuffled_batches(7, 42, 0, 0, "prompts"), walk.ravel())
    assert np.array_equal(walk[2], by_the_rule(0, "prompts", 2).permutation(7))


def test_a_batch_may_be_longer_than_a_pass():
    assert np.bincount(shuffled_batches(4, 12, 0, 0, "x")).tolist() == [3, 3, 3, 3]
