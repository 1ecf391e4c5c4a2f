"""What faults brought to light, each defect with the smallest test that shows it. docs/robustness.md lists them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from court import Court, canned_court
from synthetic import BUDGET, World
from toy_house import House, until

from daemon import __main__ as program
from daemon import foreground, garbage, service
from daemon.lock import Lock
from daemon.service import Service
from loops.cycle import run_cycle
from loops.loop import Trial
from safety.bounds import Bounds
from safety.release import hindrance, nominate
from state.errors import ConfigurationError, HostError, StateError
from state.jobbook import JobBook
from state.jobs import JobResult, JobSpec
from state.records import Actor, Candidate, Channel, Cost, Entry, Event, LoopName, Outcome, Verdict

FREE = replace(Bounds(), rate=replace(Bounds().rate, dwell_seconds=0.0, cycles_between_nominations=0))


class OneJob:
    """A loop whose candidate is one job."""

    name = LoopName.ARCHITECTURE

    def start(self) -> Any:
        return {}

    def propose(self, state: Any, base: str, incumbent: str, seed: int, in_flight: Any = ()) -> Candidate:
        return Candidate(self.name, {"kind": "keep"}, base, incumbent)

    def run(self, candidate: Candidate, bench: Any) -> Trial:
        return Trial(None, bench.job("measure", {"result": candidate.base}, {}).values)

    def judge(self, candidate: Candidate, trial: Trial) -> Outcome:
        return Outcome(Verdict.REJECTED, "no better")

    def learn(self, state: Any, candidate: Candidate, outcome: Outcome) -> Any:
        return state


def test_a_failing_disk_is_no_candidates_fault_and_the_cycle_is_resumed(tmp_path: Path) -> None:
    world = World(tmp_path)

    def fail(spec: JobSpec) -> None:
        raise HostError("disk I/O error")

    world.runner.faults = fail
    with pytest.raises(HostError):
        run_cycle(world.house, OneJob(), None, 0, world.start, world.start, BUDGET)
    assert [cycle.outcome for cycle in world.ledger.open_cycles()] == [None]
    world.runner.faults = lambda spec: None
    assert run_cycle(world.house, OneJob(), None, 0, world.start, world.start, BUDGET).verdict is Verdict.REJECTED
    world.close()


def test_a_failing_disk_that_ends_the_service_every_time_closes_the_cycle_in_the_end(tmp_path: Path) -> None:
    world = World(tmp_path)

    def fail(spec: JobSpec) -> None:
        raise HostError("disk I/O error")

    world.runner.faults = fail
    for _ in range(3):
        with pytest.raises(HostError):
            run_cycle(world.house, OneJob(), None, 0, world.start, world.start, BUDGET)
    outcome = run_cycle(world.house, OneJob(), None, 0, world.start, world.start, BUDGET)
    assert (outcome.verdict, "took the daemon down 3 times" in outcome.reason) == (Verdict.CRASHED, True)
    world.close()


@pytest.mark.parametrize("words", [False, True])
def test_a_disk_that_is_full_for_a_worker_is_no_verdict_and_what_the_job_saved_stays(
    tmp_path: Path, words: bool
) -> None:
    with House(tmp_path) as house:
        spec = JobSpec("full", params={"words": words})
        with pytest.raises(HostError, match="No space left"):
            house.runner.run(spec)
        assert (house.scratch(spec) / "steps" / "step-000000001").is_dir()


def test_an_error_between_fork_and_job_leaves_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with House(tmp_path) as house:
        ended = house.runner._pool.nursery()
        monkeypatch.setenv("KAIZEND_FAILPOINT", "runner.started=raise")
        monkeypatch.setattr("state.failpoints._passages", 0)
        with pytest.raises(RuntimeError, match="a fault at"):
            house.runner.run(JobSpec("add", params={"numbers": [1]}))
        monkeypatch.delenv("KAIZEND_FAILPOINT")
        until(lambda: len(ended._endings) == 1)
        assert house.runner.run(JobSpec("add", params={"numbers": [1, 2]})).values == {"sum": 3}


def test_a_link_that_cannot_follow_says_that_the_row_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    court = canned_court(tmp_path / "state")
    model = court.text_model("second")

    def full(channel: Channel, digest: str) -> None:
        raise HostError("no space left to move the link")

    monkeypatch.setattr(court.registry, "link", full)
    with pytest.raises(HostError, match="stable has moved in the ledger, but its link has not followed yet"):
        court.ledger.append(Entry(Event.RELEASE, "passed", result=model), move=(Channel.STABLE, model))
    monkeypatch.undo()
    assert court.ledger.channel(Channel.STABLE) == model
    Service._keep_up(at_work(court))                              # the daemon that lives on moves it by itself
    assert (tmp_path / "state" / "stable").resolve().name == model


def at_work(court: Court, **more: Any) -> Any:
    """As much of a service as keeping up needs."""
    said: list[str] = []
    log = SimpleNamespace(warning=lambda event, **values: said.append(event))
    return SimpleNamespace(works=SimpleNamespace(registry=court.registry), log=log, time_of_day=0.0, said=said, **more)


def test_the_ticker_goes_on_when_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """APScheduler goes by the time of day: an hour back was an hour without a beat, and the watchdog's end of it."""
    from apscheduler.schedulers.background import BackgroundScheduler

    beats: list[float] = []
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(lambda: beats.append(time.monotonic()), "interval", seconds=3600, id=service.TICK)
    scheduler.start()
    try:
        monkeypatch.setattr(service, "TICK_SECONDS", 0.05)
        working = at_work(canned_court(tmp_path / "state"), scheduler=scheduler)
        working.time_of_day = time.time() + 3600                   # it was later when this was last asked
        Service._keep_up(working)
        until(lambda: len(beats) >= 2, 5)
        assert working.said == ["clock set back"]
    finally:
        scheduler.shutdown()


