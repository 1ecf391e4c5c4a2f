"""Merge operators as pure functions of tensors: one kernel for scoring and for writing.

What an operator has to know of a tensor as a whole (angles, a magnitude to cut at) it measures first (`sphere`,
`sparse`); then it joins (`joining`). Which tensor belongs to which weight is the business of `loops.work.build`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from numpy import float64
from numpy.typing import NDArray
from torch import Tensor

from loops.work.joining import Inputs, Join, Prune, filled, linear, sign_elected, sparse_sum, task_arithmetic
from loops.work.sparse import breadcrumbs, dropped, dropped_by_rank, sce, trimmed
from loops.work.sphere import KARCHER_ROUNDS, arc, barycentre, products, stock
from safety.operators import Operator
from state.records import seed_from


def merged(operator: Operator, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor that the operator makes of them, rounded once to `dtype`."""
    return filled(inputs.base, inputs.tensors, JOINS[operator](inputs), dtype)


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """The point at fraction `t` of the arc from `first` to `second`; linear where they are (anti)parallel or zero."""
    both = [first, second]
    return filled(first, both, _sum(arc(products(both), t)))


def drop_seed(seed: int, tensor: str, model: str) -> int:
    """What the mask of one tensor of one parent is drawn from: no order of building can change it."""
    return seed_from("dare", seed, tensor, model)


def passed(parents: int, source: float, scale: float) -> list[float]:
    """Passthrough: the tensor of one parent, scaled: that in whose share of [0, 1] `source` lies, all shares equal."""
    return [scale if place == min(parents - 1, math.floor(source * parents)) else 0.0 for place in range(parents)]


def _sum(weights: Sequence[float]) -> Join:
    return lambda base, tensors: linear(tensors, weights)


def _over(weights: Sequence[float]) -> Join:
    return lambda base, tensors: task_arithmetic(base, tensors, weights)


def _sparse(prune: Callable[[Inputs], Prune], join: Callable[..., Tensor]) -> Callable[[Inputs], Join]:
    def measured(given: Inputs) -> Join:
        cut = prune(given)
        return lambda base, tensors: join(base, tensors, given.genes["weights"], cut)

    return measured


def _on_deltas(given: Inputs) -> NDArray[float64]:
    return products(given.tensors, given.base)


JOINS: Mapping[Operator, Callable[[Inputs], Join]] = {
    Operator.LINEAR: lambda given: _sum(given.genes["weights"]),
    Operator.TASK_ARITHMETIC: lambda given: _over(given.genes["weights"]),
    Operator.SLERP: lambda given: _sum(arc(products(given.tensors), given.genes["t"])),
    Operator.MULTI_SLERP: lambda given: _sum(barycentre(products(given.tensors), given.genes["weights"], 1)),
    Operator.MULTI_SLERP_DELTAS: lambda given: _over(barycentre(_on_deltas(given), given.genes["weights"], 1)),
    Operator.KARCHER: lambda given: _sum(barycentre(products(given.tensors), given.genes["weights"], KARCHER_ROUNDS)),
    Operator.MODEL_STOCK: lambda given: _over(stock(_on_deltas(given))),
    Operator.PASSTHROUGH: lambda given: _sum(passed(len(given.tensors), given.genes["source"], given.genes["scales"])),
    Operator.TIES: _sparse(trimmed, sign_elected),
    Operator.DARE_LINEAR: _sparse(dropped, sparse_sum),
    Operator.DARE_TIES: _sparse(dropped, sign_elected),
    Operator.DELLA_LINEAR: _sparse(dropped_by_rank, sparse_sum),
    Operator.DELLA_TIES: _sparse(dropped_by_rank, sign_elected),
    Operator.BREADCRUMBS: _sparse(breadcrumbs, sparse_sum),
    Operator.BREADCRUMBS_TIES: _sparse(breadcrumbs, sign_elected),
    Operator.SCE: sce,
}
