"""What the parts of the merge operators do: the sphere, the cuts, the masks, each against its definition."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loops.work import joining, merge, sparse, sphere
from safety.operators import Operator

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)


def drawn(seed: int) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))


@quick
@given(seeds)
def test_slerp_starts_and_ends_at_its_parents_bit_for_bit(seed: int) -> None:
    a, b = drawn(seed), drawn(seed + 1)
    assert torch.equal(merge.slerp(a, b, 0.0), a)
    assert torch.equal(merge.slerp(a, b, 1.0), b)


@quick
@given(seeds, st.floats(0.0, 1.0, allow_subnormal=False), st.floats(0.1, 3.0))
def test_slerp_of_parallel_tensors_is_linear_and_finite(seed: int, t: float, scale: float) -> None:
    a = drawn(seed)
    assert torch.allclose(merge.slerp(a, a * scale, t), a * (1 - t + t * scale), atol=1e-4)
    assert torch.equal(merge.slerp(torch.zeros(3), torch.zeros(3), t), torch.zeros(3))


def directions(seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(40, generator=generator, dtype=torch.float64) + 1.0 for _ in range(count)]
    return [each / each.norm() for each in drawn]


def on_sphere(tensors: list[Tensor], share: list[float], rounds: int) -> Tensor:
    parts = sphere.barycentre(sphere.products(tensors), share, rounds)
    return joining.total([part * tensor for part, tensor in zip(parts, tensors, strict=True)])


@quick
@given(seeds, st.lists(st.floats(0.05, 2.5), min_size=2, max_size=8))
def test_at_the_karcher_mean_the_pulls_of_all_parents_cancel_out(seed: int, share: list[float]) -> None:
    tensors = directions(seed, len(share))
    mean = on_sphere(tensors, share, sphere.KARCHER_ROUNDS)
    assert abs(float(mean.norm()) - sum(share)) < 1e-9
    mean = mean / mean.norm()
    pull = torch.zeros_like(mean)
    for tensor, weight in zip(tensors, share, strict=True):
        omega = math.acos(float(tensor @ mean))
        pull += weight / sum(share) * omega / math.sin(omega) * (tensor - math.cos(omega) * mean)
    assert float(pull.norm()) < 2 * sphere.SETTLED


@quick
@given(seeds, st.floats(0.05, 0.95))
def test_between_two_directions_of_one_length_the_karcher_mean_is_slerp(seed: int, t: float) -> None:
    a, b = directions(seed, 2)
    arc = sphere.arc(sphere.products([a, b]), t)
    assert torch.allclose(on_sphere([a, b], [1.0 - t, t], sphere.KARCHER_ROUNDS), arc[0] * a + arc[1] * b, atol=1e-6)


@quick
@given(seeds, st.lists(st.floats(0.05, 1.0), min_size=2, max_size=8), st.floats(0.1, 2.5), st.integers(1, 3))
def test_weights_amplify_on_the_sphere_as_elsewhere(seed: int, share: list[float], by: float, rounds: int) -> None:
    tensors = directions(seed, len(share))
    assert torch.allclose(on_sphere(tensors, [by * part for part in share], rounds),
                          by * on_sphere(tensors, share, rounds), atol=1e-6)


def test_directions_that_cancel_out_are_joined_in_line() -> None:
    a = directions(1, 1)[0]
    assert torch.equal(on_sphere([a, -a], [0.5, 0.5], 1), torch.zeros(40, dtype=torch.float64))
    with pytest.raises(ValueError, match="below 0"):
        on_sphere([a, a], [0.5, -0.5], 1)


@pytest.mark.parametrize(("cosine", "share"), [(1.0, 1.0), (0.5, 2 / 3), (0.0, 0.0), (-0.5, 0.0)])
def test_model_stock_leans_on_the_parents_as_far_as_they_agree(cosine: float, share: float) -> None:
    gram = np.array([[4.0, 2.0 * cosine], [2.0 * cosine, 1.0]])
    assert sphere.stock(gram) == pytest.approx([share / 2, share / 2])


@quick
@given(seeds, st.integers(1, 700), st.integers(1, 30), st.data())
def test_a_number_of_some_rank_is_found_exactly(seed: int, rows: int, columns: int, data: st.DataObject) -> None:
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16().float().abs()
    rank, cut = data.draw(st.integers(0, drawn.numel() - 1)), data.draw(st.integers(0, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "SAMPLE", data.draw(st.sampled_from((1, 7, 100, 10**6))))
        found = sparse.at_rank(lambda: iter([drawn[:cut], drawn[cut:]]), drawn.numel(), rank)
    assert found == float(drawn.flatten().sort().values[rank])


@pytest.mark.parametrize("rank", [0, 300_000, 899_999, 900_000, 900_001, 950_000, 999_999])
def test_where_most_entries_are_the_same_few_are_gathered_to_find_a_rank(rank: int) -> None:
    """A training in bfloat16 leaves most entries as they were. In pieces, as they come: the peak is counted."""
    numbers = torch.zeros(1000, 1000)
    numbers[:, ::10] = torch.rand(1000, 100, generator=torch.Generator().manual_seed(0)) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "SAMPLE", 10_000)
        tracemalloc.start()
        found = sparse.at_rank(lambda: map(torch.clone, numbers.split(10)), numbers.numel(), rank)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found == float(numbers.flatten().sort().values[rank])
    assert peak < numbers.nbytes / 4


def given_deltas(*tensors: Tensor, chance: int = 1, **genes: Any) -> joining.Inputs:
    return joining.Inputs(torch.zeros_like(tensors[0]), tensors, genes, range(chance, chance + len(tensors)))


@quick
@given(seeds, st.floats(0.1, 1.0))
def test_ties_keeps_the_share_it_was_asked_for_and_the_largest(seed: int, density: float) -> None:
    delta = drawn(seed)
    kept = sparse.trimmed(given_deltas(delta, density=[density]))(delta, 0)
    assert int((kept != 0).sum()) == max(1, math.ceil(density * delta.numel()))
    assert torch.equal(kept[kept != 0], delta[kept != 0])
    if (kept == 0).any():
        assert delta[kept != 0].abs().min() >= delta[kept == 0].abs().max()


@quick
@given(seeds, st.floats(0.1, 1.0), st.floats(0.0, 0.5))
def test_breadcrumbs_keeps_what_is_below_the_outliers(seed: int, density: float, gamma: float) -> None:
    delta = drawn(seed)
    kept = sparse.breadcrumbs(given_deltas(delta, density=[density], gamma=gamma))(delta, 0)
    count = max(1, math.ceil(density * delta.numel()))
    largest = min(delta.numel() - count, math.floor(gamma * delta.numel()))
    in_order = delta.abs().flatten().sort(descending=True).values
    assert torch.equal(kept[kept != 0].abs().sort(descending=True).values, in_order[largest : largest + count])


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.4), (0.3, 0.1), (0.9, 1.0), (0.2, 1.0)])
def test_della_keeps_an_entry_by_its_rank_and_makes_up_for_it(density: float, epsilon: float) -> None:
    rows, columns = 20_000, 8
    delta = torch.arange(1.0, columns + 1).flip(0).repeat(rows, 1) * torch.tensor([1.0, -1.0] * (columns // 2))
    kept = sparse.dropped_by_rank(given_deltas(delta, density=[density], epsilon=epsilon))(delta, 0)
    around = min(epsilon / 2, density / 2, 1 - density)
    chance = torch.linspace(density + around, density - around, columns)
    assert torch.allclose((kept != 0).float().mean(0), chance, atol=0.015)          # over 4 s.e. of the widest
    assert torch.allclose(torch.where(kept != 0, kept * chance, delta), delta, atol=1e-5)
    assert torch.allclose(kept.mean(0), delta[0], rtol=0.15)


def test_of_entries_of_one_size_the_first_in_its_row_comes_first() -> None:
    delta = torch.tensor([[2.0, -1.0, 1.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert sparse.by_size(delta).tolist() == [[3, 1, 2, 0, 4], [0, 1, 2, 3, 4]]


def test_ties_takes_the_mean_of_those_that_agree_with_the_heavier_sign() -> None:
    base = torch.zeros(3)
    a, b, c = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([3.0, 3.0, 0.0]), torch.tensor([-1.0, -1.0, 2.0])
    joined = joining.sign_elected(base, [a, b, c], [1.0, 1.0, 1.0], lambda delta, place: delta)
    assert joined.tolist() == [2.0, 3.0, 2.0]


def test_sce_selects_by_variance_weighs_by_squares_and_erases_the_weaker_sign() -> None:
    a, b = torch.tensor([[3.0, 1.0, -1.0, 0.0]]), torch.tensor([[1.0, 1.0, 2.0, 0.0]])
    joined = merge.merged(Operator.SCE, given_deltas(a, b, tau=0.5))
    energies = [3.0**2 + 1.0, 1.0 + 2.0**2]             # of the first and the third entry, which differ most
    first, second = (energy / sum(energies) for energy in energies)
    assert joined[0].tolist() == pytest.approx([3.0 * first + 1.0 * second, 0.0, 2.0 * second, 0.0])


@pytest.mark.parametrize(("source", "parent"), [(0.0, 0), (0.3, 0), (0.34, 1), (0.66, 1), (0.67, 2), (1.0, 2)])
def test_passthrough_takes_the_parent_in_whose_part_the_source_lies(source: float, parent: int) -> None:
    assert merge.passed(3, source, 1.5) == [1.5 if place == parent else 0.0 for place in range(3)]
