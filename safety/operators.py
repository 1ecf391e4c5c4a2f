"""The merge operators that there are, and the genes of each: the vocabulary of changes of kind "merge".

One table: the genome takes from it what may vary, admission what must be there and in range, bounds.toml the names.
Standard library only. Not here: what an operator does to tensors (`loops.work.merge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MOST_PARENTS = 8


class Operator(StrEnum):
    LINEAR = "linear"
    TASK_ARITHMETIC = "task_arithmetic"
    SLERP = "slerp"
    TIES = "ties"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"
    MULTI_SLERP = "multi_slerp"
    MULTI_SLERP_DELTAS = "multi_slerp_deltas"
    KARCHER = "karcher"
    DELLA_LINEAR = "della_linear"
    DELLA_TIES = "della_ties"
    BREADCRUMBS = "breadcrumbs"
    BREADCRUMBS_TIES = "breadcrumbs_ties"
    SCE = "sce"
    MODEL_STOCK = "model_stock"
    PASSTHROUGH = "passthrough"


@dataclass(frozen=True, slots=True)
class Gene:
    """Numbers of a merge under one name, its key in a change, each of them at least `low` and at most `high`.

    The value is a number; `per_cell` a table of numbers by block of layers and module; `per_parent` a list of either,
    one for each parent. A search begins at `first`; None: at the weights that it is given.
    """

    name: str
    low: float
    high: float
    first: float | None
    per_parent: bool = False
    per_cell: bool = False


WEIGHTS: Final = Gene("weights", 0.0, 2.5, None, per_parent=True, per_cell=True)   # evolved optima amplify: 2403.13187
ANGLE: Final = Gene("t", 0.0, 1.0, 0.5, per_cell=True)
SOURCE: Final = Gene("source", 0.0, 1.0, 0.5, per_cell=True)        # [0, 1] cut evenly among the parents
SCALES: Final = Gene("scales", 0.0, 2.5, 1.0, per_cell=True)
DENSITY: Final = Gene("density", 0.1, 1.0, 0.8, per_parent=True)
EPSILON: Final = Gene("epsilon", 0.0, 1.0, 0.2)
GAMMA: Final = Gene("gamma", 0.0, 0.5, 0.05)
TAU: Final = Gene("tau", 0.05, 1.0, 0.5, per_cell=True)


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of an operator without its arithmetic.

    `over_base`: it adds differences from the base to it; `symmetric`: the order of the parents means nothing.
    """

    genes: tuple[Gene, ...]
    over_base: bool = True
    symmetric: bool = True
    fewest: int = 1
    most: int = MOST_PARENTS

    def fits(self, parents: int) -> bool:
        return self.fewest <= parents <= self.most

    @property
    def joins(self) -> str:
        """In words, how many parents it takes."""
        return f"exactly {self.most} parents" if self.fewest == self.most else f"{self.fewest} to {self.most} parents"


SPARSE: Final = Traits((WEIGHTS, DENSITY))
OPERATORS: Final[Mapping[Operator, Traits]] = {
    Operator.LINEAR: Traits((WEIGHTS,), over_base=False),
    Operator.TASK_ARITHMETIC: Traits((WEIGHTS,)),
    Operator.SLERP: Traits((ANGLE,), over_base=False, symmetric=False, fewest=2, most=2),
    Operator.TIES: SPARSE,
    Operator.DARE_LINEAR: SPARSE,
    Operator.DARE_TIES: SPARSE,
    Operator.MULTI_SLERP: Traits((WEIGHTS,), over_base=False),
    Operator.MULTI_SLERP_DELTAS: Traits((WEIGHTS,)),
    Operator.KARCHER: Traits((WEIGHTS,), over_base=False),
    Operator.DELLA_LINEAR: Traits((WEIGHTS, DENSITY, EPSILON)),
    Operator.DELLA_TIES: Traits((WEIGHTS, DENSITY, EPSILON)),
    Operator.BREADCRUMBS: Traits((WEIGHTS, DENSITY, GAMMA)),
    Operator.BREADCRUMBS_TIES: Traits((WEIGHTS, DENSITY, GAMMA)),
    Operator.SCE: Traits((TAU,)),
    Operator.MODEL_STOCK: Traits(()),
    Operator.PASSTHROUGH: Traits((SOURCE, SCALES), over_base=False, symmetric=False),
}
