"""What is not over yet, read off ledger rows: a nomination that waits for the operator, a release that is watched.

Pure and without SQLAlchemy, because the reading commands ask too. Invariants: at most one nomination waits; a watch
ends with one row, the rollback that it made or the WATCHED row that says why it ended. An attempt that failed and is
made again is a WATCHED row too, marked `again`, and ends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from state.records import Event, Row, Verdict


def nomination_of(row: Row) -> int:
    """The id of the NOMINATED row that a PASSED or RELEASE row answers."""
    return int(row.evidence.get("nomination", 0))


def waiting(passed: Iterable[Row], answers: Iterable[Row]) -> Row | None:
    """The PASSED row that the operator has not answered yet."""
    answered = {nomination_of(row) for row in answers}
    return next((row for row in passed if nomination_of(row) not in answered), None)


def begins_watch(row: Row) -> bool:
    """Whether a release of this row is watched at all."""
    plan = row.evidence.get("watch") if isinstance(row.evidence, dict) else None
    return row.event == Event.RELEASE and row.verdict == Verdict.PROMOTED and bool(plan and plan.get("possible"))


def release_watched(row: Row) -> int | None:
    """The id of the release whose watch this row ended."""
    found = row.evidence.get("watch") if isinstance(row.evidence, dict) else None
    ends = row.event in (Event.WATCHED, Event.ROLLBACK) and bool(found) and not (found or {}).get("again")
    return int(found["release"]) if ends and found else None


def failed_watches(release: Row, rows: Iterable[Row]) -> int:
    """How many attempts to watch a release failed and were to be made again."""
    plans = [row.evidence.get("watch") or {} for row in rows if row.event == Event.WATCHED]
    return sum(bool(plan.get("again")) and int(plan["release"]) == release.id for plan in plans)


def given_up(release: Row, rows: Iterable[Row]) -> Row | None:
    """The row with which the watch over a release ended before it had seen what it was to see."""
    return next((row for row in rows if row.event == Event.WATCHED and row.verdict is not None
                 and release_watched(row) == release.id), None)


def under_watch(releases: Iterable[Row], ends: Iterable[Row]) -> Row | None:
    """The oldest release whose watch has not ended."""
    over = {release_watched(row) for row in ends}
    return next((row for row in releases if begins_watch(row) and row.id not in over), None)
