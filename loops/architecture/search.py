"""Where the next genotype comes from: one ask/tell interface, and the searches over vectors behind it.

A search is stateless code; its state is a JSON value that the caller keeps. A point is named by its generation and
its place in it, and drawn from a generator seeded by that name, so asking twice gives the same change. Nobody waits
for a generation to fill: while its last points are out, those of the next are drawn from the distribution as it
stands, and each generation is told when its own points are back. Invariant: a search whose state went through JSON
after every step takes the same path as one that was left alone. (Pickled optimisers of `cmaes` lose their generator;
here it is seeded anew for each point, so there is none to lose.)
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, Final, Protocol

import numpy as np
from cmaes import CMA, SepCMA

from loops.architecture.genome import DIGITS, Definition
from loops.architecture.novelty import first_worth, is_novel, remembered
from state.records import JsonObject, seed_from

MOST_FULL_DIMENSIONS = 150      # above, the covariance is kept diagonal (sep-CMA)
WORST = -1.0                    # what a candidate without a fitness counts as


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a candidate. `fitness` is None where it was never scored.

    `advantage` is its fitness less the incumbent's on the same items; `scores` the 0/1 text of its items; `member`
    the digest of the built model, where one was kept; `promoted` whether it became the incumbent. `measures` holds the
    objectives beside quality by name, `sketch` a short stand-in for its change from the base, where they were taken.
    """

    fitness: float | None = None
    advantage: float = WORST
    scores: str = ""
    member: str | None = None
    promoted: bool = False
    measures: JsonObject = field(default_factory=dict)
    sketch: list[float] = field(default_factory=list)


class Search(Protocol):
    """Ask and tell. A change carries {"search": {"generation", "point", "items_seed"}}: what `tell` knows it by."""

    def start(self) -> JsonObject: ...

    def ask(self, state: JsonObject, in_flight: Sequence[JsonObject] = ()) -> JsonObject:
        """The next change to try, another one than those `in_flight`. Pure."""
        ...

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        """The state after a candidate. Pure; a change that is not awaited (told before, or stale) alters nothing."""
        ...

    def keep(self, state: JsonObject, told: Told) -> bool:
        """Whether such a model is worth building although it did not beat the incumbent."""
        ...


@dataclass(frozen=True, slots=True)
class Cloud:
    """Where a vector search starts: around `mean` with standard deviation `sigma` in every gene."""

    mean: tuple[float, ...]
    sigma: float


@dataclass(frozen=True, slots=True)
class CmaEs:
    """CMA-ES (Hansen 2016, arXiv 1604.00772), diagonal above 150 genes; a stopped run restarts where it began.

    A point within `novelty` of one already tried is drawn again.
    """

    definition: Definition
    cloud: Cloud
    seed: int
    novelty: float = 0.0

    def start(self) -> JsonObject:
        return {"optimiser": _frozen(self._fresh(0)), "restarts": 0, **NONE_OUT}

    def ask(self, state: JsonObject, in_flight: Sequence[JsonObject] = ()) -> JsonObject:
        optimiser = _thawed(state["optimiser"])
        generation, point = free_place(state, optimiser.population_size, in_flight)
        genes = _novel(self, state, in_flight, self._draws(optimiser, generation, point))
        return _marked(self.definition, self.seed, generation, point, genes)

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        optimiser = _thawed(state["optimiser"])
        fitness = WORST if told.fitness is None else told.fitness
        entry = [self.definition.vector(change), fitness] if is_marked(change) else []
        after, generation = noted(state, optimiser.population_size, change, entry)
        after = _with_tried(self, state, after, change)
        if generation is None:
            return after
        optimiser.tell([(np.array(point), -fitness) for point, fitness in generation])
        restarts = after["restarts"] + int(optimiser.should_stop())
        if restarts > after["restarts"]:
            optimiser = self._fresh(restarts)
        return {**after, "optimiser": _frozen(optimiser), "restarts": restarts}

    def keep(self, state: JsonObject, told: Told) -> bool:
        return False

    def _draws(self, optimiser: CMA | SepCMA, generation: int, point: int) -> Iterator[list[float]]:
        """The point, and others from the same distribution that may stand for it."""
        limits = self.definition.limits()
        optimiser.reseed_rng(seed_from("generation", self.seed, generation) % 2**32)
        yield _rounded([optimiser.ask() for _ in range(point + 1)][-1], limits)
        optimiser.reseed_rng(seed_from("again", self.seed, generation, point) % 2**32)
        while True:
            yield _rounded(optimiser.ask(), limits)

    def _fresh(self, restarts: int) -> CMA | SepCMA:
        limits, mean = np.array(self.definition.limits()), np.array(self.cloud.mean)
        kind = CMA if len(mean) <= MOST_FULL_DIMENSIONS else SepCMA
        optimiser = kind(mean=mean, sigma=self.cloud.sigma / (1 + restarts), bounds=limits)
        optimiser._funhist_values[:] = 0.0      # left unset by cmaes: the state would not be repeatable
        return optimiser


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """The honest control: the same cloud, generation after generation, learning nothing but what was tried."""

    definition: Definition
    cloud: Cloud
    seed: int
    novelty: float = 0.0

    def start(self) -> JsonObject:
        return dict(NONE_OUT)

    def ask(self, state: JsonObject, in_flight: Sequence[JsonObject] = ()) -> JsonObject:
        generation, point = free_place(state, self._size, in_flight)
        genes = _novel(self, state, in_flight, self._draws(generation, point))
        return _marked(self.definition, self.seed, generation, point, genes)

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        return _with_tried(self, state, noted(state, self._size, change, [])[0], change)

    def keep(self, state: JsonObject, told: Told) -> bool:
        return False

    def _draws(self, generation: int, point: int) -> Iterator[list[float]]:
        """The point, and others of the same cloud that may stand for it."""
        limits, (mean, sigma) = self.definition.limits(), (self.cloud.mean, self.cloud.sigma)
        draws = np.random.RandomState(seed_from("generation", self.seed, generation) % 2**32)
        yield _rounded([draws.normal(mean, sigma) for _ in range(point + 1)][-1], limits)
        draws = np.random.RandomState(seed_from("again", self.seed, generation, point) % 2**32)
        while True:
            yield _rounded(draws.normal(mean, sigma), limits)

    @property
    def _size(self) -> int:
        dimensions = self.definition.dimensions
        return 4 + int(3 * np.log(dimensions)) if dimensions else 1


