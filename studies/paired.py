"""Differences between models that answered the same items: per seed over groups of items, and over seeds.

Items of the demo share operands: the thirty-two that ask about one pair of them are right or wrong together more often
than not. So an interval within a seed goes by the unordered pair, not by the item. Pure; numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from safety.yardstick.items import Item

Interval = tuple[float, float]
"""A mean, and half the width of its 95 % interval."""

NORMAL = 1.959964
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t at 1, 2, ... degrees of freedom."""


def pairs_of(items: Sequence[Item]) -> list[tuple[int, ...]]:
    """The unordered operands of each item."""
    return [tuple(sorted(int(word) for word in item.prompt.split() if word.isdigit())) for item in items]


def difference(new: str, old: str, groups: Sequence[tuple[int, ...]]) -> Interval:
    """Mean of new - old over items, each "1" or "0", its interval by groups of items (the sandwich over clusters)."""
    if not len(new) == len(old) == len(groups):
        raise ValueError(f"{len(new)}, {len(old)} and {len(groups)} items cannot be paired")
    apart = np.array([int(a) - int(b) for a, b in zip(new, old, strict=True)], dtype=np.float64)
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    sums = np.zeros(len(number))
    np.add.at(sums, [number[group] for group in groups], apart - apart.mean())
    spread = math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / len(apart)
    return float(apart.mean()), NORMAL * spread


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's interval; an infinite one for a single seed."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.inf
    quantile = STUDENT[n - 2] if n - 2 < len(STUDENT) else NORMAL
    return float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(n)


def share(right: str) -> float:
    return right.count("1") / len(right)


def together(right: dict[str, str]) -> float:
    """The mean over tasks, each with the same weight."""
    return float(np.mean([share(found) for found in right.values()]))
