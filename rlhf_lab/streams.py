"""Named random streams. Every random number of a run comes from one of them; nothing draws from a global generator.

The rule, which anybody can reproduce without this package: the generator of stream `name` with counters c1, c2, … in a
run of seed s is numpy's PCG64 seeded by SeedSequence([s, crc32(name), c1, c2, …]). So arms that share a seed share
their prompts and their sampling noise, whatever else differs; and any step can be redone without replaying the earlier ones.
A name keeps its number of counters: numpy fills the list up with zeros, so (name) and (name, 0) are one stream.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """The generator of a named stream, on any device the same numbers."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *counters]))


def torch_stream(seed: int, name: str, *counters: int) -> torch.Generator:
    """The same for torch (CPU): initial weights and dropout."""
    return torch.Generator().manual_seed(int(stream(seed, name, *counters).integers(2**63)))


def shuffled_batches(n_items: int, batch_size: int, position: int, seed: int, name: str) -> np.ndarray:
    """Items `position … position + batch_size` of an endless sequence of shuffled passes over range(n_items).

    Pass e is shuffled by stream (name, e): no state to keep, and no item twice within a pass.
    """
    places = np.arange(position, position + batch_size)
    orders = {e: stream(seed, name, int(e)).permutation(n_items) for e in np.unique(places // n_items)}
    return np.array([orders[place // n_items][place % n_items] for place in places], dtype=np.int64)
