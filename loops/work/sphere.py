"""Merges on the sphere and by angles: how much of each tensor goes into the result.

All of them stay in the span of the tensors, so the products between tensors, measured in double precision, are all
there is to know: what comes out is a weight for each tensor, and joining is a sum. Deterministic; a few numbers, and no
tensors beyond `products`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loops.work.joining import blocks, deltas, matrix

STRAIGHT = 1e-6         # below this sine two directions count as parallel
SETTLED = 1e-7          # a step on the unit sphere that float32 does not tell from none
KARCHER_ROUNDS = 24

def products(tensors: Sequence[Tensor], base: Tensor | None = None) -> NDArray[np.float64]:
    """<theta_i, theta_j> of all pairs, or <delta_i, delta_j> over a base, in double precision; n x n."""
    gram = torch.zeros(len(tensors), len(tensors), dtype=torch.float64, device=tensors[0].device)
    rows = [matrix(tensor) for tensor in tensors]
    for at in blocks(rows[0]):
        block = [each[at] for each in rows]
        block = block if base is None else deltas(matrix(base)[at], block)
        doubles = [each.double() for each in block]
        for i, j in itertools.combinations_with_replacement(range(len(doubles)), 2):
            gram[i, j] += (doubles[i] * doubles[j]).sum()           # a product of matrices this thin waits for threads
    return (gram + gram.triu(1).T).cpu().numpy()


def arc(gram: NDArray[np.float64], t: float) -> list[float]:
    """How much of either tensor is in the point at fraction t of the arc between them (Shoemake 1985).

    sin((1-t) omega) / sin omega and sin(t omega) / sin omega for the angle omega; linear where that sine is tiny.
    """
    length = math.sqrt(gram[0, 0] * gram[1, 1])
    cosine = float(gram[0, 1]) / length if length > 0.0 else 1.0
    omega = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(omega) < STRAIGHT:
        return [1.0 - t, t]
    return [math.sin((1.0 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)]


def barycentre(gram: NDArray[np.float64], weights: Sequence[float], rounds: int) -> list[float]:
    """How much of each tensor is in their weighted mean on the sphere.

    Directions u_i = theta_i / |theta_i|; m_0 = sum_i w_i u_i, scaled to length 1; in each round m becomes
    exp_m(sum_i (w_i / sum_j w_j) log_m u_i), with log_m u = (omega / sin omega)(u - cos(omega) m) for the angle omega
    between m and u, and exp_m v = cos|v| m + sin|v| v / |v| (Buss and Fillmore 2001, "Spherical averages", A1). One
    round is multi-SLERP; the fixed point is the Karcher mean, where the sum of the w_i omega_i^2 is least. The result
    has length sum_i w_i |theta_i|, so weights amplify here as elsewhere: twice the weights are twice the tensor, all
    weights 0 are zero, one parent at weight 1 is that parent. A tensor of zeros has no direction and no length; what
    lies opposite to m pulls nowhere; where the directions cancel out the mean is linear.
    ValueError for a weight below 0.
    """
    share, lengths = np.array(weights, dtype=np.float64), np.sqrt(np.diagonal(gram))
    if (share < 0.0).any():
        raise ValueError("a weight on the sphere must not be below 0")
    seen = (share > 0.0) & (lengths > 0.0)
    if not seen.any():
        return [0.0] * len(weights)
    units = np.where(seen, lengths, 1.0)
    share, cosines = np.where(seen, share, 0.0) / share[seen].sum(), gram / np.outer(units, units)
    np.fill_diagonal(cosines, 1.0)
    mean = share / max(STRAIGHT, _norm(share, cosines))
    if _norm(share, cosines) < STRAIGHT:
        return [float(weight) for weight in weights]
    for _ in range(rounds):
        along = np.clip(cosines @ mean, -1.0, 1.0)
        omega = np.arccos(along)
        bent = np.sin(omega) > STRAIGHT
        pull = share * np.where(bent, omega / np.where(bent, np.sin(omega), 1.0), along > 0.0)
        step = pull - (pull @ along) * mean
        length = _norm(step, cosines)
        if length < SETTLED:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * step
        mean = mean / _norm(mean, cosines)
    return [float(part) for part in float(np.dot(weights, lengths)) * mean / units]


def stock(gram: NDArray[np.float64]) -> list[float]:
    """Model Stock (arXiv 2403.19522): t / n of each delta, with t = n c / (1 + (n - 1) c).

    c is the mean cosine between the deltas of two parents; where it is below 0 the centre is the base itself. A delta
    of zeros is at right angles to every other.
    """
    count, lengths = len(gram), np.sqrt(np.diagonal(gram))
    pairs = [
        gram[i, j] / (lengths[i] * lengths[j]) if lengths[i] * lengths[j] > 0.0 else 0.0
        for i in range(count) for j in range(i)
    ]
    cosine = min(1.0, max(0.0, math.fsum(pairs) / len(pairs))) if pairs else 1.0
    return [cosine / (1.0 + (count - 1) * cosine)] * count


def _norm(parts: NDArray[np.float64], cosines: NDArray[np.float64]) -> float:
    """Length of a point given by its parts of each direction."""
    return math.sqrt(max(0.0, float(parts @ cosines @ parts)))
