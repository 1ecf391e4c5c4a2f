"""The architecture search beside mergekit-evolve's scheme at equal items scored, on the demo's models and tasks.

Every arm begins with the same three models, may score the same number of items (an item scored once by one model is
one, the incumbent's included) and gives one model, which then answers all unseen items. Two settings: the demo's target
alone, and the demo's four tasks with equal weights, where every screening has a quarter of the items of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from loops.architecture.settings import ArchitectureSettings, SearchKind
from safety.operators import Operator
from safety.yardstick.items import TaskSpec
from studies.mergekit_scheme import Scheme, search_in_full
from studies.world import Climb, Workshop, World, climb


class Arm(Protocol):
    """One search: `items` scored at most, on these tasks."""

    def __call__(self, world: World, tasks: Sequence[TaskSpec], workshop: Workshop, items: int) -> Climb: ...


OURS = "kaizend: CMA-ES, coarse to fine, raced"
RANDOM = "kaizend: random search, raced"
THEIRS = "mergekit-evolve's scheme"
PER_MODULE = "the same, a weight per module"


def ours(change: Callable[[ArchitectureSettings], ArchitectureSettings]) -> Arm:
    def arm(world: World, tasks: Sequence[TaskSpec], workshop: Workshop, items: int) -> Climb:
        return climb(world, change(shared_out(world.settings, len(tasks))), tasks, world.base, workshop, items)

    return arm


def theirs(scheme: Scheme) -> Arm:
    def arm(world: World, tasks: Sequence[TaskSpec], workshop: Workshop, items: int) -> Climb:
        return search_in_full(world, scheme, tasks, workshop, items)

    return arm


def shared_out(settings: ArchitectureSettings, tasks: int) -> ArchitectureSettings:
    """The settings with the items of one task shared by so many."""
    return replace(
        settings, fitness_items=settings.fitness_items // tasks, fresh_items=settings.fresh_items // tasks,
        batch_items=settings.batch_items // tasks,
    )


ARMS: dict[str, Arm] = {
    OURS: ours(lambda settings: settings),
    "kaizend: M2N2": ours(lambda settings: replace(settings, search=SearchKind.M2N2)),
    RANDOM: ours(lambda settings: replace(settings, search=SearchKind.RANDOM)),
    THEIRS: theirs(Scheme()),
    PER_MODULE: theirs(Scheme(filters=True)),
    "the same, DARE-TIES": theirs(Scheme(operator=Operator.DARE_TIES)),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The first so many tasks of the demo are searched for, with equal weights, by these arms."""

    name: str
    tasks: int
    arms: tuple[str, ...]


SETTINGS = (
    Setting("the target alone", 1, tuple(ARMS)),
    Setting("all four tasks", 4, (OURS, RANDOM, THEIRS, PER_MODULE)),
)
