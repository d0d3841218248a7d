"""How a law says that it is broken: one sentence with what was expected and what was seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def require(holds: Any, seen: str) -> None:
    """Raises AssertionError with what was seen unless the condition holds."""
    if not holds:
        raise AssertionError(seen)


def same(seen: Any, expected: Any, what: str, tolerance: float = 0.0) -> None:
    """Raises AssertionError unless two results, nested or not, agree number by number; NaN agrees with NaN."""
    if isinstance(expected, torch.Tensor) and isinstance(seen, torch.Tensor):
        same_tensors(seen, expected, what, tolerance)
    elif isinstance(expected, Mapping) and isinstance(seen, Mapping):
        require(set(seen) == set(expected), f"{what} has {shown(list(seen))}, expected {shown(list(expected))}")
        for key in expected:
            same(seen[key], expected[key], f"{what}[{key!r}]", tolerance)
    elif isinstance(expected, list | tuple) and isinstance(seen, list | tuple):
        require(len(seen) == len(expected), f"{what} has {len(seen)} parts, expected {len(expected)}")
        for place, (one, other) in enumerate(zip(seen, expected, strict=True)):
            same(one, other, f"{what}[{place}]", tolerance)
    elif isinstance(expected, float) and isinstance(seen, float):
        close = abs(seen - expected) <= tolerance or seen == expected or (math.isnan(seen) and math.isnan(expected))
        require(close, f"{what} is {seen!r}, expected {expected!r}")
    else:
        require(type(seen) is type(expected) and seen == expected, f"{what} is {shown(seen)}, expected {shown(expected)}")


def same_tensors(seen: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float) -> None:
    require(seen.shape == expected.shape, f"{what} has shape {tuple(seen.shape)}, expected {tuple(expected.shape)}")
    close = torch.isclose(seen.double(), expected.double(), atol=tolerance, rtol=0.0, equal_nan=True)
    if not close.all():
        place = tuple((~close).nonzero()[0].tolist())
        at = f" at {list(place)}" if place else ""
        raise AssertionError(f"{what}{at} is {seen[place].item():.6g}, expected {expected[place].item():.6g}")


def finite(value: Any, what: str) -> None:
    """Raises AssertionError unless it is a number, or a tensor of numbers, and none of them is NaN or infinite."""
    x = torch.as_tensor(value)
    require(x.isfinite().all(), f"{what} is {shown(value)}")


def shown(value: Any, limit: int = 160) -> str:
    """A value on one line, cut short."""
    text = str(value.tolist()) if isinstance(value, torch.Tensor) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
