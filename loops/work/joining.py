"""How tensors of one shape are joined: sums, block of rows by block of rows.

Everything accumulates in float32; multiplication and addition are separate operations, so that no device fuses them
and the same inputs give the same bits wherever a candidate is built. A join is the same arithmetic for every entry, so
only a block of rows is ever in the works. Here delta_i = theta_i - base. Not here: what has to be known of a tensor as
a whole before it is joined (`sphere`, `sparse`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 17         # entries worked on at a time on a CPU: enough that threads rarely wait for each other in Python
DEVICE_BLOCK = 1 << 26  # the same on an accelerator

Join = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""The merged rows in float32, given the same rows of the base and of the parents. Blocks come once each, in order."""
Prune = Callable[[Tensor, int], Tensor]
"""A sparsified delta, given the rows of the delta, which it may overwrite, and its place among the parents. Blocks come
once each, in order.
"""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One tensor of every model of a merge, and the genes that apply to it.

    `tensors`, `seeds` and the genes told apart by parent are in the same order. An operator that is not over a base
    never looks at `base`. `seeds` are what the masks of the parents are drawn from.
    """

    base: Tensor
    tensors: Sequence[Tensor]
    genes: Mapping[str, Any]
    seeds: Sequence[int]


def filled(base: Tensor, tensors: Sequence[Tensor], join: Join, dtype: torch.dtype = torch.float32) -> Tensor:
    """What `join` makes of the tensors, block by block."""
    made = torch.empty(base.shape, dtype=dtype, device=base.device)
    rows_of_made, rows_of_base, rows = matrix(made), matrix(base), [matrix(tensor) for tensor in tensors]
    for at in blocks(rows_of_base):
        rows_of_made[at] = join(rows_of_base[at], [each[at] for each in rows])
    return made


def matrix(tensor: Tensor) -> Tensor:
    """The tensor as rows: its first dimension against all others; a single row where it has but one."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(1, -1)


def blocks(rows: Tensor) -> Iterator[slice]:
    """Whole rows, about `BLOCK` entries at a time."""
    step = max(1, (BLOCK if rows.device.type == "cpu" else DEVICE_BLOCK) // max(1, rows.shape[1]))
    return (slice(start, start + step) for start in range(0, rows.shape[0], step))


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i theta_i. A weight of exactly 0 leaves its tensor unread."""
    total: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight == 0.0:
            continue
        term = tensor * weight if tensor.dtype == torch.float32 else tensor.float().mul_(weight)
        total = term if total is None else total.add_(term)
    return torch.zeros_like(tensors[0], dtype=torch.float32) if total is None else total


def task_arithmetic(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """base + sum_i w_i delta_i (arXiv 2212.04089), summed as (1 - sum_i w_i) base + sum_i w_i theta_i.

    So the base alone at weights 0, and a parent alone at weight 1, come back bit for bit.
    """
    return linear([base, *tensors], [1.0 - math.fsum(weights), *weights])


def sparse_sum(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], prune: Prune) -> Tensor:
    """base + sum_i w_i prune(delta_i): linear joining."""
    base = base.float()
    return base + linear([prune(delta, place) for place, delta in enumerate(deltas(base, tensors))], weights)


def sign_elected(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], prune: Prune) -> Tensor:
    """base + the mean over those w_i prune(delta_i) that agree with the sign that has the greater mass.

    TIES (arXiv 2306.01708) with its scale taken into the weights, so that they amplify here as elsewhere.
    """
    base = base.float()
    terms = [prune(delta, place).mul_(weights[place]) for place, delta in enumerate(deltas(base, tensors))]
    sign, agreeing = elected(terms)
    return (total(agreeing) / total([each.sign() for each in agreeing]).clamp_(min=1.0)).mul_(sign).add_(base)


def elected(terms: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The sign of their sum, and the sizes of those that have it; 0 for those that have not. Overwrites them."""
    sign = total(terms).sign()
    return sign, [term.mul_(sign).clamp_(min=0.0) for term in terms]


def total(terms: Sequence[Tensor]) -> Tensor:
    """Their sum, from the first to the last, whatever the shape."""
    return functools.reduce(lambda left, right: left + right, terms)


def divide(tensor: Tensor, by: float) -> Tensor:
    """In place, by a number on the same device: by one that is elsewhere, some devices multiply with its inverse."""
    return tensor.div_(torch.tensor(by, dtype=torch.float32, device=tensor.device))


def deltas(base: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """theta_i - base, each in memory of its own."""
    base = base.float()
    return [tensor - base if tensor.dtype == torch.float32 else tensor.float().sub_(base) for tensor in tensors]
