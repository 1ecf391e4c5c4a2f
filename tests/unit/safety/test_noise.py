"""The A/A test of the stable model outside a nomination: one job for all who ask, and no clock that tells on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from court import Court, canned, canned_court

from safety.bounds import Bounds
from safety.release import compare_with_itself, hindrance, nominate
from state.jobs import Desk, JobFailed, JobSpec, Produced
from state.records import Verdict

FREE = replace(Bounds(), rate=replace(Bounds().rate, dwell_seconds=0.0, cycles_between_nominations=0))


def noise_tests(court: Court) -> list[JobSpec]:
    return [spec for spec in court.runner.ran if spec.params.get("aa")]


@pytest.mark.parametrize(("days", "runs"), [(0, 1), (7, 2)])
def test_a_nomination_of_the_same_week_takes_the_result_that_is_kept(tmp_path: Path, days: int, runs: int) -> None:
    court = canned_court(tmp_path / "state")
    before = [row.hash for row in court.ledger.rows()]
    assert compare_with_itself(court.desk)["noise"] == 0.0
    assert [row.hash for row in court.ledger.rows()] == before
    court.later(days=days)
    court.move_working(court.text_model("second"))
    row = nominate(court.desk)
    assert row is not None
    assert (row.verdict, row.evidence["aa"]["noise"]) == (Verdict.PROMOTED, 0.0)
    assert len(noise_tests(court)) == runs


def test_what_was_found_before_refuses_the_nomination_as_its_own_test_would(tmp_path: Path) -> None:
    found = []
    for name, early in (("early", True), ("late", False)):
        court = canned_court(tmp_path / name, noise=0.1)
        if early:
            compare_with_itself(court.desk)
        court.move_working(court.text_model("second"))
        row = nominate(court.desk)
        assert row is not None
        found.append((row.verdict, row.reason, row.evidence["aa"]))
    assert found[0] == found[1]
    assert (found[0][0], "gate.max_noise" in found[0][1]) == (Verdict.REFUSED, True)


def test_a_test_that_fails_is_tried_again_by_the_nomination(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")

    def broken(spec: JobSpec, desk: Desk) -> Produced:
        raise ValueError("out of memory")

    court.runner.jobs = {**canned(), "gate": broken}
    with pytest.raises(JobFailed, match="out of memory"):
        compare_with_itself(court.desk)
    court.runner.jobs = canned()
    court.move_working(court.text_model("second"))
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.PROMOTED


def test_a_test_that_takes_the_daemon_down_three_times_is_left_to_the_nomination(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def deadly(spec: JobSpec, desk: Desk) -> Produced:
        raise Killed

    for _ in range(3):
        court = canned_court(tmp_path / "state")
        court.runner.jobs = {**canned(), "gate": deadly}
        with pytest.raises(Killed):
            compare_with_itself(court.desk)
    with pytest.raises(JobFailed, match="took the daemon down 3 times"):
        compare_with_itself(canned_court(tmp_path / "state").desk)


@pytest.mark.parametrize("seconds", [0.0, 50.0, 500.0])
def test_the_clock_between_nominations_stands_still_while_stable_is_tested(tmp_path: Path, seconds: float) -> None:
    """Whether the stable model is new, and has to be tested, is what the vault said."""
    court = canned_court(tmp_path / "state")
    court.bounds = replace(FREE, rate=replace(FREE.rate, dwell_seconds=60.0))
    court.move_working(court.text_model("second"))
    assert nominate(court.desk) is not None
    desk, gate = court.desk, court.runner.jobs["gate"]

    def slow(spec: JobSpec, place: Desk) -> Any:
        court.later(seconds=seconds)
        return gate(spec, place)

    court.runner.jobs = {**court.runner.jobs, "gate": slow}
    compare_with_itself(desk)
    court.move_working(court.text_model("third"))
    court.later(seconds=59)
    assert "dwell_seconds" in str(hindrance(desk))
    court.later(seconds=1)
    assert hindrance(desk) is None
