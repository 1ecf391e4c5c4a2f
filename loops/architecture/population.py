"""M2N2 (arXiv 2508.16204): an archive of models on disk that are mated by what each can do that the other cannot.

Steady state: each child is inserted as it comes in, when it is better than the worst member. Every member keeps its
0/1 scores on one fixed probe of search items. Pure values only; the children are built by the job "build".
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loops.architecture.genome import DIGITS
from loops.architecture.search import NONE_OUT, Told, free_place, noted
from state.records import JsonObject, seed_from

EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class M2n2:
    """Ask/tell over an archive that starts with `founders`, which are scored first, each as a candidate by itself."""

    founders: tuple[str, ...]
    capacity: int
    seed: int

    def start(self) -> JsonObject:
        return {"members": [], "waiting": list(self.founders), **NONE_OUT}

    def ask(self, state: JsonObject, in_flight: Sequence[JsonObject] = ()) -> JsonObject:
        number, _ = free_place(state, 1, in_flight)
        mark = {"generation": number, "point": 0, "items_seed": seed_from("items", self.seed)}
        out = {parent for change in in_flight if len(change["parents"]) == 1 for parent in change["parents"]}
        waiting = [model for model in state["waiting"] if model not in out]
        if waiting:
            return {"kind": "crossover", "parents": waiting[:1], "split": 1.0, "mix": 0.0, "search": mark}
        draw = random.Random(seed_from("mating", self.seed, number))
        split, mix = round(draw.random(), DIGITS), round(draw.random(), DIGITS)
        return {"kind": "crossover", "parents": self._pair(state, draw), "split": split, "mix": mix, "search": mark}

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        after, complete = noted(state, 1, change, [])
        if complete is None:
            return after
        if len(change["parents"]) == 1:
            after["waiting"] = [model for model in state["waiting"] if model not in change["parents"]]
        if told.member is not None and told.scores:
            after["members"] = self._joined(state["members"], {"digest": told.member, "scores": told.scores})
        return after

    def keep(self, state: JsonObject, scores: str) -> bool:
        """Whether a child with these scores would join the archive."""
        joined = self._joined(state["members"], {"digest": "", "scores": scores})
        return "1" in scores and any(not member["digest"] for member in joined)

    def welcome(self, state: JsonObject, newcomer: str) -> JsonObject:
        """The state with one more model waiting to be scored: one that was trained, not mated."""
        return {**state, "waiting": [*state["waiting"], newcomer]}

    def _joined(self, members: Sequence[JsonObject], newcomer: JsonObject) -> list[JsonObject]:
        """The archive with the newcomer, less its worst member where that is one too many."""
        known = [member for member in members if len(member["scores"]) == len(newcomer["scores"])]
        if any(member["digest"] == newcomer["digest"] or member["scores"] == newcomer["scores"] for member in known):
            return known        # no room for twins: they would only share their niche
        archive = [*known, newcomer]
        if len(archive) <= self.capacity:
            return archive
        worth = fitness([member["scores"] for member in archive])
        worst = min(range(len(archive)), key=lambda place: (worth[place], place))
        return archive[:worst] + archive[worst + 1 :]

    def _pair(self, state: JsonObject, draw: random.Random) -> list[str]:
        members = state["members"]
        if len(members) < 2:
            pool = sorted({*self.founders, *(member["digest"] for member in members)})
            return draw.sample(pool, 2) if len(pool) > 1 else pool
        scores = [member["scores"] for member in members]
        first = _drawn(fitness(scores), draw)
        second = _drawn(complement(scores, first), draw, banned=first)
        return [members[first]["digest"], members[second]["digest"]]


def fitness(scores: Sequence[str], exponent: float = 1.0) -> list[float]:
    """f(i) = sum_j s_ij / (z_j^a + eps), z_j = sum_k s_kj: an item that few solve is worth more."""
    values = _niches(scores, exponent)
    return [sum(value for value, mark in zip(values, row, strict=True) if mark == "1") for row in scores]


def complement(scores: Sequence[str], first: int, exponent: float = 1.0) -> list[float]:
    """What each member adds to `first`: sum_j max(s_Bj - s_Aj, 0) / (z_j^a + eps)."""
    values, mine = _niches(scores, exponent), scores[first]
    return [
        sum(value for value, his, own in zip(values, row, mine, strict=True) if his == "1" and own == "0")
        for row in scores
    ]


def _niches(scores: Sequence[str], exponent: float) -> list[float]:
    solvers = [sum(mark == "1" for mark in column) for column in zip(*scores, strict=True)]
    return [1.0 / (solved**exponent + EPSILON) for solved in solvers]


def _drawn(weights: Sequence[float], draw: random.Random, banned: Any = None) -> int:
    """A place drawn by weight, evenly where all weights are 0."""
    places = [place for place in range(len(weights)) if place != banned]
    chosen = [weights[place] for place in places]
    return draw.choices(places, chosen if sum(chosen) > 0 else None)[0]
