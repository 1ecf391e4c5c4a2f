"""The ledger: rows, channels, cycles, attempts and loop states."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from state.cycles import STATES_KEPT
from state.database import Database, StateError
from state.jobbook import JobBook
from state.jobs import JobResult, JobSpec
from state.ledger import Ledger
from state.reading import Reading
from state.records import Budget, Candidate, Channel, Cost, Cycle, Entry, Event, LoopName, Outcome, Verdict, digest_of
from state.registry import Registry

BUDGET = Budget(60.0, 1000, 3)


class Home:
    """A state folder with two models in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = Database(root / "kaizend.db")
        self.database.migrate()
        self.registry = Registry(root, self.database)
        self.ledger = Ledger(self.database, self.registry)
        self.jobs = JobBook(self.database)
        self.old, self.new = (self.model(name) for name in ("old", "new"))

    def model(self, text: str) -> str:
        folder = self.root / "made" / text
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(text)
        return self.registry.adopt(folder, "model")

    def candidate(self, loop: LoopName = LoopName.ARCHITECTURE) -> Candidate:
        return Candidate(loop, {"kind": "merge"}, self.old, self.old)

    def open(self, parent: int | None = None, ordinal: int = 0, loop: LoopName = LoopName.ARCHITECTURE) -> Cycle:
        return self.ledger.open_cycle(parent, ordinal, self.candidate(loop), {"seen": 0}, BUDGET)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.database.close()


def test_an_operator_changes_what_a_loop_remembers_and_the_row_says_so(home: Home) -> None:
    row = home.ledger.set_loop_state(LoopName.REWARD, {"strikes": 0}, "re-armed")
    assert home.ledger.loop_state(LoopName.REWARD) == {"strikes": 0}
    assert (row.event, row.actor, row.loop) == ("operator", "operator", "reward")
    assert row.evidence["state"] == digest_of({"strikes": 0})


def test_a_row_carries_what_it_moved_and_latched(home: Home) -> None:
    home.ledger.append(Entry(Event.GENESIS, "began", result=home.old), move=dict.fromkeys(Channel, home.old))
    row = home.ledger.append(
        Entry(Event.ROLLBACK, "worse in use", result=home.new), move=(Channel.STABLE, home.new), latch=home.old
    )
    assert row.evidence == {"moves": {"stable": home.new}, "latched": home.old}
    assert home.ledger.channel(Channel.STABLE) == home.new and home.ledger.channel(Channel.WORKING) == home.old
    assert home.ledger.latched() == {home.old}
    assert (home.root / "stable" / "config.json").read_text() == "new"
    assert home.ledger.row(row.id) == row and home.ledger.latest(Event.ROLLBACK, Event.GENESIS) == row


def test_an_entry_cannot_claim_a_move_that_is_not_made(home: Home) -> None:
    row = home.ledger.append(Entry(Event.ALARM, "odd", evidence={"moves": {"stable": "x"}, "n": 1}))
    assert row.evidence == {"n": 1}


def test_a_channel_never_points_at_what_the_registry_does_not_hold(home: Home) -> None:
    with pytest.raises(StateError, match="does not hold"):
        home.ledger.append(Entry(Event.RELEASE, "better"), move=(Channel.STABLE, "0" * 64))
    assert home.ledger.head()[0] == 0


def test_the_database_itself_refuses_to_change_or_delete_a_row(home: Home) -> None:
    home.ledger.append(Entry(Event.OPERATOR, "hello"))
    for statement in ("UPDATE ledger SET reason = 'bye'", "DELETE FROM ledger"):
        with pytest.raises(StateError, match="append-only"), home.database.transaction() as connection:
            connection.exec_driver_sql(statement)
    assert [row.reason for row in home.ledger.rows()] == ["hello"]


def test_an_opened_cycle_is_found_by_its_name_and_opened_once(home: Home) -> None:
    cycle = home.open()
    head = home.ledger.head()
    again = home.ledger.open_cycle(None, 0, replace(home.candidate(), change={"kind": "other"}), {}, BUDGET)
    assert again == cycle == home.ledger.find_cycle(None, 0) and home.ledger.head() == head
    row = home.ledger.row(cycle.id)
    assert row is not None and row.cycle == cycle.id and row.evidence["state"] == digest_of({"seen": 0})
    assert row.evidence["budget"] == BUDGET.to_json() and row.change == cycle.candidate.change
    assert home.ledger.find_cycle(None, 1) is None and home.ledger.find_cycle(cycle.id, 0) is None


