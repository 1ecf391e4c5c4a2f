"""Akiba et al. (arXiv 2403.13187) in miniature: what merges in parameter space, paths in data-flow space and both find.

Their task was maths in Japanese; the demo's is maths in its second language. Searched is for the target alone, from the
better parent on; what becomes of the other tasks is looked at afterwards. The three searches are the architecture
loop's own, each with the same number of items scored; "both" has half of them for merges, and the other half for paths
through a pool of layers that holds the merge that won.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from loops.architecture.genome import Definition
from loops.architecture.settings import SearchKind, Space
from safety.operators import Operator
from state.jobs import JobSpec
from state.records import JsonObject, seed_from
from studies.world import Climb, Exam, Workshop, World, climb


class Arm(Protocol):
    """One row of the picture. `items` are what a search may score."""

    def __call__(self, world: World, workshop: Workshop, items: int) -> Climb: ...


GRID = 21                       # merges between one parent and the other
EXAM_ITEMS = 1024               # search items that chose among these, and the better parent
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


def searched(space: Space, search: SearchKind = SearchKind.CMAES) -> Arm:
    def arm(world: World, workshop: Workshop, items: int) -> Climb:
        settings = replace(world.settings, space=space, search=search)
        return climb(world, settings, world.tasks[:1], better_parent(world, workshop), workshop, items)

    return arm


def merges_then_paths(world: World, workshop: Workshop, items: int) -> Climb:
    first = searched(Space.PARAMETER)(world, workshop, items // 2)
    settings = replace(world.settings, space=Space.DATA_FLOW)
    then = climb(world, settings, world.tasks[:1], first.model, workshop, items - first.spent)
    return Climb(
        then.model, first.moves + then.moves, first.candidates + then.candidates, first.spent + then.spent,
        then.on_paths,
    )


SEARCHES: Mapping[str, Arm] = {
    PARAMETER: searched(Space.PARAMETER), DATA_FLOW: searched(Space.DATA_FLOW), BOTH: merges_then_paths,
    RANDOM_PATHS: searched(Space.DATA_FLOW, SearchKind.RANDOM),
}
ARMS: Mapping[str, Arm] = {
    PARENTS[0]: one_parent(0), PARENTS[1]: one_parent(1), UNIFORM: uniform, BEST_LAMBDA: best_lambda, **SEARCHES,
}
