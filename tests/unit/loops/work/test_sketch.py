"""Sketches tell the directions of two changes apart."""

from __future__ import annotations

import math

import pytest
import torch

from loops.architecture.novelty import cosine
from loops.work.sketch import WIDTH, sketch


def model(seed: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (64, 96), "b.weight": (7, 3), "norm": (32,)}
    return {name: size * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def moved(base: dict[str, torch.Tensor], by: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + by[name] for name, tensor in base.items()}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 2.0])
def test_the_cosine_of_two_sketches_is_about_that_of_the_changes(share: float) -> None:
    base, one, two = model(0), model(1, 0.01), model(2, 0.01)
    other = {name: tensor + share * two[name] for name, tensor in one.items()}
    flat = [torch.cat([tensor.flatten() for tensor in change.values()]) for change in (one, other)]
    exact = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    found = cosine(sketch(moved(base, one), base), sketch(moved(base, other), base))
    assert math.isclose(found, exact, abs_tol=4 * (1 - exact**2) / math.sqrt(WIDTH) + 1e-4)


def test_a_sketch_has_length_one_and_depends_on_no_order_and_no_size() -> None:
    base, one = model(0), model(1)
    found = sketch(moved(base, one), base)
    assert math.isclose(math.fsum(x * x for x in found), 1.0, abs_tol=1e-3)
    turned = {name: moved(base, one)[name] for name in reversed(base)}
    assert sketch(turned, base) == found
    half = sketch(moved(base, {name: tensor / 2 for name, tensor in one.items()}), base)
    assert cosine(half, found) > 0.9999


def test_the_base_itself_has_an_empty_sketch_and_other_tensors_do_not_count() -> None:
    base = model(0)
    assert sketch(base, base) == [0.0] * WIDTH
    odd = {**base, "extra": torch.ones(3), "b.weight": torch.ones(2, 2), "count": torch.ones(1, dtype=torch.int64)}
    assert sketch(odd, {**base, "count": torch.zeros(1, dtype=torch.int64)}) == [0.0] * WIDTH
