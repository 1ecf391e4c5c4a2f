"""What an architecture candidate varies: a frozen definition of what may vary, and a genotype, a point in it.

A genotype is a flat vector of floats; a change is the same point as self-sufficient JSON, which is what the ledger
keeps and the jobs build from. Nothing here touches tensors. Invariant: `vector(change(v)) == v` for every v within
the limits, and the coarse point and its refinement describe the same model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from loops.architecture.paths import PATH
from safety.operators import OPERATORS, Gene
from safety.operators import Operator as Operator
from state.records import JsonObject

MODULES = ("attention", "mlp", "other")
DIGITS = 6                      # a gene is rounded when it is drawn, so that its JSON text is short and exact


@dataclass(frozen=True, slots=True)
class Definition:
    """What may vary in a merge of `parents` over `base`: the genes that `safety.operators` gives its operator.

    `groups` blocks of layers times three kinds of module are the cells: a gene of cells has a number for each of them;
    `shared` gives all of them one. `seed` is what randomised operators draw from.
    """

    operator: Operator
    base: str
    parents: tuple[str, ...]
    groups: int = 1
    shared: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError("a merge needs at least one group of layers")
        if not OPERATORS[self.operator].fits(len(self.parents)):
            raise ValueError(f"{self.operator} joins {OPERATORS[self.operator].joins}, not {len(self.parents)}")

    @property
    def genes(self) -> tuple[Gene, ...]:
        return OPERATORS[self.operator].genes

    @property
    def cells(self) -> int:
        """Numbers of a gene of cells: one where shared, else one per block of layers and module."""
        return 1 if self.shared else self.groups * len(MODULES)

    @property
    def dimensions(self) -> int:
        return len(self.limits())

    def limits(self) -> list[tuple[float, float]]:
        """Lowest and highest value of each number of the genotype: gene by gene, parent by parent, cell by cell."""
        return [(gene.low, gene.high) for gene in self.genes for _ in range(self._rows(gene) * self._width(gene))]

    def centre(self, weights: Sequence[float]) -> list[float]:
        """The point where every gene is where a search begins; `weights` has one for each parent."""
        return [
            weights[row] if gene.first is None else gene.first
            for gene in self.genes for row in range(self._rows(gene)) for _ in range(self._width(gene))
        ]

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
        for gene, rows in self._split(vector):
            values = [self._table(row) if gene.per_cell else row[0] for row in rows]
            body[gene.name] = values if gene.per_parent else values[0]
        return body

    def vector(self, change: JsonObject) -> list[float]:
        """The genotype of a change of this definition."""
        return [
            number for gene in self.genes for value in _by_parent(gene, change[gene.name])
            for number in (self._row(value) if gene.per_cell else [value])
        ]

    def refine(self, vector: Sequence[float], groups: int) -> tuple[Definition, list[float]]:
        """The same point with `groups` times three numbers in a gene of cells, from a point of a shared definition."""
        if not self.shared:
            raise ValueError("only a shared definition can be refined")
        fine = replace(self, groups=groups, shared=False)
        rows = [(gene, row) for gene, rows in self._split(vector) for row in rows]
        return fine, [number for gene, row in rows for number in row * fine._width(gene)]

    def _rows(self, gene: Gene) -> int:
        return len(self.parents) if gene.per_parent else 1

    def _width(self, gene: Gene) -> int:
        return self.cells if gene.per_cell else 1

    def _split(self, vector: Sequence[float]) -> Iterator[tuple[Gene, list[list[float]]]]:
        """Every gene with its numbers: a row of them for each parent, or a single row."""
        numbers = iter(vector)
        for gene in self.genes:
            yield gene, [list(islice(numbers, self._width(gene))) for _ in range(self._rows(gene))]

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


def genes_at(change: JsonObject, group: int, module: int, order: Sequence[int]) -> dict[str, Any]:
    """The genes of a merge that apply in one cell: numbers, or lists of them by parent in the given order."""
    found: dict[str, Any] = {}
    for gene in OPERATORS[Operator(change["operator"])].genes:
        values = _by_parent(gene, change[gene.name])
        numbers = [value[group][module] if gene.per_cell else value for value in values]
        found[gene.name] = [numbers[place] for place in order] if gene.per_parent else numbers[0]
    return found


def models_of(change: JsonObject) -> list[str]:
    """Digests of every model that a merge, crossover or path is built from, each once, in a fixed order."""
    return sorted({*change["parents"], *([change["base"]] if "base" in change else [])})


def template_of(change: JsonObject) -> str:
    """The model whose config, tokenizer, tensor names and dtypes the result has: the change's base, which a merge has
    and a crossover of adapters, or else its first parent. A path's is always its first parent.
    """
    first = change["parents"][0]
    return str(first if change["kind"] == PATH else change.get("base", first))


def _by_parent(gene: Gene, value: Any) -> list[Any]:
    values: list[Any] = value if gene.per_parent else [value]
    return values
