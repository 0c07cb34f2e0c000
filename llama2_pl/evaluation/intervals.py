"""Means with 95 % confidence intervals, as plain dictionaries that go into result files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Interval(TypedDict):
    """A mean, the ends of its 95 % interval, and how many observations it rests on."""

    mean: float
    low: float
    high: float
    count: int


def decimals(found: Mapping[str, Any]) -> str:
    """An interval as text: 0.657 [0.629, 0.682]."""
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def percents(found: Mapping[str, Any]) -> str:
    """An interval of a share as text: 58.9% [56.5%, 61.5%]."""
    return f"{found['mean']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def wilson(successes: float, count: int) -> Interval:
    """Wilson's score interval of a proportion; sound at 0 %, at 100 % and for few observations.

    Our choice: the paper gives no intervals. No observations: the whole of [0, 1] around one half.
    """
    if count == 0:
        return Interval(mean=0.5, low=0.0, high=1.0, count=0)
    share, z2 = successes / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return Interval(mean=share, low=max(centre - half, 0.0), high=min(centre + half, 1.0), count=count)


def bootstrap(values: Sequence[float] | Tensor, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean of values (n,); one observation per prompt, so prompts are what is resampled."""
    observed = torch.as_tensor(values, dtype=torch.float64)
    count = observed.numel()
    if count == 0:
        raise ValueError("no values to average; give at least one observation")
    generator = torch.Generator().manual_seed(seed)
    # In parts, so that 2000 resamples of a large set do not need gigabytes of indices.
    part = max(1, 4_000_000 // count)
    means = []
    for start in range(0, resamples, part):
        shape = (min(part, resamples - start), count)
        means.append(observed[torch.randint(count, shape, generator=generator)].mean(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(mean=observed.mean().item(), low=low, high=high, count=count)