def test_a_tick_that_cannot_read_the_ledger_says_so_without_a_traceback() -> None:
    def state() -> str:
        raise StateError("disk I/O error")

    said: list[str] = []
    ticking: Any = SimpleNamespace(
        beat=time.monotonic(), notifier=SimpleNamespace(watchdog_seconds=1.0, watchdog=lambda: None, status=str),
        works=SimpleNamespace(runner=SimpleNamespace(last_moved=0.0), database=SimpleNamespace(responds=lambda: True)),
        _state=state, log=SimpleNamespace(warning=lambda event, **values: said.append(event)),
    )
    Service.tick(ticking)
    assert said == ["state unknown"]


def test_a_clock_set_back_loosens_no_bound_on_rate(tmp_path: Path) -> None:
    """Two nominations with an hour set back between them count until a day after the largest time seen."""
    court = canned_court(tmp_path / "state", decision="futile")
    court.bounds = replace(FREE, rate=replace(FREE.rate, releases_per_day=2))
    for name in ("second", "third"):
        court.move_working(court.text_model(name))
        assert nominate(court.desk) is not None
        court.later(hours=-1)
    court.move_working(court.text_model("fourth"))
    seen = court.ledger.latest_time()
    assert seen is not None
    court.now = seen + timedelta(hours=23, minutes=30)             # a day after the second one, by its own time
    assert "releases_per_day" in str(hindrance(court.desk))
    court.later(minutes=31)
    assert hindrance(court.desk) is None


def test_a_clock_set_back_over_midnight_keeps_what_a_job_cost(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    midnight = court.now.replace(hour=0)
    book = JobBook(court.ledger.database, clock=lambda: court.now)
    spec = JobSpec("build")
    book.started(spec, 1)
    court.now = midnight + timedelta(minutes=10)
    book.lost(spec, Cost(seconds=100.0))
    court.now = midnight - timedelta(minutes=50)
    book.finished(spec, JobResult({}, {}, Cost(seconds=1.0)))
    assert book.spent_since(midnight) == Cost(seconds=101.0)


def test_what_a_kill_left_half_removed_is_removed_by_the_next_start(tmp_path: Path) -> None:
    """The intent of an adoption, and at its place an empty folder: that start was refused, and every one after it."""
    court = canned_court(tmp_path / "state")
    digest = "ab" * 32
    with court.ledger.database.transaction() as connection:
        court.registry._intend(connection, "adopt", {"digest": digest, "kind": "model", "files": {"a": "b"}})
    (court.registry.artifacts / "ab" / digest).mkdir(parents=True)
    assert court.registry.reconcile() == [f"removed artefact {digest[:12]}, whose adopt was interrupted"]


def test_what_nobody_expected_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken(**options: object) -> None:
        raise KeyError("an\nerror")

    monkeypatch.setattr("daemon.cli.app", broken)
    with pytest.raises(SystemExit) as end:
        program.obey()
    said = capsys.readouterr().err
    assert end.value.code == 70
    assert said.startswith("kaizend: KeyError: 'an\\nerror', at test_found_by_faults.py:")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("error", "raised"), [(HostError, HostError), (StateError, ConfigurationError)])
def test_under_systemd_a_start_on_a_full_disk_is_tried_again(
    error: type[StateError], raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error("no space left")

    settings = SimpleNamespace(service=SimpleNamespace(log="json"))
    for name, value in (("wire", full), ("find_config", str), ("read_places", lambda _: SimpleNamespace(config=None)),
                        ("load_settings", lambda _: settings), ("configure_logs", str)):
        monkeypatch.setattr(foreground, name, value)
    monkeypatch.setenv("INVOCATION_ID", "1")
    with pytest.raises(raised) as end:
        foreground.run_in_foreground(None, None)
    assert type(end.value) is raised


def test_gc_looks_only_once_no_daemon_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that nothing needed when the command began, and that became working before the folder was locked."""
    court = canned_court(tmp_path / "var")
    model, enter = court.text_model("spare"), Lock.__enter__

    def after_a_promotion(lock: Lock) -> Lock:
        court.ledger.append(Entry(Event.OPERATOR, "chosen", actor=Actor.OPERATOR), move=(Channel.WORKING, model))
        return enter(lock)

    (tmp_path / "kaizend.toml").write_text("")
    monkeypatch.setattr(Lock, "__enter__", after_a_promotion)
    garbage.collect_garbage(tmp_path, apply=True)
    assert court.registry.verify(model) == []
    assert json.loads(json.dumps(court.registry.digests())).count(model) == 1
