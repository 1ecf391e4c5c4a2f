"""What the ledger says about nominations and stable models, read in one place.

Pure reading, nothing is written. Invariant: k counts every NOMINATED row of the life, whatever became of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from safety.pending import nomination_of, waiting
from state.ledger import Ledger
from state.records import Event, Row, Verdict

MOST_CRASHES = 3


@dataclass(frozen=True, slots=True)
class StableModel:
    """A model that became stable, and the id of the row that made it so."""

    row: int
    digest: str


def stable_history(ledger: Ledger) -> list[StableModel]:
    """Every time a model became stable, the oldest first."""
    events = (Event.GENESIS, Event.RELEASE, Event.ROLLBACK)
    return were_stable(row for event in events for row in ledger.rows(event=event))


def were_stable(rows: Iterable[Row]) -> list[StableModel]:
    """The same of the rows of these three events, in any order."""
    return [
        StableModel(row.id, row.result) for row in sorted(rows, key=lambda row: row.id)
        if row.result is not None and (row.event != Event.RELEASE or row.verdict == Verdict.PROMOTED)
    ]


def reference(ledger: Ledger) -> str | None:
    """The first stable model of the life: what total drift is measured from."""
    return next((row.result for row in ledger.rows(event=Event.GENESIS) if row.result), None)


@dataclass(frozen=True, slots=True)
class Nominations:
    """Every nomination of the life with its answer, the oldest first; only the last can be open.

    `passed` holds the PASSED rows of those that had or have to wait for the operator, like `answered` by nomination.
    """

    asked: tuple[Row, ...]
    answered: dict[int, Row]
    passed: dict[int, Row] = field(default_factory=dict)

    @classmethod
    def of(cls, ledger: Ledger) -> Nominations:
        answers = {nomination_of(row): row for row in ledger.rows(event=Event.RELEASE)}
        passed = {nomination_of(row): row for row in ledger.rows(event=Event.PASSED)}
        return cls(tuple(ledger.rows(event=Event.NOMINATED)), answers, passed)

    @property
    def open(self) -> Row | None:
        """The nomination that the gate has not answered yet."""
        known = self.answered.keys() | self.passed.keys()
        return next((row for row in self.asked if row.id not in known), None)

    @property
    def waiting(self) -> Row | None:
        """The PASSED row that the operator has not answered yet."""
        return waiting(self.passed.values(), self.answered.values())

    def ended(self, row: Row) -> Row:
        """The row with which the gate was done with a nomination: what the operator says later changes no schedule."""
        return self.passed.get(row.id) or self.answered.get(row.id, row)

    @property
    def last(self) -> Row | None:
        return self.asked[-1] if self.asked else None

    def was_answered(self, model: str, bounds: str) -> bool:
        """Whether the last nomination was of this model and asking once more, under these bounds, makes no sense.

        A crash says nothing about the model, so it is tried again, a few times. A refusal stands until the bounds
        change, unless the vault had its word in it: the gate had decided already, or another nomination waited that
        had passed. Everything else stands: also a time-out, because how long the gate takes is the vault's word.
        """
        last = self.last
        answer = self.answered.get(last.id) if last else None
        if last is None or last.result != model:
            return False
        if answer is None:
            return last.id in self.passed
        if answer.verdict == Verdict.CRASHED:
            return self._crashes(model) >= MOST_CRASHES
        by_bounds = answer.verdict == Verdict.REFUSED and not {"decision", "held_up_by"} & answer.evidence.keys()
        return not (by_bounds and last.evidence.get("bounds") != bounds)

    def _crashes(self, model: str) -> int:
        count = 0
        for row in reversed(self.asked):
            answer = self.answered.get(row.id)
            if row.result != model or answer is None or answer.verdict != Verdict.CRASHED:
                break
            count += 1
        return count
