"""What is not worth trying: points nearly equal to one already tried, and parents that are nearly the same model.

A point is a flat sequence of genes. Drawing again is bounded, and follows from the name of what is drawn, so that a
search stays a pure function of its state. Two models are compared by sketches of their changes from the base (job
"screen").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

TRIES: Final = 16               # draws for one place
MOST_GENES_KEPT: Final = 4096   # of all remembered points together: a state has to stay small enough for a row

Point = Sequence[Any]
"""Genes: numbers, and names of models."""
Drawn = TypeVar("Drawn")


def first_worth(draws: Iterator[Drawn], worth: Callable[[Drawn], bool]) -> Drawn:
    """The first of TRIES draws that is worth trying, else the last of them."""
    drawn = next(draws)
    for again in islice(draws, TRIES - 1):
        if worth(drawn):
            break
        drawn = again
    return drawn


def is_novel(point: Point, tried: Iterable[Point], tolerance: float) -> bool:
    """Whether the point differs from every one tried by `tolerance` or more in some gene; always where that is 0."""
    return all(_distance(point, other) >= tolerance for other in tried)


def remembered(tried: Sequence[Point], point: Point) -> list[Point]:
    """The points tried with one more; the earliest go where they have more genes together than are kept."""
    return [*tried, list(point)][-max(1, MOST_GENES_KEPT // max(1, len(point))) :]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two sketches; 0 where either is missing or nothing but zeros."""
    if len(one) != len(other):
        return 0.0
    size = math.sqrt(math.fsum(x * x for x in one) * math.fsum(y * y for y in other))
    return math.fsum(x * y for x, y in zip(one, other, strict=True)) / size if size else 0.0


def _distance(one: Point, other: Point) -> float:
    """The largest difference in one gene; infinite where the lengths or a name differ."""
    if len(one) != len(other):
        return math.inf
    return max((_apart(x, y) for x, y in zip(one, other, strict=True)), default=0.0)


def _apart(x: Any, y: Any) -> float:
    if isinstance(x, str) or isinstance(y, str):
        return 0.0 if x == y else math.inf
    return abs(float(x) - float(y))
