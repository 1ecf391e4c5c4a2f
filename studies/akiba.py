"""Akiba et al. (arXiv 2403.13187) in miniature: what merges in parameter space, paths in data-flow space and both find.

Their task was maths in Japanese; the demo's is maths in its second language. Searched is for the target alone, from the
better parent on; what becomes of the other tasks is looked at afterwards. The three searches are the architecture
loop's own, each with the same number of items scored; "both" is the loop's way of it: when merges have run dry, a
search for paths begins whose pool of layers holds the merge that won.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from loops.architecture.genome import Definition
from loops.architecture.settings import ArchitectureSettings, SearchKind, Space
from safety.operators import Operator
from state.jobs import JobSpec
from state.records import JsonObject, seed_from
from studies.world import Climb, Exam, Workshop, World, climb


class Arm(Protocol):
    """One row of the picture. `items` are what a search may score."""

    def __call__(self, world: World, workshop: Workshop, items: int) -> Climb: ...


GRID = 21                       # merges between one parent and the other
EXAM_ITEMS = 1024               # search items that chose among these, and the better parent
PATIENCE = 40                   # of the merges in "both": the demo's
PARENTS = ("maths expert", "language expert")
UNIFORM, BEST_LAMBDA = "uniform average", "best single λ"
PARAMETER, DATA_FLOW, BOTH = "parameter space", "data-flow space", "both"
RANDOM_PATHS = "data-flow space, at random"


def one_parent(place: int) -> Arm:
    def arm(world: World, workshop: Workshop, items: int) -> Climb:
        return Climb(world.parents[place], 0, 0, 0, 0)

    return arm


def mixed(world: World, share: float) -> JsonObject:
    """The linear merge with that much of the first parent."""
    definition = Definition(Operator.LINEAR, world.base, world.parents, seed=world.seed)
    return definition.change([round(share, 6), round(1.0 - share, 6)])


def uniform(world: World, workshop: Workshop, items: int) -> Climb:
    exam = Exam(world, world.tasks[:1], workshop, EXAM_ITEMS)
    return Climb(exam.built(mixed(world, 0.5)), 0, 1, 0, 0)


def best_lambda(world: World, workshop: Workshop, items: int) -> Climb:
    exam = Exam(world, world.tasks[:1], workshop, EXAM_ITEMS)
    best = max((mixed(world, place / (GRID - 1)) for place in range(GRID)), key=exam.fitness)
    return Climb(exam.built(best), 0, GRID, workshop.spent, 0)


def better_parent(world: World, workshop: Workshop) -> str:
    """The parent that answers more search items of the target. What that takes is no arm's to pay."""
    inputs = {f"model:{digest}": digest for digest in world.parents}
    target = world.tasks[0]
    params = {"tasks": [target.to_json()], "count": EXAM_ITEMS, "seed": seed_from("exam", world.seed)}
    values = Workshop(workshop.folder, dict(world.folders)).run(JobSpec("score", inputs, params)).values
    return max(world.parents, key=lambda digest: float(values[digest][target.name]["mean"]))


def searched(change: Callable[[ArchitectureSettings], ArchitectureSettings]) -> Arm:
    def arm(world: World, workshop: Workshop, items: int) -> Climb:
        start = better_parent(world, workshop)
        return climb(world, change(world.settings), world.tasks[:1], start, workshop, items)

    return arm


SEARCHES: Mapping[str, Arm] = {
    PARAMETER: searched(lambda settings: replace(settings, space=Space.PARAMETER)),
    DATA_FLOW: searched(lambda settings: replace(settings, space=Space.DATA_FLOW)),
    BOTH: searched(lambda settings: replace(settings, space=Space.BOTH, patience=PATIENCE)),
    RANDOM_PATHS: searched(lambda settings: replace(settings, space=Space.DATA_FLOW, search=SearchKind.RANDOM)),
}
ARMS: Mapping[str, Arm] = {
    PARENTS[0]: one_parent(0), PARENTS[1]: one_parent(1), UNIFORM: uniform, BEST_LAMBDA: best_lambda, **SEARCHES,
}
