"""Coarse to fine: first one weight per parent for each operator, then the best of them split into groups of layers.

Wraps any search over vectors. Invariant: the fine stage starts from the coarse point that did best, and that point
describes the same model in both definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loops.architecture.genome import Definition
from loops.architecture.search import Cloud, CmaEs, RandomSearch, Told
from state.records import JsonObject, seed_from


@dataclass(frozen=True, slots=True)
class CoarseToFine:
    """`coarse` holds one shared definition per operator; each gets `coarse_proposals`, the winner all that follow.

    An operator without genes gets one proposal and cannot win: nothing of it is left to vary. At least one has genes.
    `weights` are the first mean of the parents' weights; `fine_groups` the blocks of layers of the fine stage.
    """

    kind: type[CmaEs] | type[RandomSearch]
    coarse: tuple[Definition, ...]
    weights: tuple[float, ...]
    sigma: float
    fine_groups: int
    fine_sigma: float
    coarse_proposals: int
    seed: int
    novelty: float = 0.0

    def start(self) -> JsonObject:
        state = {"stage": 0, "told": 0, "best": [None] * len(self.coarse), "origin": None}
        return {**state, "inner": self._inner(state).start()}

    def ask(self, state: JsonObject, in_flight: Sequence[JsonObject] = ()) -> JsonObject:
        here = [change for change in in_flight if change.get("search", {}).get("stage") == state["stage"]]
        change = self._inner(state).ask(state["inner"], here)
        return {**change, "search": {**change["search"], "stage": state["stage"]}}

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        stage = change.get("search", {}).get("stage", len(self.coarse))
        if stage < state["stage"] and state["origin"] is None:       # it comes in late, and may yet be the best
            return {**state, "best": self._better(state, stage, change, told)}
        if stage != state["stage"]:
            return state
        inner = self._inner(state).tell(state["inner"], change, told)
        if inner is state["inner"]:
            return state
        after = {**state, "inner": inner, "told": state["told"] + 1}
        if stage == len(self.coarse):
            return after
        after["best"] = self._better(state, stage, change, told)
        proposals = self.coarse_proposals if self.coarse[stage].dimensions else 1
        return self._advance(after) if after["told"] >= proposals else after

    def keep(self, state: JsonObject, told: Told) -> bool:
        return False

    def definition(self, state: JsonObject) -> Definition:
        """What varies in the stage that is open."""
        return self._inner(state).definition

    def _better(self, state: JsonObject, stage: int, change: JsonObject, told: Told) -> list[Any]:
        """The best points so far. A promoted one is best until another is promoted: what only leads on the shared items
        has not beaten it.
        """
        best, vector = list(state["best"]), self.coarse[stage].vector(change)
        known = best[stage]
        if told.promoted:
            best[stage] = {"vector": vector, "advantage": 0.0, "promoted": True}
        elif told.fitness is not None and (
            known is None or (not known["promoted"] and told.advantage > known["advantage"])
        ):
            best[stage] = {"vector": vector, "advantage": told.advantage, "promoted": False}
        return best

    def _advance(self, state: JsonObject) -> JsonObject:
        after = {**state, "stage": state["stage"] + 1, "told": 0}
        if after["stage"] == len(self.coarse):
            after["origin"] = self._winner(state["best"])
        return {**after, "inner": self._inner(after).start()}

    def _winner(self, best: list[Any]) -> JsonObject:
        """The operator and point that the fine stage starts from: the last that was promoted, else the best."""
        varying = [place for place, definition in enumerate(self.coarse) if definition.dimensions]
        known = [(place, best[place]) for place in varying if best[place] is not None]
        if not known:
            return {"operator": varying[0], "vector": self.coarse[varying[0]].centre(self.weights)}
        place, point = max(known, key=lambda pair: (pair[1]["promoted"] * (1 + pair[0]), pair[1]["advantage"]))
        return {"operator": place, "vector": point["vector"]}

    def _inner(self, state: JsonObject) -> CmaEs | RandomSearch:
        seed = seed_from("stage", self.seed, state["stage"])
        if state["origin"] is None:
            definition = self.coarse[state["stage"]]
            kind: type[CmaEs] | type[RandomSearch] = self.kind if definition.dimensions else RandomSearch
            return kind(definition, Cloud(tuple(definition.centre(self.weights)), self.sigma), seed, self.novelty)
        origin = state["origin"]
        fine, mean = self.coarse[origin["operator"]].refine(origin["vector"], self.fine_groups)
        return self.kind(fine, Cloud(tuple(mean), self.fine_sigma), seed, self.novelty)
