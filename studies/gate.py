"""The gate beside what others do: how often each releases a model that is no better, and how much it gains.

Two worlds. In the null world no candidate is ever better: every release is false. In the world of rare gains one
candidate in thirty is really better and most are really worse. Everybody sees the same kind of candidates: each differs
from the model it was made from on a tenth of the items. `python -m studies gate` writes docs/studies/gate.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from studies.lives import DISCORDANCE, Pair, flips, interval, releases, sign_test_passes

ALPHA = 0.05
VAULT = 2_000
FRESH = 500              # search items drawn anew for each comparison of the two channels
START = 0.3              # accuracy of the first model where there is something to gain
GOOD = 0.03              # share of candidates that are better
GAIN, LOSS = 0.015, 0.015  # mean of their gain, and of what the others lose
CEILING = 0.95


@dataclass(slots=True)
class Life:
    """What happened to one daemon: the true accuracy of the model in force, and its releases."""

    accuracy: float
    start: float
    releases: int = 0
    false: int = 0
    nominations: int = 0
    loose: float = field(default=0.0)        # true gain of working, where there are two channels

    @property
    def gain(self) -> float:
        return self.accuracy - self.start

    def release(self, accuracy: float) -> None:
        self.releases += 1
        self.false += accuracy <= self.accuracy + 1e-12
        self.accuracy = accuracy


World = Callable[[float, np.random.Generator], float]
"""The true gain of the next candidate over the model it is made from, which has that accuracy."""


def null(accuracy: float, rng: np.random.Generator) -> float:
    return 0.0


def rare_gains(accuracy: float, rng: np.random.Generator) -> float:
    if rng.random() < GOOD:
        return min(float(rng.exponential(GAIN)), 0.9 * DISCORDANCE, CEILING - accuracy)
    return -min(float(rng.exponential(LOSS)), 0.9 * DISCORDANCE, max(0.0, accuracy - 0.05))


def on_search_items(gain: float, rng: np.random.Generator, items: int = FRESH) -> bool:
    """The loose test of the working channel: fresh items, one-sided p < .05."""
    discordant = rng.binomial(items, DISCORDANCE)
    wins = rng.binomial(discordant, 0.5 + gain / (2 * DISCORDANCE))
    return sign_test_passes(int(wins), int(discordant - wins))


def two_channels(world: World, candidates: int, nominations: int, start: float, rng: np.random.Generator) -> Life:
    """kaizend: working climbs on fresh search items, and whenever it has moved it is nominated."""
    life, working = Life(start, start), start
    pair = Pair.of_one(int(rng.binomial(VAULT, start)), VAULT)
    for _ in range(candidates):
        gain = world(working, rng)
        if not on_search_items(gain, rng):
            continue
        pair = pair.moved(*flips(working, gain), rng)
        working += gain
        life.nominations += 1
        if releases(pair, life.nominations, ALPHA, rng):
            life.release(working)
            pair = pair.released()
        if life.nominations == nominations:
            break
    life.loose = working - start
    return life


Rule = Callable[[Pair, int, float, np.random.Generator], bool]
"""Whether a candidate is released: it and the champion on the vault, its number, the best score reported so far."""


def higher_score(pair: Pair, k: int, best: float, rng: np.random.Generator) -> bool:
    return pair.wins > pair.losses


def mcnemar(pair: Pair, k: int, best: float, rng: np.random.Generator) -> bool:
    return sign_test_passes(pair.wins, pair.losses)


def ladder(pair: Pair, k: int, best: float, rng: np.random.Generator) -> bool:
    """The parameter-free Ladder (Blum and Hardt 2015, arXiv 1502.04585, algorithm 2): a standard error above the best.

    Its answer is the best score rounded to 1/n, which scores of whole items are already.
    """
    n = pair.items
    mean = (pair.wins - pair.losses) / n
    spread = math.sqrt(max(0.0, (pair.wins + pair.losses) / n - mean**2))
    return float(pair.table[:, 1].sum()) / n > best + spread / math.sqrt(n)


def every_step(pair: Pair, k: int, best: float, rng: np.random.Generator) -> bool:
    """The gate's test on every candidate by itself, without a working channel that gathers small gains."""
    return releases(pair, k, ALPHA, rng)


def by_rule(rule: Rule, world: World, candidates: int, start: float, rng: np.random.Generator) -> Life:
    """One channel: every candidate is made from the champion and asked of the same vault."""
    life = Life(start, start)
    right = int(rng.binomial(VAULT, start))
    best = right / VAULT
    for k in range(1, candidates + 1):
        gain = world(life.accuracy, rng)
        pair = Pair.of_one(right, VAULT).moved(*flips(life.accuracy, gain), rng)
        life.nominations += 1
        if rule(pair, k, best, rng):
            life.release(life.accuracy + gain)
            right = int(pair.table[:, 1].sum())
            best = max(best, right / VAULT)
    return life


RULES: dict[str, Rule] = {
    "score > champion": higher_score, "McNemar at .05 each time": mcnemar, "the Ladder": ladder,
    "an e-process on every step": every_step,
}
TWO_CHANNELS = "the two channels of kaizend"


@dataclass(frozen=True, slots=True)
class Figures:
    """What many lives under one rule came to."""

    name: str
    lives: Sequence[Life]

    @property
    def false_lives(self) -> tuple[int, float, float]:
        count = sum(life.false > 0 for life in self.lives)
        return (count, *interval(count, len(self.lives)))

    def mean(self, what: str) -> tuple[float, float]:
        """A mean over lives with half its 95 % interval."""
        values = np.array([getattr(life, what) for life in self.lives], dtype=np.float64)
        return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))


def null_world(lives: int, nominations: int, seed: int) -> list[Figures]:
    """No candidate is better. Two channels nominate only what moved, so they get candidates until they have nominated
    as often as the others are asked."""
    return _many(lives, seed, null, 0.5, 100 * nominations, nominations)


def world_of_gains(lives: int, candidates: int, seed: int) -> list[Figures]:
    return _many(lives, seed, rare_gains, START, candidates, candidates)


def _many(lives: int, seed: int, world: World, start: float, candidates: int, asked: int) -> list[Figures]:
    """So many lives under each rule; each life has a generator of its own, so a longer study begins with a shorter."""
    def generators(number: int) -> list[np.random.Generator]:
        return [np.random.default_rng([seed, number, life]) for life in range(lives)]

    ours = [two_channels(world, candidates, asked, start, rng) for rng in generators(0)]
    return [Figures(TWO_CHANNELS, ours)] + [
        Figures(name, [by_rule(rule, world, asked, start, rng) for rng in generators(number)])
        for number, (name, rule) in enumerate(RULES.items(), 1)
    ]


def share_of_loose_gain(figures: Figures) -> tuple[float, float]:
    """Stable's true gain as a share of working's, all lives together, with half a 95 % interval (delta method)."""
    stable = np.array([life.gain for life in figures.lives])
    loose = np.array([life.loose for life in figures.lives])
    ratio = float(stable.sum() / loose.sum())
    spread = (stable - ratio * loose).std(ddof=1) / loose.mean() / math.sqrt(len(stable))
    return ratio, float(1.96 * spread)
