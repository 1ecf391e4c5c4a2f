"""Where the next genotype comes from: one ask/tell interface, and the searches over vectors behind it.

A search is stateless code; its state is a JSON value that the caller keeps. `ask` draws nothing: the points of a
generation are drawn when it opens and wait in the state, so asking twice gives the same change. Invariant: a search
whose state went through JSON after every step takes the same path as one that was left alone. (Pickled optimisers of
`cmaes` lose their generator; here it is seeded anew for each generation, so there is none to lose.)
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from cmaes import CMA, SepCMA

from loops.architecture.genome import DIGITS, Definition
from state.records import JsonObject, seed_from

MOST_FULL_DIMENSIONS = 150      # above, the covariance is kept diagonal (sep-CMA)
WORST = -1.0                    # what a candidate without a fitness counts as


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a candidate. `fitness` is None where it was never scored.

    `advantage` is its fitness less the incumbent's on the same items; `scores` the 0/1 text of its items; `member`
    the digest of the built model, where one was kept; `promoted` whether it became the incumbent.
    """

    fitness: float | None = None
    advantage: float = WORST
    scores: str = ""
    member: str | None = None
    promoted: bool = False


class Search(Protocol):
    """Ask and tell. A change carries {"search": {"generation", "point", "items_seed"}}: what `tell` knows it by."""

    def start(self) -> JsonObject: ...

    def ask(self, state: JsonObject) -> JsonObject:
        """The next change to try. Pure."""
        ...

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        """The state after a candidate. Pure; a change that is not awaited (told before, or stale) alters nothing."""
        ...

    def keep(self, state: JsonObject, scores: str) -> bool:
        """Whether a model with these item scores is worth building although it did not beat the incumbent."""
        ...


@dataclass(frozen=True, slots=True)
class Cloud:
    """Where a vector search starts: around `mean` with standard deviation `sigma` in every gene."""

    mean: tuple[float, ...]
    sigma: float


@dataclass(frozen=True, slots=True)
class CmaEs:
    """CMA-ES (Hansen 2016, arXiv 1604.00772), diagonal above 150 genes; a stopped run restarts where it began."""

    definition: Definition
    cloud: Cloud
    seed: int

    def start(self) -> JsonObject:
        return self._open(self._fresh(0), 0, 0)

    def ask(self, state: JsonObject) -> JsonObject:
        return _awaited(self.definition, self.seed, state)

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        after = _with_fitness(state, change, told)
        if after is state or None in after["fitness"]:
            return after
        optimiser = _thawed(after["optimiser"])
        points = [np.array(point) for point in after["points"]]
        optimiser.tell([(point, -fitness) for point, fitness in zip(points, after["fitness"], strict=True)])
        restarts = after["restarts"] + int(optimiser.should_stop())
        if restarts > after["restarts"]:
            optimiser = self._fresh(restarts)
        return self._open(optimiser, after["generation"] + 1, restarts)

    def keep(self, state: JsonObject, scores: str) -> bool:
        return False

    def _fresh(self, restarts: int) -> CMA | SepCMA:
        limits, mean = np.array(self.definition.limits()), np.array(self.cloud.mean)
        kind = CMA if len(mean) <= MOST_FULL_DIMENSIONS else SepCMA
        optimiser = kind(mean=mean, sigma=self.cloud.sigma / (1 + restarts), bounds=limits)
        optimiser._funhist_values[:] = 0.0      # left unset by cmaes: the state would not be repeatable
        return optimiser

    def _open(self, optimiser: CMA | SepCMA, generation: int, restarts: int) -> JsonObject:
        """Draw a generation. What is drawn is rounded, so the point that is told is the point that was built."""
        frozen = _frozen(optimiser)
        optimiser.reseed_rng(seed_from("generation", self.seed, generation) % 2**32)
        limits = self.definition.limits()
        points = [_rounded(optimiser.ask(), limits) for _ in range(optimiser.population_size)]
        return {"optimiser": frozen, "generation": generation, "restarts": restarts,
                "points": points, "fitness": [None] * len(points)}


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """The honest control: the same cloud, generation after generation, learning nothing."""

    definition: Definition
    cloud: Cloud
    seed: int

    def start(self) -> JsonObject:
        return self._open(0)

    def ask(self, state: JsonObject) -> JsonObject:
        return _awaited(self.definition, self.seed, state)

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        after = _with_fitness(state, change, told)
        done = after is not state and None not in after["fitness"]
        return self._open(after["generation"] + 1) if done else after

    def keep(self, state: JsonObject, scores: str) -> bool:
        return False

    def _open(self, generation: int) -> JsonObject:
        draws = np.random.RandomState(seed_from("generation", self.seed, generation) % 2**32)
        limits = self.definition.limits()
        size = 4 + int(3 * np.log(len(limits)))
        points = [_rounded(draws.normal(self.cloud.mean, self.cloud.sigma), limits) for _ in range(size)]
        return {"generation": generation, "points": points, "fitness": [None] * size}


def _awaited(definition: Definition, seed: int, state: JsonObject) -> JsonObject:
    """The first point of the open generation that has no fitness yet, as a change."""
    point = state["fitness"].index(None)
    generation = state["generation"]
    mark = {"generation": generation, "point": point, "items_seed": seed_from("items", seed, generation)}
    return {**definition.change(state["points"][point]), "search": mark}


def _with_fitness(state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
    """The state with one more fitness; `state` itself where the change is not awaited."""
    mark = change.get("search", {})
    point = mark.get("point", -1)
    if mark.get("generation") != state["generation"] or not 0 <= point < len(state["points"]):
        return state
    if state["fitness"][point] is not None:
        return state
    fitness = list(state["fitness"])
    fitness[point] = WORST if told.fitness is None else told.fitness
    return {**state, "fitness": fitness}


def _rounded(genes: Any, limits: Sequence[tuple[float, float]]) -> list[float]:
    return [round(min(high, max(low, float(gene))), DIGITS) for gene, (low, high) in zip(genes, limits, strict=True)]


def _frozen(optimiser: CMA | SepCMA) -> JsonObject:
    """An optimiser as JSON, arrays as compressed bytes, without its generator."""
    body: JsonObject = {}
    for name, value in optimiser.__getstate__().items():
        if isinstance(value, np.ndarray):
            packed = base64.b64encode(zlib.compress(value.astype(np.float64).tobytes(), 9)).decode()
            body[name] = {"shape": list(value.shape), "float64": packed}
        else:
            body[name] = value.item() if isinstance(value, np.generic) else value
    return {"kind": type(optimiser).__name__, "fields": body}


def _thawed(body: JsonObject) -> CMA | SepCMA:
    kind = {"CMA": CMA, "SepCMA": SepCMA}[body["kind"]]
    optimiser = kind.__new__(kind)
    fields: dict[str, Any] = {}
    for name, value in body["fields"].items():
        if isinstance(value, dict):
            numbers = np.frombuffer(zlib.decompress(base64.b64decode(value["float64"])), np.float64)
            fields[name] = numbers.reshape(value["shape"]).copy()
        else:
            fields[name] = value
    optimiser.__setstate__(fields)
    return optimiser
