"""Merge operators as pure functions of tensors: one kernel for scoring and for writing.

Every operator accumulates in float32 and returns float32; multiplication and addition are separate operations, so
that no device fuses them and the same inputs give the same bits wherever a candidate is built. Which tensor belongs
to which weight is the business of `loops.work.build`. Here delta_i = theta_i - base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from state.records import seed_from

STRAIGHT = 1e-6     # below this sine two tensors count as parallel and SLERP is linear
Prune = Callable[[Tensor, int], Tensor]
"""A sparsified delta, given the delta and its place among the parents."""


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i theta_i. A weight of exactly 0 leaves its tensor unread."""
    total: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight == 0.0:
            continue
        term = tensor.float() if weight == 1.0 else tensor.float() * weight
        total = term if total is None else total + term
    return torch.zeros_like(tensors[0], dtype=torch.float32) if total is None else total


def task_arithmetic(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """base + sum_i w_i delta_i (arXiv 2212.04089), summed as (1 - sum_i w_i) base + sum_i w_i theta_i.

    So the base alone at weights 0, and a parent alone at weight 1, come back bit for bit.
    """
    return linear([base, *tensors], [1.0 - math.fsum(weights), *weights])


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """The point at fraction `t` of the arc from `first` to `second`; linear where they are (anti)parallel or zero."""
    a, b = first.double().flatten(), second.double().flatten()
    length = float(a.norm() * b.norm())
    cosine = float(a @ b) / length if length > 0.0 else 1.0
    omega = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(omega) < STRAIGHT:
        return linear([first, second], [1.0 - t, t])
    return linear([first, second], [math.sin((1.0 - t) * omega) / math.sin(omega),
                                    math.sin(t * omega) / math.sin(omega)])


def top_magnitudes(delta: Tensor, density: float) -> Tensor:
    """`delta` with all but its largest entries set to 0; ties at the threshold stay. Density 1 keeps everything."""
    kept = max(1, math.ceil(density * delta.numel()))
    if kept >= delta.numel():
        return delta
    sizes = delta.abs()
    threshold = sizes.flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(sizes >= threshold, delta, 0.0)


def dropped(delta: Tensor, density: float, seed: int) -> Tensor:
    """DARE (arXiv 2311.03099): a Bernoulli(density) mask drawn on the CPU from `seed`, divided by the density."""
    if density >= 1.0:
        return delta
    draws = torch.rand(delta.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(draws.to(delta.device) < density, delta / density, 0.0)


def sparse_sum(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], prune: Prune) -> Tensor:
    """base + sum_i w_i prune(delta_i): DARE with linear joining."""
    deltas = [prune(tensor.float() - base.float(), place) for place, tensor in enumerate(tensors)]
    return base.float() + linear(deltas, weights)


def sign_elected(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], prune: Prune) -> Tensor:
    """base + the mean over those w_i prune(delta_i) that agree with the sign that has the greater mass.

    TIES (arXiv 2306.01708) with its scale taken into the weights, so that they amplify here as elsewhere.
    """
    if all(weight == 0.0 for weight in weights):
        return base.float()
    deltas = torch.stack([
        prune(tensor.float() - base.float(), place) * weight
        for place, (tensor, weight) in enumerate(zip(tensors, weights, strict=True))
    ])
    agreeing = (deltas.sign() == deltas.sum(0).sign()) & (deltas != 0)
    return base.float() + torch.where(agreeing, deltas, 0.0).sum(0) / agreeing.sum(0).clamp(min=1)


def drop_seed(seed: int, tensor: str, model: str) -> int:
    """What the mask of one tensor of one parent is drawn from: no order of building can change it."""
    return seed_from("dare", seed, tensor, model)
