"""Simulated models as arrays of scores, and where an e-process over them crosses a threshold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from safety.eprocess import BETS

Array = npt.NDArray[np.float64]
ACCURACY = 0.5
CHURN = 0.1                   # share of items on which two unrelated models of the same quality differ


def answers(rng: np.random.Generator, first: Array, gain: float = 0.0) -> Array:
    """A model's scores [lives, items]: some of the first model's answers drawn again, better by `gain` on average."""
    again = rng.random(first.shape) < 2 * CHURN
    fresh = rng.random(first.shape) < ACCURACY + gain / (2 * CHURN)
    return np.where(again, fresh, first).astype(np.float64)


def first_crossing(differences: Array, threshold: float | Array, d0: float = 0.0) -> Array:
    """Per life: the item at which E reaches the threshold, or a number past the end."""
    bets = np.array(BETS) / (1 + d0)
    logs = np.zeros((len(differences), len(BETS)))
    found = np.full(len(differences), differences.shape[1] + 1)
    for item in range(differences.shape[1]):
        logs += np.log1p(bets * (differences[:, item, None] - d0))
        reached = np.exp(logs).mean(axis=1) >= threshold
        found = np.where(reached & (found > item), np.minimum(found, item), found)
    return found
