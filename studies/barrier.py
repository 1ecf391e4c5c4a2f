"""An adversarial proposer against the gate, with the barrier closed and with parts of it open.

The proposer wants releases and does not care for true accuracy: none of its candidates is ever better than the first
model. It breeds: of what it has proposed it keeps whatever looked best through the channels it can see, and makes the
next candidate from that. What it can see is the whole difference between the rows of CHANNELS. Levels, e-process,
futility and decision are the product's own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from studies.lives import Pair, differences, flips, refuted_after, releases

ACCURACY = 0.5
SEARCH_ITEMS = 500
STEP = 0.02              # share of items on which a candidate differs from its parent: small steps climb best

Channel = Callable[[Pair, np.random.Generator], float]
"""What the proposer learns of one nomination, as a number of which more seems better."""


def search_score(pair: Pair, rng: np.random.Generator) -> float:
    """Fresh search items: what a loop may know. It holds nothing of the vault, and here nothing at all."""
    return float(rng.binomial(SEARCH_ITEMS, ACCURACY))


def nothing_new(pair: Pair, rng: np.random.Generator) -> float:
    """That it was nominated, as everything is that moved: it keeps the latest."""
    return float("inf")


def how_long_it_took(pair: Pair, rng: np.random.Generator) -> float:
    """The time of the gate's answer, to the item: a clock in a process that waits for the gate."""
    return float(refuted_after(differences(pair, rng)))


def verdict(pair: Pair, rng: np.random.Generator) -> float:
    """Whether the gate gave up on it or came to the end of the vault."""
    return float(refuted_after(differences(pair, rng)) == pair.items)


def vault_score(pair: Pair, rng: np.random.Generator) -> float:
    """The accuracy on the vault that the evidence of the release row shows to people."""
    return float(pair.wins - pair.losses)


CLOSED: dict[str, Channel] = {"search scores": search_score, "which were nominated": nothing_new}
OPEN: dict[str, Channel] = {
    "the gate's time": how_long_it_took, "verdicts": verdict, "scores on the vault": vault_score,
}


def false_release(channel: Channel, nominations: int, vault: int, alpha: float, rng: np.random.Generator) -> bool:
    """Whether one life sees a release: the best so far is kept as the parent, and every candidate is nominated."""
    best = Pair.of_one(int(rng.binomial(vault, ACCURACY)), vault)
    looks = -np.inf
    for k in range(1, nominations + 1):
        candidate = best.moved(*flips(ACCURACY, 0.0, STEP), rng)
        if releases(candidate, k, alpha, rng):
            return True
        seen = channel(candidate, rng)
        if seen >= looks:
            best, looks = candidate, seen
    return False


def false_releases(channel: Channel, lives: int, nominations: int, vault: int, alpha: float, seed: int) -> int:
    """In how many lives something was released although nothing was ever better."""
    return sum(
        false_release(channel, nominations, vault, alpha, np.random.default_rng([seed, life])) for life in range(lives)
    )
