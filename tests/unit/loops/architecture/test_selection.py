"""NSGA-II's selection, held against the definitions of front and crowding."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from loops.architecture.selection import by_tournament, crowding, dominates, ranks, standing, worst

POINTS = st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 3), min_size=1, max_size=9)
QUICK = settings(max_examples=60, deadline=None)


@QUICK
@given(POINTS)
def test_a_front_holds_what_only_earlier_fronts_dominate(points: list[tuple[float, ...]]) -> None:
    found = ranks(points)
    for point, rank in zip(points, found, strict=True):
        over = [other for other, his in zip(points, found, strict=True) if dominates(other, point) and his < rank]
        peers = [other for other, his in zip(points, found, strict=True) if his >= rank]
        assert not any(dominates(other, point) for other in peers)
        assert bool(over) == (rank > 0)
        assert rank == 0 or any(his == rank - 1 and dominates(other, point)
                                for other, his in zip(points, found, strict=True))


@QUICK
@given(st.lists(st.integers(0, 50).map(float), min_size=1, max_size=9, unique=True))
def test_with_one_objective_the_worst_is_the_smallest(values: list[float]) -> None:
    points = [(value,) for value in values]
    assert points[worst(points)] == min(points)
    assert ranks(points) == [sum(other > value for other in values) for value in values]


@QUICK
@given(POINTS, st.randoms(use_true_random=False))
def test_the_order_of_the_members_changes_neither_fronts_nor_what_an_objective_costs(
    points: list[tuple[float, ...]], shuffled: random.Random
) -> None:
    order = list(range(len(points)))
    shuffled.shuffle(order)
    moved = [points[place] for place in order]
    assert [ranks(points)[place] for place in order] == ranks(moved)
    scaled = [(10 * a + 3, b, c) for a, b, c in points]
    assert crowding(scaled) == crowding(points)


def test_ends_of_a_front_are_never_crowded_and_the_middle_counts_its_neighbours() -> None:
    points = [(0.0, 4.0), (1.0, 3.0), (2.0, 2.0), (4.0, 0.0)]
    assert crowding(points) == [math.inf, 0.5 + 0.5, 0.75 + 0.75, math.inf]
    assert worst(points) == 1
    assert standing(points)[2] < standing(points)[1]


def test_what_is_dropped_is_of_the_last_front_although_another_is_more_crowded() -> None:
    points = [(0.0, 4.0), (1.9, 2.1), (2.0, 2.0), (4.0, 0.0), (0.0, 0.0)]
    assert worst(points) == 4


def test_a_tournament_prefers_the_better_front_and_never_draws_the_banned() -> None:
    points = [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5)]
    draws = [by_tournament(points, random.Random(seed)) for seed in range(60)]
    assert set(draws) == {0, 2}                         # the last of three never wins against anybody
    assert {by_tournament(points, random.Random(seed), banned=0) for seed in range(30)} == {2}
    assert by_tournament([(1.0,)], random.Random(0)) == 0
