"""How sure a measured share or mean is."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

# 97.5 % point of the standard normal: intervals of 95 %.
Z = 1.959964
RESAMPLES = 10_000


class Share(TypedDict):
    """A share of outcomes that are right, 0 to 1, and its 95 % interval."""

    right: int  # outcomes
    of: int  # outcomes in all
    share: float
    low: float
    high: float


class Mean(TypedDict):
    """A mean, its 95 % interval, and the 5th percentile of the values."""

    mean: float
    low: float
    high: float
    p5: float


def share(outcomes: Sequence[bool]) -> Share:
    """Wilson's score interval (E. B. Wilson, 1927): good at shares near 1, where the plain one fails.

    Raises:
        ValueError: no outcomes.
    """
    right = sum(outcomes)
    count = len(outcomes)
    if count == 0:
        raise ValueError("a share of nothing; pass at least one outcome")
    middle = (right + Z**2 / 2) / (count + Z**2)
    half = Z / (count + Z**2) * math.sqrt(right * (count - right) / count + Z**2 / 4)
    low = _rounded(max(0.0, middle - half))
    high = _rounded(min(1.0, middle + half))
    return Share(right=right, of=count, share=_rounded(right / count), low=low, high=high)


def mean(values: Sequence[float], seed: int = 0) -> Mean:
    """Bootstrap percentile interval: the values drawn again with replacement, `RESAMPLES` times.

    For two measures of the same clips pass the differences.

    Raises:
        ValueError: no values.
    """
    if len(values) == 0:
        raise ValueError("a mean of nothing; pass at least one value")
    data = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(data), (RESAMPLES, len(data)))
    low, high = np.percentile(data[drawn].mean(axis=1), [2.5, 97.5])
    p5 = np.percentile(data, 5)
    return Mean(mean=_rounded(data.mean()), low=_rounded(low), high=_rounded(high), p5=_rounded(p5))


def _rounded(value: float) -> float:
    return round(float(value), 4)
