"""Deltas made sparse: by size, by chance, by both, and by how much the parents differ.

What to cut at is measured over the whole tensor, block by block and exactly; the cut itself goes with the joining.
Masks are drawn on the CPU from the seed of a tensor and parent, so no device, order or block size changes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loops.work.joining import Inputs, Join, Prune, blocks, deltas, divide, elected, linear, matrix, total

SAMPLE = 1 << 18        # entries that tell about where a number of some rank lies
LEVELS = 1 << 16        # of a number drawn for a mask


def at_rank(pieces: Callable[[], Iterator[Tensor]], entries: int, rank: int) -> float:
    """The number that has `rank` smaller ones before it among all `entries` of some pieces, none of them negative.

    Exact, without a copy of all: a sample brackets it (copied, because views would keep the pieces alive), then only
    what lies within the bracket is gathered, or everything where the bracket was wrong. What is at its ends is counted,
    because most entries may be the same: a training in bfloat16 leaves most as they were.
    """
    stride = max(1, entries // SAMPLE)
    sample = np.concatenate([_array(piece.flatten()[:: _across(stride, piece)].clone()) for piece in pieces()])
    if stride == 1:
        return _nth(sample, rank)
    place, slack = rank * len(sample) // entries, 2 * math.isqrt(len(sample))
    low = _nth(sample, place - slack) if place >= slack else -math.inf
    high = _nth(sample, place + slack) if place + slack < len(sample) else math.inf
    below, lows, highs, within = 0, 0, 0, []
    for piece in pieces():
        numbers: Any = piece.numpy() if piece.device.type == "cpu" else piece
        below += int((numbers < low).sum())
        bracketed = _array(numbers[(numbers >= low) & (numbers <= high)])
        within.append(bracketed[(bracketed > low) & (bracketed < high)])
        lowest = int((bracketed == low).sum())
        lows, highs = lows + lowest, highs + len(bracketed) - lowest - len(within[-1])
    gathered, left = np.concatenate(within), rank - below
    if 0 <= left < lows:
        return low
    if lows <= left < lows + len(gathered):
        return _nth(gathered, left - lows)
    if lows + len(gathered) <= left < lows + len(gathered) + highs:
        return high
    return _nth(np.concatenate([_array(piece.flatten()) for piece in pieces()]), rank)


def _across(stride: int, piece: Tensor) -> int:
    """The next stride that visits every column."""
    return next(step for step in count(stride) if step == 1 or math.gcd(step, piece.shape[1]) == 1)


def _nth(numbers: NDArray[np.float32], rank: int) -> float:
    return float(np.partition(numbers, rank)[rank])


def _array(numbers: Tensor | NDArray[np.float32]) -> NDArray[np.float32]:
    return numbers.cpu().numpy() if isinstance(numbers, Tensor) else numbers


def magnitudes(inputs: Inputs, place: int) -> Callable[[], Iterator[Tensor]]:
    """The sizes of one parent's delta, block by block, as often as they are asked for."""
    base, rows = matrix(inputs.base), matrix(inputs.tensors[place])
    return lambda: (deltas(base[at], [rows[at]])[0].abs() for at in blocks(base))


def kept_of(entries: int, share: float) -> int:
    """How many entries a share keeps: rounded up, one at least."""
    return min(entries, max(1, math.ceil(share * entries)))


def trimmed(inputs: Inputs) -> Prune:
    """TIES (arXiv 2306.01708): all but the `density` largest entries are 0; ties at the smallest of them stay."""
    entries, cuts = inputs.base.numel(), []
    for place, density in enumerate(inputs.genes["density"]):
        kept = kept_of(entries, density)
        cuts.append(at_rank(magnitudes(inputs, place), entries, entries - kept) if kept < entries else 0.0)
    return lambda delta, place: _from(delta, cuts[place])


def breadcrumbs(inputs: Inputs) -> Prune:
    """Model Breadcrumbs (arXiv 2312.06795): the share `gamma` of largest entries is 0, and so is the tail of smallest.

    `density` is the share that stays in between (so the paper's beta is 1 - gamma - density); gamma gives way where
    both do not fit, so that nothing is cut at density 1. Ties at either end stay.
    """
    entries, ends = inputs.base.numel(), []
    for place, density in enumerate(inputs.genes["density"]):
        kept = kept_of(entries, density)
        largest = min(entries - kept, math.floor(inputs.genes["gamma"] * entries))
        sizes = magnitudes(inputs, place)
        ends.append((
            at_rank(sizes, entries, entries - largest - kept) if largest + kept < entries else 0.0,
            at_rank(sizes, entries, entries - largest - 1) if largest else math.inf,
        ))

    def prune(delta: Tensor, place: int) -> Tensor:
        low, high = ends[place]
        return _from(delta if high == math.inf else delta - torch.hardshrink(delta, high), low)

    return prune


def _from(delta: Tensor, size: float) -> Tensor:
    """The delta with 0 for all that is smaller than a float32 size."""
    if size == 0.0:
        return delta
    kept: Tensor = torch.hardshrink(delta, float(np.nextafter(np.float32(size), np.float32(0.0))))
    return kept


