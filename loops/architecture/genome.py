"""What an architecture candidate varies: a frozen definition of what may vary, and a genotype, a point in it.

A genotype is a flat vector of floats; a change is the same point as self-sufficient JSON, which is what the ledger
keeps and the jobs build from. Nothing here touches tensors. Invariant: `vector(change(v)) == v` for every v within
the limits, and the coarse point and its refinement describe the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from state.records import JsonObject

MODULES = ("attention", "mlp", "other")
WEIGHT_LIMITS = (0.0, 2.5)      # not a simplex: evolved optima amplify (arXiv 2403.13187)
DENSITY_LIMITS = (0.1, 1.0)
ANGLE_LIMITS = (0.0, 1.0)
FIRST_DENSITY = 0.8
DIGITS = 6                      # a gene is rounded when it is drawn, so that its JSON text is short and exact


class Operator(StrEnum):
    LINEAR = "linear"
    TASK_ARITHMETIC = "task_arithmetic"
    SLERP = "slerp"
    TIES = "ties"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"


SPARSE = frozenset({Operator.TIES, Operator.DARE_LINEAR, Operator.DARE_TIES})


@dataclass(frozen=True, slots=True)
class Definition:
    """What may vary in a merge of `parents` over `base`.

    `groups` blocks of layers times three kinds of module have a weight each; `shared` gives all of them one weight
    per parent. `seed` is what randomised operators draw from.
    """

    operator: Operator
    base: str
    parents: tuple[str, ...]
    groups: int = 1
    shared: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.groups < 1 or not self.parents:
            raise ValueError("a merge needs at least one group of layers and one parent")
        if self.operator is Operator.SLERP and len(self.parents) != 2:
            raise ValueError(f"slerp joins exactly two parents, not {len(self.parents)}")

    @property
    def cells(self) -> int:
        """Genes per parent: one where shared, else one per block of layers and module."""
        return 1 if self.shared else self.groups * len(MODULES)

    @property
    def dimensions(self) -> int:
        return len(self.limits())

    def limits(self) -> list[tuple[float, float]]:
        """Lowest and highest value of each gene: weights (or angles) first, then one density per parent."""
        if self.operator is Operator.SLERP:
            return [ANGLE_LIMITS] * self.cells
        weights = [WEIGHT_LIMITS] * (self.cells * len(self.parents))
        return weights + [DENSITY_LIMITS] * (len(self.parents) if self.operator in SPARSE else 0)

    def centre(self, weights: Sequence[float]) -> list[float]:
        """The point where each parent has its one weight of `weights`; densities and angles start in mid-range."""
        if self.operator is Operator.SLERP:
            return [0.5] * self.cells
        spread = [weight for weight in weights for _ in range(self.cells)]
        return spread + [FIRST_DENSITY] * (len(self.parents) if self.operator in SPARSE else 0)

    def change(self, vector: Sequence[float]) -> JsonObject:
        """The genome as JSON. ValueError for a vector of the wrong length or outside the limits."""
        limits = self.limits()
        if len(vector) != len(limits):
            raise ValueError(f"the genotype has {len(vector)} genes, the definition {len(limits)}")
        if not all(low <= gene <= high for gene, (low, high) in zip(vector, limits, strict=True)):
            raise ValueError("the genotype leaves the limits of its definition")
        body: JsonObject = {
            "kind": "merge", "operator": str(self.operator), "base": self.base, "parents": list(self.parents),
            "groups": self.groups, "modules": list(MODULES), "seed": self.seed,
        }
        if self.operator is Operator.SLERP:
            return {**body, "t": self._table(vector)}
        table = [self._table(vector[i * self.cells : (i + 1) * self.cells]) for i in range(len(self.parents))]
        body = {**body, "weights": table}
        return {**body, "density": list(vector[-len(self.parents) :])} if self.operator in SPARSE else body

    def vector(self, change: JsonObject) -> list[float]:
        """The genotype of a change of this definition."""
        if self.operator is Operator.SLERP:
            return self._row(change["t"])
        genes = [gene for table in change["weights"] for gene in self._row(table)]
        return genes + (list(change["density"]) if self.operator in SPARSE else [])

    def refine(self, vector: Sequence[float], groups: int) -> tuple[Definition, list[float]]:
        """The same point with `groups` times three genes per parent, from a point of a shared definition."""
        if not self.shared:
            raise ValueError("only a shared definition can be refined")
        fine = replace(self, groups=groups, shared=False)
        if self.operator is Operator.SLERP:
            return fine, [vector[0]] * fine.cells
        weights = [gene for gene in vector[: len(self.parents)] for _ in range(fine.cells)]
        return fine, weights + list(vector[len(self.parents) :])

    def to_json(self) -> JsonObject:
        return {
            "operator": str(self.operator), "base": self.base, "parents": list(self.parents), "groups": self.groups,
            "shared": self.shared, "seed": self.seed,
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> Definition:
        return cls(**{**body, "operator": Operator(body["operator"]), "parents": tuple(body["parents"])})

    def _table(self, genes: Sequence[float]) -> list[list[float]]:
        if self.shared:
            return [[genes[0]] * len(MODULES) for _ in range(self.groups)]
        width = len(MODULES)
        return [list(genes[group * width : (group + 1) * width]) for group in range(self.groups)]

    def _row(self, table: list[list[float]]) -> list[float]:
        return [table[0][0]] if self.shared else [gene for group in table for gene in group]


def models_of(change: JsonObject) -> list[str]:
    """Digests of every model that a merge or crossover is built from, each once, in a fixed order."""
    return sorted({*change["parents"], template_of(change)})


def template_of(change: JsonObject) -> str:
    """The model whose config, tokenizer, tensor names and dtypes the result has."""
    return str(change["base"] if change["kind"] == "merge" else change["parents"][0])