def test_a_cycle_closes_once_and_keeps_its_first_outcome(home: Home) -> None:
    cycle = home.open()
    first = home.ledger.close_cycle(cycle, Outcome(Verdict.REJECTED, "no better", lesson={"loss": 1}), {"seen": 1})
    head = home.ledger.head()
    assert home.ledger.close_cycle(cycle, Outcome(Verdict.PROMOTED, "late", home.new), {"seen": 2}) == first
    assert home.ledger.head() == head and home.ledger.loop_state(LoopName.ARCHITECTURE) == {"seen": 1}
    found = home.ledger.find_cycle(None, 0)
    assert found is not None and found.outcome == first and found.outcome.lesson == {"loss": 1}


def test_closing_a_promoted_root_cycle_moves_working_and_a_promoted_child_does_not(home: Home) -> None:
    root = home.open()
    child = home.open(root.id, 0, LoopName.PIPELINE)
    home.ledger.close_cycle(child, Outcome(Verdict.PROMOTED, "better", home.new), {})
    assert home.ledger.channel(Channel.WORKING) is None
    home.ledger.close_cycle(root, Outcome(Verdict.PROMOTED, "better", home.new, {"n": 3}, cost=Cost(2.0)), {"seen": 1})
    assert home.ledger.channel(Channel.WORKING) == home.new and (home.root / "working").is_symlink()
    row = home.ledger.latest(Event.CLOSED)
    assert row is not None and row.cycle == root.id and row.cost["seconds"] == 2.0
    assert row.evidence == {"n": 3, "state": digest_of({"seen": 1}), "moves": {"working": home.new}}


def test_a_tuple_comes_back_as_it_would_be_read_again(home: Home) -> None:
    candidate = replace(home.candidate(), change={"weights": (1, 2)})
    cycle = home.ledger.open_cycle(None, 0, candidate, {"rng": (3,)}, BUDGET)
    assert cycle.candidate.change == {"weights": [1, 2]} and cycle.state == {"rng": [3]}
    outcome = home.ledger.close_cycle(cycle, Outcome(Verdict.REJECTED, "no", lesson={"q": (1,)}), {})
    assert outcome.lesson == {"q": [1]} and home.ledger.loop_state(LoopName.ARCHITECTURE) == {}


@pytest.mark.parametrize("evidence", [{"loss": float("nan")}, {"what": object()}])
def test_an_outcome_that_json_cannot_say_closes_as_crashed(home: Home, evidence: dict[str, object]) -> None:
    cycle = home.open()
    outcome = home.ledger.close_cycle(cycle, Outcome(Verdict.PROMOTED, "better", home.new, evidence), {"seen": 1})
    assert outcome.verdict is Verdict.CRASHED and "cannot be recorded" in outcome.reason
    assert home.ledger.loop_state(LoopName.ARCHITECTURE) == {"seen": 0}
    assert home.ledger.channel(Channel.WORKING) is None and home.ledger.open_cycles() == []


def test_a_reason_with_undecodable_bytes_is_kept_and_verifies(home: Home) -> None:
    home.ledger.close_cycle(home.open(), Outcome(Verdict.CRASHED, "no file \udcff", evidence={"f": "\udcff"}), {})
    assert Reading(home.root / "kaizend.db").problems() == []


def test_cycles_left_open_inside_a_closed_one_are_closed_with_it(home: Home) -> None:
    root = home.open()
    child = home.open(root.id, 0, LoopName.PIPELINE)
    inner = home.open(child.id, 0, LoopName.REWARD)
    assert [cycle.id for cycle in home.ledger.open_cycles()] == [root.id, child.id, inner.id]
    home.ledger.close_cycle(root, Outcome(Verdict.TIMED_OUT, "budget used up"), {"seen": 1})
    assert home.ledger.open_cycles() == []
    closed = [row for row in home.ledger.rows() if row.event == Event.CLOSED]
    assert [row.cycle for row in closed] == [inner.id, child.id, root.id]
    assert [row.verdict for row in closed] == ["CRASHED", "CRASHED", "TIMED_OUT"]


def test_root_cycles_are_counted_open_ones_included(home: Home) -> None:
    assert home.ledger.root_count() == 0
    root = home.open()
    home.open(root.id, 5, LoopName.PIPELINE)
    assert home.ledger.root_count() == 1


def test_attempts_count_up_only_while_nothing_gets_any_further(home: Home) -> None:
    root = home.open()
    assert [home.ledger.begin_attempt(root) for _ in range(3)] == [1, 2, 3]
    spec = JobSpec("build")
    home.jobs.started(spec, 1)
    assert home.ledger.begin_attempt(root) == 4
    home.jobs.finished(spec, JobResult({}, {}, Cost()))
    assert home.ledger.begin_attempt(root) == 1
    assert home.ledger.begin_attempt(root) == 2
    home.jobs.saved()                                        # a training got to its next checkpoint
    assert home.ledger.begin_attempt(root) == 1
    assert home.ledger.begin_attempt(root) == 2
    home.ledger.forget_attempts()
    assert home.ledger.begin_attempt(root) == 1


