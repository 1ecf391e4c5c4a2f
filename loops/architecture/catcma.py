"""CatCMA with margin (arXiv 2504.07884) over paths: which places a path goes through, and how its seams are scaled.

Behind the ask and tell of `loops.architecture.search`, with its way of naming points and its invariant: the state is a
JSON value, and a search whose state went through JSON after every step takes the same path as one left alone. Only the
scales of seams that a path has are free: the others are told as if drawn anew, and the mean of a scale that no path of
a generation had stays where it was, so what nobody used neither drifts nor shrinks the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from cmaes import CatCMAwM

from loops.architecture.genome import DIGITS
from loops.architecture.paths import SCALE_LIMITS, PathDefinition
from loops.architecture.search import NONE_OUT, WORST, Told, free_place, is_marked, noted, packed, unpacked
from state.records import JsonObject, seed_from

LEARNT: Final = (
    "_g", "_mean", "_sigma", "_p_sigma", "_pc", "_funhist_values", "_q", "_Delta", "_gamma", "_s", "_delta", "_eps",
)
"""What of an optimiser changes as it is told, besides its covariance; the rest follows from the definition. The history
by which points outside the limits are punished is not of it: none is ever told.
"""


@dataclass(frozen=True, slots=True)
class CatCma:
    """A search that starts at the template's own path, `flips` of whose places a first draw has otherwise on average,
    with scales around 1 of standard deviation `sigma`. One that does not learn is the control: it only draws.
    """

    definition: PathDefinition
    flips: float
    sigma: float
    seed: int
    learns: bool = True

    def start(self) -> JsonObject:
        return {"optimiser": _frozen(self._fresh(0)), "restarts": 0, **NONE_OUT}

    def ask(self, state: JsonObject, in_flight: Any = ()) -> JsonObject:
        optimiser = self._thawed(state)
        generation, point = free_place(state, optimiser.population_size, in_flight)
        optimiser.reseed_rng(seed_from("path", self.seed, generation, point) % 2**32)
        drawn = optimiser.ask()
        included = self.definition.trimmed(drawn.c[:, 1].tolist(), optimiser._q[:, 1].tolist())
        scales = {place: round(float(drawn.x[place]), DIGITS) for place in self.definition.seams(included)}
        mark = {"generation": generation, "point": point, "items_seed": seed_from("items", self.seed, generation)}
        return {**self.definition.change(included, scales), "search": mark}

    def tell(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        if not is_marked(change):
            return state
        optimiser = self._thawed(state)
        included, scales = self.definition.genes(change)
        entry = [
            [place for place, inside in enumerate(included) if inside], sorted(scales.items()),
            WORST if told.fitness is None else told.fitness,
        ]
        after, generation = noted(state, optimiser.population_size, change, entry)
        if generation is None or not self.learns:
            return after
        self._learn(optimiser, change["search"]["generation"], generation)
        restarts = after["restarts"] + int(optimiser.should_stop())
        if restarts > after["restarts"]:
            optimiser = self._fresh(restarts)
        return {**after, "optimiser": _frozen(optimiser), "restarts": restarts}

    def keep(self, state: JsonObject, told: Told) -> bool:
        return False

    def _learn(self, optimiser: Any, number: int, generation: list[list[Any]]) -> None:
        solutions, before = [], optimiser._mean.copy()
        unused = np.ones(len(before), dtype=bool)
        for point, (through, scales, fitness) in enumerate(generation):
            optimiser.reseed_rng(seed_from("unused", self.seed, number, point) % 2**32)
            x = optimiser.ask().x
            for place, scale in scales:
                x[place], unused[place] = scale, False
            inside = np.isin(np.arange(len(x)), through)
            choice = np.stack([~inside, inside], axis=1)
            solutions.append((CatCMAwM.Solution(x, None, choice, x), -fitness))
        optimiser.tell(solutions)
        optimiser._mean[unused] = before[unused]

    def _fresh(self, restarts: int) -> Any:
        own = np.array(self.definition.own)
        flip = min(0.25, self.flips / len(own))
        inside = np.where(own, 1.0 - flip, flip)
        sigma = self.sigma / (1 + restarts)
        optimiser = CatCMAwM(
            x_space=[SCALE_LIMITS] * len(own), c_space=[2] * len(own), mean=np.ones(len(own)), sigma=sigma,
            cov=np.eye(len(own)), cat_param=np.stack([1.0 - inside, inside], axis=1),
        )
        optimiser._funhist_values[:] = 0.0      # left unset by cmaes: the state would not be repeatable
        optimiser._iqhist_values = [0.0]        # with none, the penalty of a generation of equals is not a number
        return optimiser

    def _thawed(self, state: JsonObject) -> Any:
        optimiser, body = self._fresh(state["restarts"]), state["optimiser"]
        for name in LEARNT:
            value = body[name]
            setattr(optimiser, name, unpacked(value) if isinstance(value, dict) else value)
        upper = np.triu_indices(len(optimiser._mean))
        optimiser._C[upper] = unpacked(body["_C"])
        optimiser._C.T[upper] = optimiser._C[upper]
        return optimiser


def _frozen(optimiser: Any) -> JsonObject:
    """What the optimiser has learnt as JSON; of its covariance one half, and no decomposition of it."""
    body: JsonObject = {"_C": packed(optimiser._C[np.triu_indices(len(optimiser._mean))])}
    for name in LEARNT:
        value = getattr(optimiser, name)
        if isinstance(value, np.ndarray):
            body[name] = packed(value)
        else:
            body[name] = value.item() if isinstance(value, np.generic) else value
    return body
