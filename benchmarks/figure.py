"""One measured figure: a ratio with its spread and its goal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` is the median of the ratios, `low` and `high` their extremes; it holds at or under the goal."""

    name: str
    value: float
    low: float
    high: float
    goal: float

    @classmethod
    def of(cls, name: str, ratios: Sequence[float], goal: float) -> Figure:
        return cls(name, statistics.median(ratios), min(ratios), max(ratios), goal)

    @property
    def holds(self) -> bool:
        return self.value <= self.goal

    def to_json(self) -> dict[str, Any]:
        rounded = {name: round(getattr(self, name), 3) for name in ("value", "low", "high")}
        return {"name": self.name, **rounded, "goal": self.goal, "holds": self.holds}
