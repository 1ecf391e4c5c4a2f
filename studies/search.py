"""The architecture search beside mergekit-evolve's scheme at equal items scored, on the demo's models and tasks.

Every arm begins with the same three models, may score the same number of items (an item scored once by one model is
one, the incumbent's included) and gives one model, which then answers all unseen items. Two settings: the demo's target
alone, and the demo's four tasks with equal weights, where every screening has a quarter of the items of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from loops.architecture.settings import ArchitectureSettings, SearchKind
from safety.operators import Operator
from safety.yardstick.items import TaskSpec
from studies.findings import LOOP, MERGES
from studies.mergekit_scheme import Scheme, search_in_full
from studies.world import Climb, Workshop, World, climb


class Arm(Protocol):
    """One search: `items` scored at most, on these tasks. What it finds follows from its fields and `sources`."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    def __call__(self, world: World, tasks: Sequence[TaskSpec], workshop: Workshop, items: int) -> Climb: ...


@dataclass(frozen=True, slots=True)
class Ours:
    """The architecture loop as the demo has it, from the base on, or with another search in its place."""

    search: SearchKind = SearchKind.CMAES

    @property
    def sources(self) -> tuple[str, ...]:
        return LOOP

    def __call__(self, world: World, tasks: Sequence[TaskSpec], workshop: Workshop, items: int) -> Climb:
        settings = replace(shared_out(world.settings, len(tasks)), search=self.search)
        return climb(world, settings, tasks, world.base, workshop, items)


@dataclass(frozen=True, slots=True)
class Theirs:
    """mergekit-evolve's scheme."""

    scheme: Scheme = field(default_factory=Scheme)

    @property
    def sources(self) -> tuple[str, ...]:
        return (*MERGES, "studies/mergekit_scheme.py")

    def __call__(self, world: World, tasks: Sequence[TaskSpec], workshop: Workshop, items: int) -> Climb:
        return search_in_full(world, self.scheme, tasks, workshop, items)


def shared_out(settings: ArchitectureSettings, tasks: int) -> ArchitectureSettings:
    """The settings with the items of one task shared by so many."""
    return replace(
        settings, fitness_items=settings.fitness_items // tasks, fresh_items=settings.fresh_items // tasks,
        batch_items=settings.batch_items // tasks,
    )


OURS = "kaizend: CMA-ES, coarse to fine, raced"
RANDOM = "kaizend: random search, raced"
THEIRS = "mergekit-evolve's scheme"
PER_MODULE = "the scheme, a weight per module"
ARMS: Mapping[str, Arm] = {
    OURS: Ours(), "kaizend: M2N2": Ours(SearchKind.M2N2), RANDOM: Ours(SearchKind.RANDOM),
    THEIRS: Theirs(), PER_MODULE: Theirs(Scheme(filters=True)),
    "the scheme, DARE-TIES": Theirs(Scheme(operator=Operator.DARE_TIES)),
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
