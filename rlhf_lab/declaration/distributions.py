"""The distributions that a random axis draws from: each a quantile function, so that one uniform number gives one value.

Every path draws from a stream of its own, named by seed and path: its values do not depend on the other axes, and more
draws begin with the fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

from rlhf_lab.declaration.overrides import split_path
from rlhf_lab.declaration.yaml_lines import describe, suggest
from rlhf_lab.streams import stream

Quantile = Callable[[float], Any]


def uniform(low: float, high: float) -> Quantile:
    """F⁻¹(u) = low + u (high − low)."""
    return lambda u: rounded(low + u * (high - low), low, high)


def log_uniform(low: float, high: float) -> Quantile:
    """F⁻¹(u) = low (high / low)^u."""
    return lambda u: rounded(low * (high / low) ** u, low, high)


def integers(low: int, high: int) -> Quantile:
    """Each whole number from low to high, both included, with the same probability."""
    return lambda u: low + math.floor(u * (high - low + 1))


def normal(mean: float, deviation: float) -> Quantile:
    """F⁻¹(u) = mean + deviation Φ⁻¹(u)."""
    return lambda u: rounded(mean + deviation * NormalDist().inv_cdf(max(u, 2.0**-54)), -math.inf, math.inf)


def rounded(x: float, low: float, high: float) -> float:
    """Six significant digits, so that tables and labels can be read."""
    return min(max(float(f"{x:.6g}"), low), high)


RANGES: Mapping[str, Callable[..., Quantile]] = {
    "uniform": uniform,
    "log_uniform": log_uniform,
    "integers": integers,
    "normal": normal,
}
ARGUMENTS: Mapping[str, str] = {
    "uniform": "[low, high]",
    "log_uniform": "[low, high]",
    "integers": "[low, high]",
    "normal": "[mean, deviation]",
    "choice": "[…]",
}


def form(name: str) -> str:
    return f"{{{name}: {ARGUMENTS[name]}}}"


FORMS = ", ".join(map(form, ARGUMENTS))


def quantile(distribution: Any) -> Quantile:
    """The quantile function of what a spec says, such as {uniform: [0, 1]}. Raises ValueError in one sentence."""
    if not isinstance(distribution, Mapping) or len(distribution) != 1:
        raise ValueError(f"a distribution is one of {FORMS}, not {describe(distribution)}")
    ((name, arguments),) = distribution.items()
    if name not in ARGUMENTS:
        raise ValueError(f"unknown distribution {describe(name)}{suggest(name, ARGUMENTS)}; there are {FORMS}")
    if not isinstance(arguments, list) or not arguments:
        raise ValueError(f"{name} takes a list, as in {form(name)}, not {describe(arguments)}")
    if name == "choice":
        return lambda u: arguments[math.floor(u * len(arguments))]
    check_range(name, arguments)
    return RANGES[name](*arguments)


def check_range(name: str, arguments: list[Any]) -> None:
    wanted = int if name == "integers" else (int, float)
    fits = len(arguments) == 2 and all(isinstance(a, wanted) and not isinstance(a, bool) for a in arguments)
    if not fits or not all(map(math.isfinite, arguments)):
        raise ValueError(f"{name} takes two {'whole ' if wanted is int else ''}numbers, as in {form(name)}")
    low, high = arguments
    if name == "normal" and high <= 0:
        raise ValueError(f"the deviation of normal must be > 0, not {describe(high)}")
    if name == "log_uniform" and low <= 0:
        raise ValueError(f"log_uniform needs numbers > 0, not {describe(low)}")
    if name != "normal" and low > high:
        raise ValueError(f"the low end of {name}, {describe(low)}, is above its high end, {describe(high)}")


def draws(path: str, distribution: Any, n: int, seed: int) -> list[Any]:
    """n independent values for the axis at `path`. Raises ValueError for what is no distribution."""
    inverse = quantile(distribution)
    rng = stream(seed, f"axis {'.'.join(split_path(path))}")
    return [inverse(u) for u in rng.random(n).tolist()]
