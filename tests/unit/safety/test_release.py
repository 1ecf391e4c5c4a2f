"""Nominations: what is asked, what is answered, and that an interrupted one is finished as it was begun."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from court import Court, canned, canned_court

from safety.bounds import Bounds
from safety.gate import level, recompute
from safety.release import hindrance, nominate
from safety.rollback import rollback
from state.jobs import Desk, JobFailed, JobSpec, Parked, Produced
from state.records import Channel, Event, Verdict

FREE = replace(Bounds(), rate=replace(Bounds().rate, dwell_seconds=0.0, cycles_between_nominations=0))


def events(court: Court) -> list[str]:
    return [row.event for row in court.ledger.rows() if row.event in (Event.NOMINATED, Event.RELEASE)]


def nominated(tmp_path: Path, **answers: Any) -> tuple[Court, str, Any]:
    court = canned_court(tmp_path / "state", **answers)
    model = court.text_model("second")
    court.move_working(model)
    return court, model, nominate(court.desk)


def test_nothing_is_nominated_while_working_is_stable(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    assert nominate(court.desk) is None
    assert events(court) == []


def test_a_better_model_becomes_stable_and_its_decision_recomputes_from_the_row(tmp_path: Path) -> None:
    court, model, row = nominated(tmp_path)
    assert (row.verdict, row.result) == (Verdict.PROMOTED, model)
    assert court.ledger.channel(Channel.STABLE) == model
    assert (court.root / "stable" / "name.txt").read_text() == "second"
    scores = json.loads(court.registry.path(row.evidence["scores"]).read_text())
    assert recompute(row.evidence, scores)
    assert row.evidence["k"] == 1
    assert row.evidence["alpha_k"] == level(1, 0.05)
    assert row.evidence["drift_stable"] == {"kl_mean": 0.1, "relative_frobenius": 0.2}
    assert row.evidence["aa"]["noise"] == 0.0
    assert row.evidence["nomination"] == row.id - 1
    assert row.cost["items"] == 400
    assert nominate(court.desk) is None


@pytest.mark.parametrize(("answers", "verdict", "word"), [
    ({"decision": "futile"}, Verdict.REJECTED, "no gain"),
    ({"decision": "undecided"}, Verdict.REJECTED, "not shown"),
    ({"decision": "guard_failed"}, Verdict.REJECTED, "naming"),
    ({"kl": 99.0}, Verdict.REFUSED, "drift.reference.kl_mean"),
    ({"noise": 0.1}, Verdict.REFUSED, "gate.max_noise"),
    ({"non_finite": 3}, Verdict.REFUSED, "model.non_finite"),
])
def test_anything_else_leaves_stable_where_it_was_and_says_why(
    tmp_path: Path, answers: dict[str, Any], verdict: Verdict, word: str
) -> None:
    court, _, row = nominated(tmp_path, **answers)
    assert row.verdict == verdict
    assert word in row.reason
    assert court.ledger.channel(Channel.STABLE) == row.base
    if verdict is Verdict.REFUSED:
        assert "scores" not in row.evidence
        assert all(spec.params.get("aa") or spec.kind != "gate"
                                                    for spec in court.runner.ran)


def test_a_job_that_fails_is_a_crashed_release_and_the_next_try_has_the_next_number(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    court.bounds = FREE

    def broken(spec: Any, desk: Any) -> Any:
        raise ValueError("out of memory")

    court.runner.jobs = {**canned(), "gate": broken}
    court.move_working(court.text_model("second"))
    for k in (1, 2, 3):
        row = nominate(court.desk)
        assert row is not None
        assert (row.verdict, row.evidence["k"]) == (Verdict.CRASHED, k)
        assert "out of memory" in row.reason
    assert nominate(court.desk) is None                         # three crashes: not before working moves
    court.runner.jobs = canned()
    court.move_working(court.text_model("third"))
    row = nominate(court.desk)
    assert row is not None
    assert (row.verdict, row.evidence["k"]) == (Verdict.PROMOTED, 4)


def test_a_timed_out_gate_is_not_asked_again_about_the_same_model(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    court.bounds = FREE

    def slow(spec: Any, desk: Any) -> Any:
        raise JobFailed("took too long", Verdict.TIMED_OUT)

    court.runner.jobs = {**canned(), "gate": slow}
    court.move_working(court.text_model("second"))
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.TIMED_OUT
    assert nominate(court.desk) is None


def test_a_rejected_model_is_not_nominated_twice_but_the_next_one_is_at_a_stricter_level(tmp_path: Path) -> None:
    court, _, first = nominated(tmp_path, decision="futile")
    court.bounds = FREE
    assert nominate(court.desk) is None
    court.move_working(court.text_model("third"))
    second = nominate(court.desk)
    assert second is not None
    assert second.evidence["k"] == 2
    assert second.evidence["alpha_k"] < first.evidence["alpha_k"]


def test_a_refused_model_is_nominated_again_only_when_the_bounds_have_changed(tmp_path: Path) -> None:
    court, _model, row = nominated(tmp_path, kl=5.0)
    assert row.verdict == Verdict.REFUSED
    court.bounds = FREE
    again = nominate(court.desk)
    assert again is not None
    assert again.verdict == Verdict.REFUSED
    assert nominate(court.desk) is None
    wide = replace(FREE.drift.stable, kl_mean=9.0)
    court.bounds = replace(FREE, drift=replace(FREE.drift, stable=wide, reference=wide))
    last = nominate(court.desk)
    assert last is not None
    assert (last.verdict, last.evidence["k"]) == (Verdict.PROMOTED, 3)


def test_nominations_keep_to_the_rate_bounds_whatever_their_answers(tmp_path: Path) -> None:
    court, _, _ = nominated(tmp_path, decision="futile")
    court.bounds = replace(Bounds(), rate=replace(
        Bounds().rate, dwell_seconds=60.0, cycles_between_nominations=2, releases_per_day=2))
    court.move_working(court.text_model("third"))
    assert "dwell_seconds" in str(hindrance(court.desk))
    court.later(minutes=2)
    assert "cycles_between_nominations" in str(hindrance(court.desk))
    court.move_working(court.text_model("fourth"))
    assert nominate(court.desk) is not None
    court.later(minutes=2)
    for name in ("fifth", "sixth"):
        court.move_working(court.text_model(name))
    assert "releases_per_day" in str(hindrance(court.desk))
    court.later(days=1)
    assert nominate(court.desk) is not None


@pytest.mark.parametrize("seconds", [0.0, 50.0, 500.0])
def test_how_long_the_gate_took_does_not_decide_when_the_next_model_is_nominated(
    tmp_path: Path, seconds: float
) -> None:
    court = canned_court(tmp_path / "state", decision="futile")
    court.bounds = replace(FREE, rate=replace(FREE.rate, dwell_seconds=60.0))
    gate = court.jobs["gate"]

    def slow(spec: JobSpec, desk: Desk) -> Produced:
        court.later(seconds=seconds)
        return gate(spec, desk)

    court.runner.jobs = {**court.jobs, "gate": slow}
    court.move_working(court.text_model("second"))
    assert nominate(court.desk) is not None
    court.move_working(court.text_model("third"))
    court.later(seconds=59)
    assert "dwell_seconds" in str(hindrance(court.desk))
    court.later(seconds=1)
    assert hindrance(court.desk) is None


def test_a_model_that_was_rolled_back_is_never_nominated_again(tmp_path: Path) -> None:
    court, model, _ = nominated(tmp_path)
    court.bounds = FREE
    rollback(court.ledger, court.registry, None, "users complain")
    assert court.ledger.channel(Channel.WORKING) == model
    assert "latched" in str(hindrance(court.desk))
    assert nominate(court.desk) is None
    court.move_working(court.text_model("third"))
    assert nominate(court.desk) is not None
    court.move_working(model)
    assert nominate(court.desk) is None


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", range(8))
def test_a_nomination_stopped_before_or_after_any_job_is_finished_with_the_same_number(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    court = canned_court(tmp_path / "state")
    court.move_working(court.text_model("second"))
    run, passed = court.runner.run, iter(range(99))

    def stopping(spec: Any, **limits: Any) -> Any:
        if next(passed) == place:
            raise Parked if place % 2 else Killed
        result = run(spec, **limits)
        if next(passed) == place:
            raise Killed
        return result

    monkeypatch.setattr(court.runner, "run", stopping)
    with pytest.raises((Killed, Parked)):
        nominate(court.desk)
    assert events(court) == [Event.NOMINATED]
    again = canned_court(tmp_path / "state")
    row = nominate(again.desk)
    assert row is not None
    assert (row.verdict, row.evidence["k"]) == (Verdict.PROMOTED, 1)
    assert events(again) == [Event.NOMINATED, Event.RELEASE]
    assert len(court.runner.ran) + len(again.runner.ran) == 4      # drift, A/A, serving, gate: none of them twice


def test_bounds_that_changed_meanwhile_do_not_change_the_level_of_an_open_nomination(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    court.move_working(court.text_model("second"))
    court.runner.jobs = {}
    with pytest.raises(KeyError):
        nominate(court.desk)
    court.runner.jobs = canned()
    court.bounds = replace(Bounds(), gate=replace(Bounds().gate, alpha=0.2))
    row = nominate(court.desk)
    assert row is not None
    assert row.evidence["alpha"] == 0.05


def roll_back(court: Court) -> None:
    rollback(court.ledger, court.registry, None, "meanwhile")


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_nomination_whose_stable_model_moved_meanwhile_is_refused(tmp_path: Path, when: str) -> None:
    court, _, _ = nominated(tmp_path)
    court.bounds = FREE
    court.move_working(court.text_model("third"))
    jobs: dict[str, Callable[..., Any]] = dict(canned())
    if when == "before":
        court.runner.jobs = {}
        with pytest.raises(KeyError):
            nominate(court.desk)
        roll_back(court)
        court.runner.jobs = jobs
    else:
        def gate(spec: Any, desk: Any) -> Any:
            if not spec.params.get("aa"):
                roll_back(court)
            return jobs["gate"](spec, desk)

        court.runner.jobs = {**jobs, "gate": gate}
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.REFUSED
    assert "moved" in row.reason
    assert court.ledger.channel(Channel.STABLE) != row.result


class Fall(BaseException):
    """The daemon goes down."""


def test_a_nomination_that_takes_the_daemon_down_three_times_without_progress_is_a_crashed_release(
    tmp_path: Path,
) -> None:
    def fall(spec: Any, desk: Any) -> Any:
        raise Fall

    court = canned_court(tmp_path / "state")
    court.move_working(court.text_model("second"))
    court.runner.jobs = {**court.runner.jobs, "gate": fall}
    for _ in range(4):                                # in the first the job before it is still finished: progress
        with pytest.raises(Fall):
            nominate(court.desk)
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.CRASHED
    assert "3 times" in row.reason


def test_a_nomination_that_was_parked_in_an_orderly_way_is_never_given_up(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    court.move_working(court.text_model("second"))
    jobs = court.runner.jobs

    def park(spec: Any, desk: Any) -> Any:
        raise Parked

    court.runner.jobs = {**jobs, "gate": park}
    for _ in range(8):
        with pytest.raises(Parked):
            nominate(court.desk)
        court.ledger.forget_attempts()                # as the service does when it stops
    court.runner.jobs = jobs
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.PROMOTED


def test_jobs_that_see_the_vault_are_of_kind_gate_only(tmp_path: Path) -> None:
    court, _, row = nominated(tmp_path)
    for spec in court.runner.ran:
        assert (row.evidence["vault"] in spec.inputs.values()) == (spec.kind == "gate")
