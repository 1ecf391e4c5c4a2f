"""Simulated lives at the gate, in counts: exact for items that are answered right or wrong independently.

A model is known by how many vault items it answers right, a pair of models by the 2x2 table of who is right where. A
candidate flips answers at random, so all a test sees of it are counts drawn from binomials, and the order of the items
is a random permutation of the differences. The gate's arithmetic is not simulated: levels, bets and decisions come
from `safety.gate` and `safety.eprocess`. Nothing here reads a model or a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from safety.eprocess import BETS
from safety.gate import FUTILITY_LEVEL, Decision, Rules, decide

Counts = npt.NDArray[np.int64]
Signs = npt.NDArray[np.int8]

DISCORDANCE = 0.1        # share of items on which a candidate differs from the model it was made from
LEAST_GAIN = 0.03        # the gate's default: gains as small are given up


@dataclass(slots=True)
class Pair:
    """Stable and working on one vault: how many items [stable wrong or right][working wrong or right]."""

    table: Counts

    @classmethod
    def of_one(cls, right: int, items: int) -> Pair:
        return cls(np.array([[items - right, 0], [0, right]], dtype=np.int64))

    @property
    def wins(self) -> int:
        return int(self.table[0, 1])

    @property
    def losses(self) -> int:
        return int(self.table[1, 0])

    @property
    def items(self) -> int:
        return int(self.table.sum())

    def moved(self, up: float, down: float, rng: np.random.Generator) -> Pair:
        """Working after each of its wrong answers came right with chance `up` and each right one wrong with `down`."""
        rises, falls = rng.binomial(self.table[:, 0], up), rng.binomial(self.table[:, 1], down)
        return Pair(self.table + np.stack([falls - rises, rises - falls], axis=1))

    def released(self) -> Pair:
        """Working is stable now."""
        return Pair.of_one(int(self.table[:, 1].sum()), self.items)


def flips(accuracy: float, gain: float, discordance: float = DISCORDANCE) -> tuple[float, float]:
    """Chances that a wrong answer comes right and a right one wrong, for a gain at a discordance over all items."""
    up = min(1.0, (discordance + gain) / 2 / max(1e-9, 1.0 - accuracy))
    down = min(1.0, (discordance - gain) / 2 / max(1e-9, accuracy))
    return max(0.0, up), max(0.0, down)


def differences(pair: Pair, rng: np.random.Generator) -> Signs:
    """working - stable over all vault items in a random order."""
    signs = np.zeros(pair.items, dtype=np.int8)
    signs[: pair.wins] = 1
    signs[pair.wins : pair.wins + pair.losses] = -1
    return rng.permutation(signs)


@lru_cache(maxsize=8)
def _logs(most: int) -> npt.NDArray[np.float64]:
    """ln E after w wins and l losses, [w, l]; ties leave E as it is where d0 is 0."""
    wins = np.arange(most + 1)[:, None, None] * np.log1p(np.array(BETS))
    losses = np.arange(most + 1)[None, :, None] * np.log1p(-np.array(BETS))
    total = wins + losses
    top = total.max(axis=2)
    found: npt.NDArray[np.float64] = top + np.log(np.exp(total - top[..., None]).mean(axis=2))
    return found


def crosses(discordant: Signs, threshold: float) -> bool:
    """Whether the e-process over differences of 1 and -1 ever reaches the threshold: ties leave it as it is."""
    if not len(discordant):
        return False
    wins = np.cumsum(discordant > 0)
    losses = np.arange(1, len(discordant) + 1) - wins
    most = 64 * (int(max(wins[-1], losses[-1])) // 64 + 1)
    return bool((_logs(most)[wins, losses] >= math.log(threshold) - 1e-9).any())


def releases(pair: Pair, k: int, alpha: float, rng: np.random.Generator) -> bool:
    """Whether the k-th nomination of a life is released, the items in a random order.

    Where the evidence never reaches the threshold nothing is; else the gate itself decides, futility and all.
    """
    rules = Rules(k, alpha, 0.0, LEAST_GAIN, {})
    discordant = rng.permutation(np.repeat(np.array([1, -1], dtype=np.int8), [pair.wins, pair.losses]))
    if not crosses(discordant, rules.threshold):
        return False
    signs = np.zeros(pair.items, dtype=np.int8)
    signs[np.sort(rng.choice(pair.items, len(discordant), replace=False))] = discordant
    return decide(rules, [signs.astype(float).tolist()], {}).decision is Decision.RELEASE


def refuted_after(signs: Signs) -> int:
    """After how many items a gain worth having was refuted, or all of them: how long the gate takes to say no."""
    fed = (LEAST_GAIN - signs.astype(np.float64)) / (1.0 + LEAST_GAIN)
    logs = np.cumsum(np.log1p(np.array(BETS)[:, None] * fed), axis=1)
    reached = np.flatnonzero(np.exp(logs).mean(axis=0) >= 1.0 / FUTILITY_LEVEL)
    return int(reached[0]) + 1 if len(reached) else len(signs)


def sign_test_passes(wins: int, losses: int, least: float = 0.05) -> bool:
    """One-sided exact McNemar: more wins than a fair coin would give."""
    return wins >= _fewest_wins(wins + losses, least)


@lru_cache(maxsize=100_000)
def _fewest_wins(n: int, least: float) -> int:
    tail, chance = 0.0, 0.5**n if n < 1000 else math.exp(-n * math.log(2))
    for wins in range(n, -1, -1):
        tail += chance
        if tail > least:
            return wins + 1
        chance *= wins / (n - wins + 1)
    return 0


def interval(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, count / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)
