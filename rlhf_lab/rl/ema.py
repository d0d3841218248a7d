"""Exponential moving average of the weights: θ_ema ← d·θ_ema + (1 − d)·θ (Ouyang et al. 2022, C.4: d = 0.992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages the trainable parameters of a module; without a decay it is the module itself."""

    def __init__(self, module: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.live = {name: p for name, p in module.named_parameters() if p.requires_grad} if decay is not None else {}
        self.average = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self.live.items():
            self.average[name].lerp_(parameter, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module holds the averaged weights; its own come back afterwards."""
        own: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.live.items()}
        self._load(self.average)
        try:
            yield
        finally:
            self._load(own)

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.live.items():
            parameter.copy_(weights[name])