NONE_OUT: Final[JsonObject] = {"next": 0, "open": []}
"""No generation begun. "next": the first of which nothing was told; "open": those before it that are not complete,
each {"generation", "told": {point: what was told}}.
"""


def free_place(state: JsonObject, size: int, in_flight: Sequence[JsonObject]) -> tuple[int, int]:
    """Generation and point of the first place that was neither told nor is in flight."""
    taken = {(change["search"]["generation"], change["search"]["point"]) for change in in_flight if is_marked(change)}
    taken |= {(entry["generation"], int(point)) for entry in state["open"] for point in entry["told"]}
    generations = chain((entry["generation"] for entry in state["open"]), count(state["next"]))
    return next(
        (generation, point) for generation in generations for point in range(size) if (generation, point) not in taken
    )


def noted(
    state: JsonObject, size: int, change: JsonObject, entry: list[Any]
) -> tuple[JsonObject, list[list[Any]] | None]:
    """The state with `entry` at the change's place, and the entries of its generation, by point, once it is complete.

    A change that has no place, or one that is told already, leaves `state` itself.
    """
    if not is_marked(change):
        return state, None
    generation, point = change["search"]["generation"], str(change["search"]["point"])
    begun = range(state["next"], generation + 1)
    entries = {
        **{known["generation"]: known["told"] for known in state["open"]}, **{number: {} for number in begun}
    }
    told = entries.get(generation)
    if told is None or point in told or not 0 <= int(point) < size:
        return state, None
    entries[generation] = told = {**told, point: entry}
    complete = [told[name] for name in sorted(told, key=int)] if len(told) == size else None
    if complete is not None:
        del entries[generation]
    still = [{"generation": number, "told": entries[number]} for number in sorted(entries)]
    return {**state, "next": max(state["next"], generation + 1), "open": still}, complete


def is_marked(change: JsonObject) -> bool:
    """Whether a search proposed the change."""
    return bool({"generation", "point"} <= change.get("search", {}).keys())


def _novel(
    search: CmaEs | RandomSearch, state: JsonObject, in_flight: Sequence[JsonObject], draws: Iterator[list[float]]
) -> list[float]:
    """The first of the draws that was not tried yet and is not being tried, nor is nearly."""
    out = [search.definition.vector(change) for change in in_flight if is_marked(change)] if search.novelty else []
    tried = [*state.get("tried", []), *out]
    return first_worth(draws, lambda point: is_novel(point, tried, search.novelty))


def _with_tried(
    search: CmaEs | RandomSearch, before: JsonObject, after: JsonObject, change: JsonObject
) -> JsonObject:
    """The state after a point was told, with the point among those tried where the search asks for new ones."""
    if after is before or not search.novelty:
        return after
    return {**after, "tried": remembered(before.get("tried", []), search.definition.vector(change))}


def _marked(definition: Definition, seed: int, generation: int, point: int, genes: Sequence[float]) -> JsonObject:
    """A drawn point as a change."""
    mark = {"generation": generation, "point": point, "items_seed": seed_from("items", seed, generation)}
    return {**definition.change(genes), "search": mark}


def _rounded(genes: Any, limits: Sequence[tuple[float, float]]) -> list[float]:
    """Genes within their limits, rounded, so that the point that is told is the point that was built."""
    return [round(min(high, max(low, float(gene))), DIGITS) for gene, (low, high) in zip(genes, limits, strict=True)]


def packed(array: Any) -> JsonObject:
    """An array of numbers as JSON: its float64 bytes, compressed."""
    text = base64.b64encode(zlib.compress(array.astype(np.float64).tobytes(), 9)).decode()
    return {"shape": list(array.shape), "float64": text}


def unpacked(body: JsonObject) -> Any:
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(body["float64"])), np.float64)
    return numbers.reshape(body["shape"]).copy()


def _frozen(optimiser: CMA | SepCMA) -> JsonObject:
    """An optimiser as JSON, arrays as compressed bytes, without its generator."""
    body: JsonObject = {}
    for name, value in optimiser.__getstate__().items():
        if isinstance(value, np.ndarray):
            body[name] = packed(value)
        else:
            body[name] = value.item() if isinstance(value, np.generic) else value
    return {"kind": type(optimiser).__name__, "fields": body}


def _thawed(body: JsonObject) -> CMA | SepCMA:
    kind = {"CMA": CMA, "SepCMA": SepCMA}[body["kind"]]
    optimiser = kind.__new__(kind)
    fields: dict[str, Any] = {}
    for name, value in body["fields"].items():
        fields[name] = unpacked(value) if isinstance(value, dict) else value
    optimiser.__setstate__(fields)
    return optimiser
