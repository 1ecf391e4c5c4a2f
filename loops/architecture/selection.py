"""NSGA-II's selection (Deb et al. 2002): who stays and who is mated where several objectives conflict.

Non-dominated sorting and crowding distance over the members of an archive, each a point of objective values of which
larger is better. Pure and small; what the values are is the business of `population`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

Point = Sequence[float]


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better."""
    pairs = list(zip(one, other, strict=True))
    return all(mine >= his for mine, his in pairs) and any(mine > his for mine, his in pairs)


def ranks(points: Sequence[Point]) -> list[int]:
    """The front of each point: 0 where nothing dominates it, 1 where only points of front 0 do, and so on."""
    beats = [[place for place, other in enumerate(points) if dominates(point, other)] for point in points]
    beaten_by = [0] * len(points)
    for place in (place for places in beats for place in places):
        beaten_by[place] += 1
    found, rank = [0] * len(points), 0
    front = [place for place, count in enumerate(beaten_by) if count == 0]
    while front:
        following = []
        for place in front:
            found[place] = rank
            for other in beats[place]:
                beaten_by[other] -= 1
                if beaten_by[other] == 0:
                    following.append(other)
        front, rank = following, rank + 1
    return found


def crowding(points: Sequence[Point]) -> list[float]:
    """How far each point stands from its neighbours in its own front: the sum over the objectives of the distance
    between the two beside it, as a share of the front's range; infinite at either end of an objective.
    """
    rank, distance = ranks(points), [0.0] * len(points)
    for front in range(max(rank, default=-1) + 1):
        places = [place for place in range(len(points)) if rank[place] == front]
        for objective in range(len(points[0])):
            order = sorted(places, key=lambda place: points[place][objective])
            low, high = (points[place][objective] for place in (order[0], order[-1]))
            distance[order[0]] = distance[order[-1]] = math.inf
            if low < high:
                for before, place, after in zip(order, order[1:], order[2:], strict=False):
                    distance[place] += (points[after][objective] - points[before][objective]) / (high - low)
    return distance


def standing(points: Sequence[Point]) -> list[tuple[int, float]]:
    """(front, minus crowding distance) of each point: the smaller one is preferred (the crowded comparison)."""
    return [(rank, -distance) for rank, distance in zip(ranks(points), crowding(points), strict=True)]


def worst(points: Sequence[Point]) -> int:
    """The place of the point that is dropped: of the last front the most crowded, of equals the first."""
    stands = standing(points)
    return max(range(len(points)), key=lambda place: (stands[place], -place))


def by_tournament(points: Sequence[Point], draw: random.Random, banned: int | None = None) -> int:
    """The better of two places drawn evenly without repetition, `banned` left out; the one drawn first where equal."""
    places = [place for place in range(len(points)) if place != banned]
    stands = standing(points)
    return min(draw.sample(places, min(2, len(places))), key=lambda place: stands[place])
