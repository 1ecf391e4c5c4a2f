"""The scores in the evidence of a release, with their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from safety.yardstick.compare import wilson
from state.records import JsonObject


@dataclass(frozen=True, slots=True)
class Share:
    """An accuracy with Wilson's 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Score:
    """How often the released model and the one before it were right on the items of one task."""

    task: str
    items: int
    new: Share
    old: Share


def scores_of(evidence: JsonObject) -> Iterator[Score]:
    """One a task, by name, of the evidence of a RELEASE row."""
    for task, found in sorted(evidence.get("tasks", {}).items()):
        n = int(found["n"])
        new, old = (Share(found[side], *wilson(found[side] * n, n)) for side in ("new", "old"))
        yield Score(task, n, new, old)
