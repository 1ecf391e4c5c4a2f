"""The scheme of mergekit-evolve by what its documentation says, to be searched with beside ours.

One CMA-ES over a genome with a weight for each model and each block of `layer_granularity` layers, a density where the
method has one, and a third set of them per kind of module where filters ask for that; absolute values of weights. Every
merge is scored in full on the same items, the fitness is the weighted sum of the tasks' scores, and the result is the
best merge found so far. Built for comparison on our own merge kernels; no code is taken from there.

Two things differ. The optimiser is `cmaes`' CMA-ES with full covariance in pycma's place: the same population of
4 + 3 ln n, from mean .5 with standard deviation 1/6 as in Akiba et al. (arXiv 2403.13187). And a density belongs to a
model, not to a model and a block: our kernels know no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cmaes import CMA

from loops.architecture.genome import MODULES, Definition
from safety.layers import depth_of
from safety.operators import Operator
from safety.yardstick.items import TaskSpec
from state.records import JsonObject, seed_from
from studies.world import Climb, Exam, Workshop, World

MEAN, SIGMA = 0.5, 1 / 6


@dataclass(frozen=True, slots=True)
class Scheme:
    """`evaluations` merges: 100 where mergekit-evolve is not told otherwise. `granularity` is layers a block."""

    evaluations: int = 100
    operator: Operator = Operator.TASK_ARITHMETIC
    granularity: int = 2
    filters: bool = False

    def genome(self, world: World, layers: int) -> Genome:
        groups = layers // self.granularity
        return Genome(Definition(self.operator, world.base, world.parents, groups, False, world.seed), self.filters)


@dataclass(frozen=True, slots=True)
class Genome:
    """Points of a definition whose kinds of module share their genes unless filters keep them apart."""

    definition: Definition
    filters: bool

    @property
    def places(self) -> list[int]:
        """For each number of the definition the gene of ours that it comes from."""
        definition = self.definition
        labels = [
            (gene.name, row, cell if self.filters or not gene.per_cell else cell // len(MODULES))
            for gene in definition.genes for row in range(len(definition.parents) if gene.per_parent else 1)
            for cell in range(definition.cells if gene.per_cell else 1)
        ]
        order = {label: place for place, label in enumerate(dict.fromkeys(labels))}
        return [order[label] for label in labels]

    @property
    def dimensions(self) -> int:
        return 1 + max(self.places)

    def change(self, point: npt.NDArray[np.float64]) -> JsonObject:
        low, high = np.array(self.definition.limits()).T
        return self.definition.change(np.clip(np.abs(point)[self.places], low, high).round(6).tolist())


def search_in_full(
    world: World, scheme: Scheme, tasks: Sequence[TaskSpec], workshop: Workshop, items: int
) -> Climb:
    """The best of `scheme.evaluations` merges, each scored on the same items, as many as `items` in all allow."""
    count = items // (scheme.evaluations * len(tasks))
    genome = scheme.genome(world, depth_of(world.folders[world.base]))
    exam = Exam(world, tasks, workshop, count)
    optimiser = CMA(np.full(genome.dimensions, MEAN), SIGMA, seed=seed_from("scheme", world.seed) % 2**32)
    best, highest, moves, generation = {}, -1.0, 0, []
    for _ in range(scheme.evaluations):
        point = optimiser.ask()
        change = genome.change(point)
        fitness = exam.fitness(change)
        if fitness > highest:
            best, highest, moves = change, fitness, moves + 1
        generation.append((point, -fitness))
        if len(generation) == optimiser.population_size:
            optimiser.tell(generation)
            generation = []
    return Climb(exam.built(best), moves, scheme.evaluations, workshop.spent, 0)
