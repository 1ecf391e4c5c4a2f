"""A short stand-in for how far and which way a model moved from its base, by which models are told apart.

A count sketch (Charikar et al. 2002) of evenly spaced entries of every tensor's change: the cosine of two sketches is
about that of the two changes, and the closer to 1 it is, the more exact. Few entries are read, so that it costs next
to nothing for a model of any size. Invariant: the same two models give the same sketch, whichever tensor comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from state.records import seed_from

WIDTH: Final = 64               # numbers of a sketch
SAMPLES: Final = 1024           # entries read of a tensor, at most
DIGITS: Final = 5


def sketch(model: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> list[float]:
    """WIDTH numbers of length 1 together, or nothing but zeros where no entry moved.

    Tensors that only one of the two has, or that differ in shape, are left out. Raises nothing.
    """
    total = torch.zeros(WIDTH, dtype=torch.float64)
    for name in sorted(model.keys() & base.keys()):
        mine, his = model[name], base[name]
        if mine.is_floating_point() and mine.shape == his.shape and mine.numel():
            total += _of_tensor(name, mine.flatten(), his.flatten())
    length = float(torch.linalg.vector_norm(total))
    return [round(number / length, DIGITS) for number in total.tolist()] if length else [0.0] * WIDTH


def _of_tensor(name: str, mine: Tensor, his: Tensor) -> Tensor:
    """The tensor's part: each entry goes with a sign into one place; both follow from the name."""
    count = min(SAMPLES, mine.numel())
    places = torch.arange(count, dtype=torch.int64) * mine.numel() // count
    moved = (mine[places.to(mine.device)].float() - his[places.to(his.device)].to(mine.device).float()).cpu().double()
    generator = torch.Generator().manual_seed(seed_from("sketch", name))
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    into = torch.randint(0, WIDTH, (count,), generator=generator)
    scale = math.sqrt(mine.numel() / count)                # an entry stands for those that were not read
    return torch.zeros(WIDTH, dtype=torch.float64).index_add_(0, into, moved * signs * scale)
