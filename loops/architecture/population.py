"""M2N2 (arXiv 2508.16204): an archive of models on disk that are mated by what each can do that the other cannot.

Steady state: each child is inserted as it comes in, and one member too many is dropped: the one of least fitness, or
NSGA-II's choice where several objectives conflict. Every member keeps its 0/1 scores on one fixed probe of search
items. Pure values only; the children are built by the job "build".
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loops.architecture import selection
from loops.architecture.genome import DIGITS
from loops.architecture.novelty import Point, cosine, first_worth, is_novel, remembered
from loops.architecture.search import NONE_OUT, Told, free_place, noted
from loops.architecture.settings import Objective
from state.records import JsonObject, seed_from

EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class M2n2:
    """Ask/tell over an archive that starts with `founders`, which are scored first, each as a candidate by itself.

    With objectives beside quality, survivors and parents are chosen by front and crowding (`selection`).
    `separate_splits` gives attention a split point of its own. `most_alike` is the cosine of two members' changes from
    the base from which on they are not mated; below 1, a pair of which the second solves nothing that the first does
    not is left out as well. `novelty` is the distance within which a child counts as one that was tried.
    """

    founders: tuple[str, ...]
    capacity: int
    seed: int
    objectives: tuple[str, ...] = (Objective.QUALITY,)
    separate_splits: bool = False
    most_alike: float = 1.0
    novelty: float = 0.0

    def start(self) -> JsonObject:
        return {"members": [], "waiting": list(self.founders), **NONE_OUT}

    def ask(self, state: JsonObject, in_flight: Sequence[JsonObject] = ()) -> JsonObject:
        number, _ = free_place(state, 1, in_flight)
        mark = {"generation": number, "point": 0, "items_seed": seed_from("items", self.seed)}
        out = {parent for change in in_flight if len(change["parents"]) == 1 for parent in change["parents"]}
        waiting = [model for model in state["waiting"] if model not in out]
        if waiting:
            return {"kind": "crossover", "parents": waiting[:1], "split": 1.0, "mix": 0.0, "search": mark}
        tried = [*state.get("tried", []), *(_point(change) for change in in_flight)]
        child = first_worth(
            self._children(state, random.Random(seed_from("mating", self.seed, number))),
            lambda drawn: self._promising(state, drawn) and is_novel(_point(drawn), tried, self.novelty),
        )
        return {**child, "search": mark}

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        after, complete = noted(state, 1, change, [])
        if complete is None:
            return after
        if len(change["parents"]) == 1:
            after["waiting"] = [model for model in state["waiting"] if model not in change["parents"]]
        elif self.novelty:
            after["tried"] = remembered(state.get("tried", []), _point(change))
        if told.member is not None and told.scores:
            after["members"] = self._joined(state["members"], _member(told.member, told))
        return after

    def keep(self, state: JsonObject, told: Told) -> bool:
        """Whether a child with these scores would join the archive."""
        joined = self._joined(state["members"], _member("", told))
        return "1" in told.scores and any(not member["digest"] for member in joined)

    def welcome(self, state: JsonObject, newcomer: str) -> JsonObject:
        """The state with one more model waiting to be scored: one that was trained, not mated."""
        return {**state, "waiting": [*state["waiting"], newcomer]}

    def _joined(self, members: Sequence[JsonObject], newcomer: JsonObject) -> list[JsonObject]:
        """The archive with the newcomer, less its worst member where that is one too many."""
        known = [member for member in members if len(member["scores"]) == len(newcomer["scores"])]
        if any(self._twins(member, newcomer) for member in known):
            return known        # no room for twins: they would only share their niche
        archive = [*known, newcomer]
        if len(archive) <= self.capacity:
            return archive
        worst = self._worst(archive)
        return archive[:worst] + archive[worst + 1 :]

    def _twins(self, member: JsonObject, newcomer: JsonObject) -> bool:
        """Whether the newcomer adds nothing to a member: the same model, or the same scores and better in nothing."""
        if member["digest"] == newcomer["digest"]:
            return True
        return bool(member["scores"] == newcomer["scores"]) and all(
            mine >= his for mine, his in zip(self._measured(member), self._measured(newcomer), strict=True)
        )

    def _worst(self, archive: Sequence[JsonObject]) -> int:
        if self._several:
            return selection.worst(self._points(archive))
        worth = fitness([member["scores"] for member in archive])
        return min(range(len(archive)), key=lambda place: (worth[place], place))

    def _children(self, state: JsonObject, draw: random.Random) -> Iterator[JsonObject]:
        """Crossovers of members, one after another from one generator."""
        while True:
            split, mix = round(draw.random(), DIGITS), round(draw.random(), DIGITS)
            own = {"attention_split": round(draw.random(), DIGITS)} if self.separate_splits else {}
            yield {"kind": "crossover", "parents": self._pair(state, draw), "split": split, **own, "mix": mix}

    def _pair(self, state: JsonObject, draw: random.Random) -> list[str]:
        members = state["members"]
        if len(members) < 2:
            pool = sorted({*self.founders, *(member["digest"] for member in members)})
            return draw.sample(pool, 2) if len(pool) > 1 else pool
        scores = [member["scores"] for member in members]
        if self._several:
            points = self._points(members)
            first = selection.by_tournament(points, draw)
            second = selection.by_tournament(points, draw, banned=first)
        else:
            first = _drawn(fitness(scores), draw)
            second = _drawn(complement(scores, first), draw, banned=first)
        return [members[first]["digest"], members[second]["digest"]]

    def _promising(self, state: JsonObject, child: JsonObject) -> bool:
        """Whether mating the child's parents may bring anything: the second adds to the first and is another model."""
        if self.most_alike >= 1:
            return True
        members = {member["digest"]: member for member in state["members"]}
        if len(child["parents"]) < 2 or not all(parent in members for parent in child["parents"]):
            return True
        first, second = (members[parent] for parent in child["parents"])
        adds = any(his == "1" and own == "0" for his, own in zip(second["scores"], first["scores"], strict=True))
        return adds and cosine(first.get("sketch", []), second.get("sketch", [])) < self.most_alike

    @property
    def _several(self) -> bool:
        return len(self.objectives) > 1

    def _points(self, members: Sequence[JsonObject]) -> list[tuple[float, ...]]:
        """The members as NSGA-II sees them: fitness and the other objectives, larger is better."""
        worth = fitness([member["scores"] for member in members])
        return [(value, *self._measured(member)) for value, member in zip(worth, members, strict=True)]

    def _measured(self, member: JsonObject) -> tuple[float, ...]:
        """The objectives beside quality, larger is better."""
        return tuple(-float(member["measures"][name]) for name in self.objectives if name != Objective.QUALITY)


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


def _member(digest: str, told: Told) -> JsonObject:
    """What the archive keeps of a model."""
    member: JsonObject = {"digest": digest, "scores": told.scores}
    return member | ({"measures": told.measures} if told.measures else {}) | (
        {"sketch": told.sketch} if told.sketch else {})


def _point(change: JsonObject) -> Point:
    """A crossover as genes. The same child has the same ones, whichever parent is named first."""
    parents, mix = list(change["parents"]), float(change["mix"])
    if parents != sorted(parents):
        parents, mix = parents[::-1], 1.0 - mix
    splits = [change[name] for name in ("split", "attention_split") if name in change]
    return [*parents, *splits, mix]
