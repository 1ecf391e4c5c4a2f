"""Reading: filters, order, counts, cycles and errors, without SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from state.database import Database, StateError
from state.ledger import Ledger
from state.reading import Reading
from state.records import Budget, Candidate, Channel, Entry, Event, LoopName, Outcome, Verdict
from state.registry import Registry

BEGAN = datetime(2026, 11, 22, tzinfo=UTC)
LOOPS = (LoopName.ARCHITECTURE, LoopName.PIPELINE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ledger of 1 + 12 * 2 + 1 rows, one a minute, and one open cycle."""
    root = tmp_path_factory.mktemp("a state folder, with 100% odd #name?")
    database = Database(root / "kaizend.db")
    database.migrate()
    registry = Registry(root, database)
    minutes = iter(range(1000))
    ledger = Ledger(database, registry, clock=lambda: BEGAN + timedelta(minutes=next(minutes)))
    (root / "given").mkdir()
    (root / "given" / "a").write_text("1")
    model = registry.add_copy(root / "given", "model")
    ledger.append(Entry(Event.GENESIS, "began", result=model), move=dict.fromkeys(Channel, model))
    for n in range(13):
        candidate = Candidate(LOOPS[n % 2], {"n": n}, model, model)
        cycle = ledger.open_cycle(None, n, candidate, {"seen": n}, Budget(1, 2, 3))
        if n < 12:
            verdict = Verdict.CRASHED if n % 3 == 0 else Verdict.REJECTED
            ledger.close_cycle(cycle, Outcome(verdict, f"number {n}"), {"seen": n + 1})
    ledger.append(Entry(Event.ROLLBACK, "worse", verdict=Verdict.ROLLED_BACK), latch="f" * 64)
    database.close()
    return root


@pytest.fixture
def reading(root: Path) -> Iterator[Reading]:
    with Reading(root / "kaizend.db") as reading:
        yield reading


def ids(rows: list[object]) -> list[int]:
    return [row.id for row in rows]  # type: ignore[attr-defined]


def test_the_newest_rows_come_oldest_first(reading: Reading) -> None:
    assert ids([*reading.rows(3)]) == [25, 26, 27] and len(reading.rows(100)) == 27


def test_rows_after_an_id_are_the_first_ones_after_it(reading: Reading) -> None:
    assert ids([*reading.rows(3, after=10)]) == [11, 12, 13] and reading.rows(3, after=27) == []


def test_every_filter_gives_what_going_through_all_rows_gives(reading: Reading) -> None:
    everything = list(reading.every_row())
    for loop in (None, *LOOPS):
        for verdict in (None, Verdict.CRASHED, Verdict.TIMED_OUT):
            for since in (None, "2026-11-22T00:10"):
                for events in ((), (Event.CLOSED,), (Event.ROLLBACK, Event.OPENED)):
                    fitting = [
                        row for row in everything
                        if (loop is None or row.loop == loop) and (verdict is None or row.verdict == verdict)
                        and (since is None or row.time >= since) and (not events or row.event in events)
                    ]
                    assert reading.rows(4, loop, verdict, since, None, events) == fitting[-4:]
                    assert reading.rows(4, loop, verdict, since, 5, events) == [r for r in fitting if r.id > 5][:4]


def test_a_time_that_has_not_come_yet_gives_no_rows(reading: Reading) -> None:
    assert reading.rows(since="2027") == []


def test_counts_agree_with_the_rows(reading: Reading) -> None:
    assert reading.counts() == {
        "rows": 27, "events": {"genesis": 1, "opened": 13, "closed": 12, "rollback": 1},
        "cycles": {"architecture": {"CRASHED": 2, "REJECTED": 4}, "pipeline": {"CRASHED": 2, "REJECTED": 4}},
        "releases": {"ROLLED_BACK": 1}, "jobs": 0,
    }


def test_a_cycle_is_read_as_the_ledger_gives_it(root: Path, reading: Reading) -> None:
    database = Database(root / "kaizend.db", check=False)
    ledger = Ledger(database, Registry(root, database))
    assert reading.open_cycles() == ledger.open_cycles() and len(reading.open_cycles()) == 1
    assert reading.cycle(2) == ledger.find_cycle(None, 0) and reading.cycle(3) is None
    assert reading.head() == ledger.head() and list(reading.every_row()) == list(ledger.rows())
    assert reading.loop_state("architecture") == ledger.loop_state(LoopName.ARCHITECTURE)
    assert [row.event for row in reading.cycle_rows(2)] == ["opened", "closed"] and reading.children(2) == []
    database.close()


def test_channels_latches_and_artefacts_are_read(reading: Reading) -> None:
    pointer = reading.channels()["stable"]
    artefact = reading.artefact(pointer["digest"][:10])
    assert pointer["row"] == 1 and artefact is not None and artefact["kind"] == "model" and artefact["bytes"] == 1
    assert [one["digest"] for one in reading.artefacts()] == [pointer["digest"]]
    assert reading.rows_with_result(pointer["digest"]) == [reading.row(1)]
    assert reading.latches() == {"f" * 64: {"row": 27, "reason": "worse"}} and reading.artefact("e" * 64) is None


def test_reading_cannot_write(reading: Reading) -> None:
    with pytest.raises(StateError, match="readonly"):
        reading._all("INSERT INTO counters VALUES ('x', '', '', 1)")


def test_nothing_can_be_read_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not been started"):
        Reading(tmp_path / "kaizend.db")
    (tmp_path / "text.db").write_text("no database " * 1000)
    with pytest.raises(StateError, match="not a database"):
        Reading(tmp_path / "text.db")
    Database(tmp_path / "new.db").close()
    with pytest.raises(StateError, match="not a ledger of this version"):
        Reading(tmp_path / "new.db")


def test_rows_appear_while_the_daemon_writes(tmp_path: Path) -> None:
    database = Database(tmp_path / "kaizend.db")
    database.migrate()
    ledger = Ledger(database, Registry(tmp_path, database))
    with Reading(tmp_path / "kaizend.db") as reading:
        for n in range(3):
            ledger.append(Entry(Event.OPERATOR, str(n)))
            assert [row.reason for row in reading.rows(after=n)] == [str(n)]
