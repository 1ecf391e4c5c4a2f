"""The settings of the architecture loop: one frozen tree, every value with a default that suits small models."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from safety.operators import OPERATORS, WEIGHTS, Operator

MOST = 10**9
LEAST = {
    "groups": 1, "coarse_proposals": 1, "archive": 1, "fitness_items": 1, "fresh_items": 1, "batch_items": 1,
    "score_batch": 1, "patience": 0, "merges_between": 0, "inner_trials": 0, "inner_child_trials": 0, "inner_tokens": 0,
    "inner_seconds": 0, "trained_parents": 0, "guard_items": 0, "seed": 0, "path_repeats": 1, "path_block": 1,
    "path_patience": 1,
}
"""The smallest values with which the loop can work."""


class SearchKind(StrEnum):
    CMAES = "cmaes"
    M2N2 = "m2n2"
    RANDOM = "random"


class Objective(StrEnum):
    """What a member of an archive is judged by: M2N2's fitness, and what is measured, of which less is better."""

    QUALITY = "quality"
    SIZE = "size"                   # parameters
    LATENCY = "latency"             # time per token, as a ratio to the base
    FORGETTING = "forgetting"       # score lost against the base on search items of the guard tasks


class Space(StrEnum):
    """What is searched: merges in parameter space, paths through layers in data-flow space, or the one after the other
    has run dry.
    """

    PARAMETER = "parameter"
    DATA_FLOW = "data_flow"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class ArchitectureSettings:
    """How the space of merges and paths is searched, and when the inner loop gets the model."""

    space: Space = Space.PARAMETER
    search: SearchKind = SearchKind.CMAES
    operators: tuple[str, ...] = ("task_arithmetic",)   # others have to earn their place: each gets a coarse stage
    groups: int = 2                     # blocks of layers in the fine stage, at most the number of layers
    coarse_proposals: int = 24          # candidates per operator with one weight per parent
    mean: float = 0.5                   # first weight of every parent
    sigma: float = 1 / 6                # first standard deviation of a gene
    fine_sigma: float = 1 / 12          # the same once the coarse optimum is split
    archive: int = 16                   # members M2N2 keeps
    fitness_items: int = 192            # per target task; shared within a generation
    fresh_items: int = 1024             # per target task, drawn anew to compare with the incumbent
    batch_items: int = 128              # fresh items between two looks of a race
    score_batch: int = 64               # rows of every forward pass: the counts above are best multiples of it
    level: float = 0.05                 # one-sided p below which a model becomes working
    patience: int = 24                  # proposals in a row without promotion before the incumbent is trained
    merges_between: int = 12            # proposals after a training before the next one
    inner_trials: int = 6               # child cycles of one training
    inner_child_trials: int = 12        # child cycles that each of them may have in turn
    inner_tokens: int = 2_000_000       # training tokens of one training, all children together
    inner_seconds: float = 900.0        # of one child cycle
    train_survivors: bool = False       # whether a merge that wins is trained before it is promoted
    trained_parents: int = 1            # promoted trained models that join the parents, 8 in all; the latest first
    trained_weight: float = 1.0         # first weight of such a parent
    beside_weight: float = 0.1          # first weight of the others beside it
    objectives: tuple[str, ...] = (Objective.QUALITY,)  # what an archive selects by; more than one: NSGA-II
    separate_splits: bool = False       # whether a crossover splits attention at a point of its own
    most_alike: float = 1.0             # cosine of two members' changes from the base from which they are not mated
    novelty: float = 0.0                # largest difference of a gene within which a point counts as tried; 0: none
    guard_items: int = 0                # search items of each guard on which a winner must not be shown worse
    guard_margin: float = 0.03          # loss on a guard that is borne there
    path_repeats: int = 2               # how many times a path may go through all layers of all models
    path_block: int = 1                 # layers that a path takes or leaves together
    path_growth: float = 1.5            # most layers of a path, as a multiple of the base's
    path_flips: float = 2.0             # places that a first path has otherwise than its template, on average
    path_sigma: float = 0.1             # first standard deviation of the scales at seams
    path_patience: int = 24             # paths in a row without promotion before that search has run dry
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not least <= value <= MOST:
                raise ValueError(f"{name} is {value}, it must be at least {least} and at most {MOST}")
        for name in ("sigma", "fine_sigma", "path_sigma"):
            if not 0 < getattr(self, name) <= 10:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be above 0 and at most 10")
        for name in ("mean", "trained_weight", "beside_weight"):
            if not WEIGHTS.low <= getattr(self, name) <= WEIGHTS.high:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, a weight must be between {WEIGHTS.low:g} and {WEIGHTS.high:g}"
                )
        for name, low, high in (("most_alike", 0, 1), ("novelty", 0, 1), ("guard_margin", 0, 0.99)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be between {low} and {high}")
        if not 0.5 <= self.path_flips <= MOST:
            raise ValueError(f"path_flips is {self.path_flips}, it must be at least 0.5 and at most {MOST}")
        if not 1 <= self.path_growth <= 100:
            raise ValueError(f"path_growth is {self.path_growth}, it must be at least 1 and at most 100")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}, it must be between 0 and 1")
        unknown = [name for name in self.operators if name not in list(Operator)]
        if unknown or not self.operators:
            raise ValueError(f"operators must be some of {', '.join(Operator)}")
        if not any(OPERATORS[Operator(name)].genes for name in self.operators):
            raise ValueError(f"operators need one with genes to search over beside {', '.join(self.operators)}")
        self._check_objectives()

    def _check_objectives(self) -> None:
        if Objective.QUALITY not in self.objectives or any(name not in list(Objective) for name in self.objectives):
            raise ValueError(f"objectives must be quality and some of {', '.join(list(Objective)[1:])}")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives names one of them twice")
        if len(self.objectives) > 1 and self.search is not SearchKind.M2N2:
            raise ValueError(f'objectives beside quality need search = "{SearchKind.M2N2}"')
        if Objective.FORGETTING in self.objectives and not self.guard_items:
            raise ValueError("the objective forgetting needs guard_items of at least 1")

    @property
    def measures(self) -> tuple[str, ...]:
        """The objectives beside quality: what a candidate is measured in."""
        return tuple(name for name in self.objectives if name != Objective.QUALITY)

    def misfit(self, parents: int) -> str | None:
        """The first operator that cannot join so many parents, in words; None where the search can begin."""
        searched = self.operators if self.search is not SearchKind.M2N2 else ()
        return next((
            f"{name} joins {OPERATORS[Operator(name)].joins}, not {parents}"
            for name in searched if not OPERATORS[Operator(name)].fits(parents)
        ), None)