def test_attempts_are_counted_for_the_row_of_a_nomination_too(home: Home) -> None:
    row = home.ledger.append(Entry(Event.NOMINATED, "asks"))
    assert [home.ledger.begin_attempt(row) for _ in range(3)] == [1, 2, 3]


def test_what_came_to_nothing_counts_for_its_day(home: Home) -> None:
    spec, began = JobSpec("build"), datetime.now(UTC)
    home.jobs.started(spec, 1)
    home.jobs.lost(spec, Cost(seconds=5.0))
    home.jobs.lost(spec, Cost(seconds=2.0, gpu_seconds=2.0))
    assert home.jobs.spent_since(began) == Cost(seconds=7.0, gpu_seconds=2.0)
    home.jobs.finished(spec, JobResult({}, {}, Cost(seconds=1.0)))
    home.jobs.lost(spec, Cost(seconds=9.0))                   # it has a result: nothing was lost
    assert home.jobs.spent_since(began) == Cost(seconds=8.0, gpu_seconds=2.0)
    found = home.jobs.result(spec.digest)
    assert found is not None and found.cost == Cost(seconds=1.0)


def test_what_a_job_saved_is_progress_and_no_row(home: Home) -> None:
    home.ledger.append(Entry(Event.OPERATOR, "x"))
    home.jobs.saved()
    with Reading(home.root / "kaizend.db") as reading:
        assert reading.counts()["rows"] == 1
        assert reading.problems() == []


def test_the_innermost_cycle_is_the_first_to_have_had_too_many_attempts(home: Home) -> None:
    counts = []
    for _ in range(4):                                       # each turn is a life of the daemon that a child ends
        root = home.open()
        outer = home.ledger.begin_attempt(root)
        child = home.open(root.id, 0, LoopName.PIPELINE)
        counts.append((outer, home.ledger.begin_attempt(child)))
    assert counts == [(1, 1), (1, 2), (2, 3), (3, 4)]


def test_old_loop_states_are_dropped_but_never_one_that_an_open_cycle_began_with(home: Home) -> None:
    root = home.open()
    for n in range(STATES_KEPT + 20):
        child = home.ledger.open_cycle(root.id, n, home.candidate(), home.ledger.loop_state(LoopName.ARCHITECTURE)
                                       or {}, BUDGET)
        home.ledger.close_cycle(child, Outcome(Verdict.REJECTED, "no"), {"seen": n + 1})
    with home.database.snapshot() as connection:
        kept = connection.exec_driver_sql("SELECT count(*) FROM loop_states").scalar_one()
    assert kept == STATES_KEPT + 1
    found = home.ledger.find_cycle(None, 0)
    assert found is not None and found.state == {"seen": 0}
    assert home.ledger.loop_state(LoopName.ARCHITECTURE) == {"seen": STATES_KEPT + 20}


def test_rows_of_one_event_are_found_after_an_id_and_across_pages(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.ledger.PAGE", 3)
    for n in range(8):
        home.ledger.append(Entry(Event.ALARM if n % 2 else Event.OPERATOR, str(n)))
    assert [row.id for row in home.ledger.rows()] == list(range(1, 9))
    assert [row.reason for row in home.ledger.rows(after=2, event=Event.ALARM)] == ["3", "5", "7"]


def test_threads_append_side_by_side_without_a_gap_or_a_fork(home: Home) -> None:
    def work(name: int) -> None:
        for n in range(10):
            model = (home.old, home.new)[n % 2]
            home.ledger.append(Entry(Event.OPERATOR, f"{name}.{n}"), move=(Channel.WORKING, model))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert home.ledger.head()[0] == 40
    assert Reading(home.root / "kaizend.db").problems() == []
    link = (home.root / "working").readlink().name
    assert link == home.ledger.channel(Channel.WORKING)


def test_a_kill_between_commit_and_link_is_repaired_at_the_next_start(home: Home) -> None:
    home.ledger.append(Entry(Event.GENESIS, "began"), move=(Channel.STABLE, home.old))
    home.registry.link(Channel.STABLE, home.new)             # as if the database had moved on and the link had not
    assert home.registry.reconcile() == ["moved the link stable back"]
    assert (home.root / "stable" / "config.json").read_text() == "old"


def test_times_come_from_the_clock_that_was_given(home: Home) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    row = Ledger(home.database, home.registry, clock=lambda: moment).append(Entry(Event.OPERATOR, "x"))
    assert row.time == "2026-01-02T03:04:05.000006Z"


def test_a_cycle_costs_three_commits(home: Home) -> None:
    before = home.database.writes
    cycle = home.open()
    home.ledger.begin_attempt(cycle)
    home.ledger.close_cycle(cycle, Outcome(Verdict.REJECTED, "no"), {"seen": 1})
    assert home.database.writes - before == 3
