"""What the service begins, and what it says of itself, on a real ledger with jobs that answer as told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from court import Court, canned, canned_court

from daemon.flags import Flags
from daemon.service import Service
from daemon.wiring import Works
from state.jobs import Desk, JobSpec, Produced
from state.records import Event, JsonObject, LoopName


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **values: Any) -> None:
        self.said.append(("info", event, values))

    def warning(self, event: str, **values: Any) -> None:
        self.said.append(("warning", event, values))


def service_of(court: Court) -> tuple[Any, Lines]:
    """A service as it starts on the court's ledger; its loop proposes nothing."""
    runner = SimpleNamespace(wait_settled=lambda seconds: True, in_flight=list, last_moved=0.0, outage=lambda: None)
    works: Any = SimpleNamespace(
        ledger=court.ledger, desk=court.desk, jobbook=court.book, bounds=lambda: court.bounds, flags=Flags(),
        runner=runner, settings=SimpleNamespace(service=SimpleNamespace(workers=1)), trip=lambda: None,
        status=dict,
    )
    works.trouble = lambda: Works.trouble(works)
    lines = Lines()
    return Service(works, lines, until=0), lines                                          # type: ignore[arg-type]


def begun(service: Any) -> Callable[[], object] | None:
    found = service._next([])
    return found and found[1]


def told(lines: Lines) -> list[tuple[str, str]]:
    return [(level, event) for level, event, _ in lines.said]


def test_the_stable_model_meets_itself_once_at_the_start_and_before_any_nomination(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    court.move_working(court.text_model("second"))
    service, lines = service_of(court)
    first = begun(service)
    assert first is not None
    first()
    assert [spec.params.get("aa") for spec in court.runner.ran] == [True]
    assert (told(lines), service.answer({"command": "status"})["state"]) == ([("info", "noise tested")], "running")
    second = begun(service)
    assert second is not None
    second()
    assert [row.event for row in court.ledger.rows()][-2:] == [Event.NOMINATED, Event.RELEASE]
    assert sum(bool(spec.params.get("aa")) for spec in court.runner.ran) == 1
    assert begun(service) is None


def test_a_start_in_the_same_week_takes_the_kept_result_and_a_new_week_asks_anew(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    for runs, days in ((1, 0), (1, 0), (2, 7)):
        court.later(days=days)
        service, lines = service_of(court)
        test = begun(service)
        assert test is not None
        test()
        assert (told(lines), len(court.runner.ran)) == ([("info", "noise tested")], runs)
    court.later(days=7)
    weekly = begun(service)                                              # the daemon lived on
    assert weekly is not None
    weekly()
    assert len(court.runner.ran) == 3


def test_too_much_noise_is_told_and_degrades_until_the_bound_allows_it(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state", noise=0.1)
    service, lines = service_of(court)
    test = begun(service)
    assert test is not None
    test()
    assert lines.said == [("warning", "noise tested", {"noise": 0.1, "allowed": 0.005})]
    again, _ = service_of(court)                                         # also after the next start
    for daemon in (service, again):
        state = daemon.answer({"command": "status"})["state"]
        assert state.startswith("degraded: nothing is released") and "gate.max_noise: 0.1 is outside 0.005" in state
    body: JsonObject = court.bounds.to_json()
    body["gate"]["max_noise"] = 0.2
    court.bounds = type(court.bounds).from_json(body)
    assert service.answer({"command": "status"})["state"] == "running"


@pytest.mark.parametrize("at_first", ["out of memory", ""])
def test_a_test_that_fails_is_a_line_of_the_log_and_the_nomination_tries_again(tmp_path: Path, at_first: str) -> None:
    court = canned_court(tmp_path / "state")
    court.move_working(court.text_model("second"))

    def broken(spec: JobSpec, desk: Desk) -> Produced:
        if at_first:
            raise ValueError(at_first)
        return canned()["gate"](spec, desk)

    court.runner.jobs = {**canned(), "gate": broken}
    service, lines = service_of(court)
    test = begun(service)
    assert test is not None
    test()
    assert told(lines) == ([("warning", "noise not tested")] if at_first else [("info", "noise tested")])
    assert service.answer({"command": "status"})["state"] == "running"
    court.runner.jobs = canned()
    nomination = begun(service)
    assert nomination is not None
    nomination()
    assert [row.verdict for row in court.ledger.rows(event=Event.RELEASE)] == ["PROMOTED"]


def test_three_alarms_of_the_reward_monitor_degrade_it_until_the_operator_resumes(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    service, _ = service_of(court)
    state = {"strikes": 2, "scale": 0.25, "avoid": [], "blocked": [], "history": []}
    court.ledger.set_loop_state(LoopName.REWARD, state, "two alarms")
    assert service.answer({"command": "status"})["state"] == "running"
    court.ledger.set_loop_state(LoopName.REWARD, {**state, "strikes": 3}, "a third")
    said = "degraded: the reward loop shapes nothing after 3 alarms; `kaizend resume` re-arms it"
    assert service.answer({"command": "status"})["state"] == said
    service.works.resume = lambda: Works.resume(service.works)
    assert service.answer({"command": "resume"})["state"] == "running"
    assert (court.ledger.loop_state(LoopName.REWARD) or {})["strikes"] == 0
    row = court.ledger.latest(Event.OPERATOR)
    assert row is not None
    assert row.reason == "the reward loop was re-armed"
