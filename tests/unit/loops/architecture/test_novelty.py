"""Points that were tried nearly alike, and parents that are nearly the same model."""

from __future__ import annotations

import math
from itertools import count

from loops.architecture.novelty import MOST_GENES_KEPT, TRIES, cosine, first_worth, is_novel, remembered


def test_a_point_is_novel_where_one_gene_differs_by_the_tolerance() -> None:
    tried = [[0.5, 0.5], [1.0, 1.0]]
    assert not is_novel([0.51, 0.49], tried, 0.02)
    assert is_novel([0.51, 0.53], tried, 0.02)
    assert is_novel([0.5, 0.5], tried, 0.0)
    assert is_novel(["a", "c", 0.5], [["a", "b", 0.5]], 0.9)
    assert is_novel([0.5], tried, 0.9)


def test_draws_go_on_until_one_is_worth_it_and_end_after_so_many() -> None:
    assert first_worth(count(), lambda number: number >= 5) == 5
    drawn = count()
    assert first_worth(drawn, lambda number: False) == TRIES - 1
    assert next(drawn) == TRIES


def test_only_the_latest_points_are_remembered() -> None:
    tried: list[list[float]] = []
    for place in range(600):
        tried = remembered(tried, [float(place)] * 16)
    assert len(tried) * 16 == MOST_GENES_KEPT
    assert tried[-1][0] == 599


def test_the_cosine_of_sketches() -> None:
    assert math.isclose(cosine([1.0, 1.0], [2.0, 2.0]), 1.0)
    assert cosine([1.0, 0.0], [0.0, 1.0]) == cosine([0.0, 0.0], [0.0, 1.0]) == cosine([], []) == 0.0
    assert cosine([1.0], [1.0, 2.0]) == 0.0