def dropped(inputs: Inputs) -> Prune:
    """DARE (arXiv 2311.03099): a Bernoulli(density) mask, divided by the density. Masks are drawn on the CPU.

    The chance is the density rounded up to a multiple of 2^-16.
    """
    density, draws = inputs.genes["density"], _draws(inputs.seeds)

    def prune(delta: Tensor, place: int) -> Tensor:
        if density[place] >= 1.0:
            return delta
        kept = draws(delta, place) <= math.ceil(density[place] * LEVELS) - 1
        return divide(delta, density[place]).mul_(torch.from_numpy(kept.astype(np.float32)).to(delta.device))

    return prune


def dropped_by_rank(inputs: Inputs) -> Prune:
    """DELLA's MAGPRUNE (arXiv 2406.11617): each entry is kept with a probability that grows with its rank in its row.

    By size from rank 0 to n - 1, p_r = density - epsilon / 2 + epsilon r / (n - 1); what is kept is divided by its p_r.
    Of entries of one size the first in the row comes first. epsilon gives way where the smallest p would be less than
    half the density or the largest more than 1.
    """
    density, draws = inputs.genes["density"], _draws(inputs.seeds)
    around = [min(inputs.genes["epsilon"] / 2.0, share / 2.0, 1.0 - share) for share in density]

    def prune(delta: Tensor, place: int) -> Tensor:
        if density[place] >= 1.0:
            return delta
        step = 2.0 * around[place] / max(1, delta.shape[1] - 1)
        least = density[place] - (around[place] if delta.shape[1] > 1 else 0.0)
        ladder = torch.arange(delta.shape[1], dtype=torch.float32, device=delta.device) * step + least
        chance = torch.empty_like(delta).scatter_(1, by_size(delta), ladder.expand_as(delta))
        drawn = torch.from_numpy(draws(delta, place).astype(np.float32)).to(delta.device)
        return delta / chance * (drawn < chance * LEVELS)

    return prune


def by_size(delta: Tensor) -> Tensor:
    """The columns of each row from the smallest to the largest entry, the first of equals first.

    Size and column make one whole number, of which no two are equal: the order is the same whatever sorts it.
    """
    columns = torch.arange(delta.shape[1], device=delta.device)
    keys = delta.abs().contiguous().view(torch.int32).long() << 32 | columns
    ordered = torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort().values
    return ordered & 0xFFFFFFFF


def _draws(seeds: Sequence[int]) -> Callable[[Tensor, int], NDArray[np.uint16]]:
    """Numbers below `LEVELS` for each entry of some rows, all equally likely, from an SFC64 for each parent.

    Every row begins with a 64-bit number of its own and takes four from each, so they are the same however the rows are
    cut up.
    """
    streams = [np.random.SFC64(seed) for seed in seeds]

    def draws(delta: Tensor, place: int) -> NDArray[np.uint16]:
        rows, columns = delta.shape
        words = -(-columns // 4)
        drawn: NDArray[np.uint16] = streams[place].random_raw(rows * words).view(np.uint16)
        return drawn.reshape(rows, 4 * words)[:, :columns]

    return draws


def sce(inputs: Inputs) -> Join:
    """SCE (arXiv 2408.07990): select, calculate, erase; then base + sum_i eta_i delta'_i.

    Selected are the share `tau` of positions where the deltas vary most among the parents (ties stay), the rest is 0 in
    all of them; eta_i is the share of parent i in the sum of squares of what was selected, all parents together; erased
    is what is not of the sign of the sum of the deltas at its position.
    """
    base, rows = matrix(inputs.base), [matrix(tensor) for tensor in inputs.tensors]

    def in_blocks() -> Iterator[list[Tensor]]:
        return (deltas(base[at], [each[at] for each in rows]) for at in blocks(base))

    entries = inputs.base.numel()
    kept = kept_of(entries, inputs.genes["tau"])
    cut = at_rank(lambda: map(variance, in_blocks()), entries, entries - kept) if kept < entries else 0.0

    def selected(block: Sequence[Tensor]) -> list[Tensor]:
        varied = variance(block) >= cut
        return [delta * varied for delta in block]

    energies = [0.0] * len(rows)
    for block in in_blocks():
        for place, delta in enumerate(selected(block)):
            energies[place] += float(delta.double().square().sum())
    shares = [energy / math.fsum(energies) if math.fsum(energies) > 0.0 else 0.0 for energy in energies]

    def join(base: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        sign, agreeing = elected(selected(deltas(base, tensors)))
        return base.float() + sign * linear(agreeing, shares)

    return join


def variance(block: Sequence[Tensor]) -> Tensor:
    """Of each entry among the tensors, times the square of their number: exactly 0 where they are all the same."""
    differences = [(one - other).square() for one, other in combinations(block, 2)]
    return total(differences) if differences else torch.zeros_like(block[0])
