"""The watch after a release: what it finds, what it does by itself, and that a stopped one goes on where it was."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from court import GENERATED, Court, canned_court

from daemon.reports import status_report
from safety.audit import audit_releases
from safety.bounds import Bounds
from safety.recall import to_watch, watch
from safety.release import hindrance, nominate
from safety.rollback import rollback
from state.jobs import Desk, JobFailed, JobSpec, Parked, Produced
from state.records import Actor, Channel, Event, JsonObject, Row, Verdict

FREE = replace(Bounds(), rate=replace(Bounds().rate, dwell_seconds=0.0, cycles_between_nominations=0))


def released(tmp_path: Path, **answers: Any) -> Court:
    """A court whose first nomination has just been released."""
    court = canned_court(tmp_path / "state", GENERATED, **answers)
    court.bounds = FREE
    court.move_working(court.text_model("second"))
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.PROMOTED
    return court


def problems(court: Court, rows: list[JsonObject] | None = None) -> list[str]:
    def scores(digest: str) -> JsonObject:
        body: JsonObject = json.loads(court.registry.path(digest).read_text())
        return body

    return audit_releases(rows or [row.to_json() for row in court.ledger.rows()], scores)


def last(court: Court) -> Row:
    return list(court.ledger.rows())[-1]


def test_the_terms_of_the_watch_are_fixed_in_the_row_of_the_release(tmp_path: Path) -> None:
    plan = last(released(tmp_path)).evidence["watch"]
    assert (plan["possible"], plan["alpha"], plan["items"], plan["threshold"]) == (True, 0.05, 2000, 40.0)
    assert (plan["targets"], plan["margins"], plan["not_watched"]) == (["maths"], {"naming": 0.03}, [])
    assert len(plan["commitment"]) == 64
    assert "seed" not in plan


def test_a_model_that_is_as_good_as_the_one_before_stays_and_the_end_of_its_watch_is_a_row(tmp_path: Path) -> None:
    court = released(tmp_path)
    stable = court.ledger.channel(Channel.STABLE)
    row = watch(court.desk)
    assert row is not None
    assert (row.event, row.verdict, row.actor) == (Event.WATCHED, None, Actor.LOOP)
    assert "not shown to be worse" in row.reason
    found = row.evidence["watch"]
    assert (found["worse"], len(found["looks"])) == (None, 8)
    assert found["n"]["targets"] == 2000
    assert court.ledger.channel(Channel.STABLE) == stable
    assert watch(court.desk) is None
    assert problems(court) == []


@pytest.mark.parametrize(("answers", "words"), [
    ({"on_new_items": -0.05}, "worse than the model it replaced"),
    ({"on_new_guard": -0.2}, "lost more than its margin on naming"),
])
def test_a_worse_model_is_rolled_back_and_latched_and_working_stays(
    tmp_path: Path, answers: dict[str, float], words: str
) -> None:
    court = released(tmp_path, **answers)
    first = next(court.ledger.rows(event=Event.GENESIS)).result
    bad, working = (court.ledger.channel(channel) for channel in (Channel.STABLE, Channel.WORKING))
    row = watch(court.desk)
    assert row is not None
    assert (row.event, row.verdict, row.actor) == (Event.ROLLBACK, Verdict.ROLLED_BACK, Actor.LOOP)
    assert words in row.reason
    assert (row.base, row.result) == (bad, first)
    assert court.ledger.channel(Channel.STABLE) == first
    assert court.ledger.latched() == {bad}
    assert court.ledger.channel(Channel.WORKING) == working
    assert (court.root / "stable" / "name.txt").read_text() == "first"
    assert row.evidence["watch"]["trajectory"][-1] >= row.evidence["watch"]["threshold"]
    assert "latched" in str(hindrance(court.desk))
    assert watch(court.desk) is None
    assert problems(court) == []


def test_a_guard_that_lost_less_than_its_margin_is_no_reason(tmp_path: Path) -> None:
    row = watch(released(tmp_path, on_new_guard=-0.025).desk)
    assert row is not None
    assert row.event == Event.WATCHED


def test_no_item_of_a_watch_was_sealed_or_can_be_drawn_for_search(tmp_path: Path) -> None:
    from safety.yardstick.tasks import draw
    from state.records import Split

    court = released(tmp_path)
    row = watch(court.desk)
    assert row is not None
    spec = next(spec for spec in court.runner.ran if spec.kind == "deal")
    assert spec.inputs["seal"] == court.desk.seals.seal
    folder = court.registry.path(row.evidence["watch"]["dealt"])
    dealt = {json.loads(line)["id"] for line in (folder / "maths.jsonl").read_text().splitlines()}
    assert len(dealt) == 2000
    assert not dealt & {item.id for item in draw(GENERATED[0], Split.SEARCH, 4000, 1)}


def test_tasks_from_files_cannot_be_watched_and_the_row_says_so(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state")
    court.move_working(court.text_model("second"))
    row = nominate(court.desk)
    assert row is not None
    assert row.evidence["watch"]["possible"] is False
    assert row.evidence["watch"]["not_watched"] == ["maths", "naming"]
    assert to_watch(court.ledger) is None


def test_without_items_there_is_no_watch(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state", GENERATED)
    court.bounds = replace(FREE, gate=replace(FREE.gate, watch_items=0))
    court.move_working(court.text_model("second"))
    assert nominate(court.desk) is not None
    assert watch(court.desk) is None


@pytest.mark.parametrize("by", ["operator", "release"])
def test_a_watch_ends_where_stable_has_moved_on(tmp_path: Path, by: str) -> None:
    court = released(tmp_path, on_new_items=-0.05)
    if by == "operator":
        rollback(court.ledger, court.registry, None, "users complain")
    else:
        court.move_working(court.text_model("third"))
        assert nominate(court.desk) is not None
    stable = court.ledger.channel(Channel.STABLE)
    row = watch(court.desk)
    assert row is not None
    assert (row.event, "moved on" in row.reason) == (Event.WATCHED, True)
    assert court.ledger.channel(Channel.STABLE) == stable
    assert problems(court) == []
    if by == "release":
        again = watch(court.desk)                             # the newer release has a watch of its own
        assert again is not None
        assert again.event == Event.ROLLBACK


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", range(0, 9, 2))
def test_a_watch_stopped_at_any_job_goes_on_and_does_no_look_twice(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    court = released(tmp_path, on_new_items=-0.004)
    before, run, passed = len(court.runner.ran), court.runner.run, iter(range(99))

    def stopping(spec: Any, **limits: Any) -> Any:
        if next(passed) == place:
            raise Parked if place % 4 else Killed
        return run(spec, **limits)

    monkeypatch.setattr(court.runner, "run", stopping)
    with pytest.raises((Killed, Parked)):
        watch(court.desk)
    assert last(court).event == Event.RELEASE
    again = canned_court(tmp_path / "state", GENERATED, on_new_items=-0.004)
    row = watch(again.desk)
    assert row is not None
    assert row.event == Event.WATCHED
    assert len(court.runner.ran) - before + len(again.runner.ran) == 9        # one deal, eight looks
    assert problems(again) == []


def failing(court: Court, times: int, failure: Exception) -> None:
    """Let the watch's job fail so often, after a first look that is well."""
    whole, failures = court.runner.jobs["watch"], iter(range(times))

    def watching(spec: JobSpec, desk: Desk) -> Produced:
        if spec.params["look"] and next(failures, None) is not None:
            raise failure
        return whole(spec, desk)

    court.runner.jobs = {**court.runner.jobs, "watch": watching}


@pytest.mark.parametrize("answers", [{}, {"on_new_items": -0.02}])
def test_a_watch_whose_job_fails_once_is_begun_again_and_sees_what_it_would_have_seen(
    tmp_path: Path, answers: dict[str, float]
) -> None:
    court = released(tmp_path, **answers)
    failing(court, 1, JobFailed("out of memory"))
    attempt = watch(court.desk)
    assert attempt is not None
    assert (attempt.event, attempt.verdict) == (Event.WATCHED, Verdict.CRASHED)
    assert attempt.reason.endswith("failed, attempt 1 of 3: out of memory")
    assert to_watch(court.ledger) is not None
    row = watch(court.desk)
    assert row is not None
    undisturbed = watch(released(tmp_path / "other", **answers).desk)
    assert undisturbed is not None
    assert (row.event, row.verdict, row.reason) == (
        undisturbed.event, undisturbed.verdict, undisturbed.reason.replace(
            f"row {undisturbed.evidence['watch']['release']} ", f"row {row.evidence['watch']['release']} "))
    assert row.evidence["watch"]["trajectory"] == undisturbed.evidence["watch"]["trajectory"]
    looks = [spec.params["look"] for spec in court.runner.ran if spec.kind == "watch"]
    assert looks == sorted([*set(looks), 1])                      # the look that failed, and no other, twice
    assert to_watch(court.ledger) is None
    assert problems(court) == []


def told_by_status(court: Court, capsys: pytest.CaptureFixture[str]) -> list[str]:
    config = court.root.parent / "kaizend.toml"
    config.write_text(f'[service]\nstate = "{court.root}"\n')
    (court.root.parent / "bounds.toml").touch()
    status_report(config, as_json=True)
    told: list[str] = json.loads(capsys.readouterr().out)["warnings"]
    return told


def test_a_watch_whose_job_always_fails_is_given_up_and_status_says_so_while_the_model_is_stable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    court = released(tmp_path)
    stable = court.ledger.channel(Channel.STABLE)
    failing(court, 99, JobFailed("out of memory"))
    rows = [row for row in (watch(court.desk), watch(court.desk)) if row]
    assert told_by_status(court, capsys) == []
    rows += [row for row in (watch(court.desk), watch(court.desk)) if row]
    assert [(row.event, row.verdict) for row in rows] == [(Event.WATCHED, Verdict.CRASHED)] * 3
    assert ["attempt 1 of 3" in rows[0].reason, "attempt 2 of 3" in rows[1].reason] == [True, True]
    assert rows[2].reason.endswith("was given up: out of memory")
    assert to_watch(court.ledger) is None
    assert court.ledger.channel(Channel.STABLE) == stable
    assert problems(court) == []
    told, = told_by_status(court, capsys)
    assert told == f"stable is not watched: {rows[2].reason} (row {rows[2].id})"
    rollback(court.ledger, court.registry, None, "better safe")
    assert told_by_status(court, capsys) == []


@pytest.mark.parametrize("verdict", [Verdict.TIMED_OUT, Verdict.REFUSED])
def test_a_watch_that_no_repetition_helps_is_given_up_at_once(tmp_path: Path, verdict: Verdict) -> None:
    court = released(tmp_path)
    failing(court, 99, JobFailed("killed, resources.scratch_gib: 2 is outside 1", verdict))
    row = watch(court.desk)
    assert row is not None
    assert (row.verdict, "was given up" in row.reason) == (verdict, True)
    assert watch(court.desk) is None


def test_a_watch_that_takes_the_daemon_down_is_given_up_although_it_failed_before(tmp_path: Path) -> None:
    court = released(tmp_path)
    failing(court, 1, JobFailed("out of memory"))
    assert watch(court.desk) is not None
    for _ in range(3):
        failing(court, 1, Killed())                                          # type: ignore[arg-type]
        with pytest.raises(Killed):
            watch(court.desk)
    row = watch(court.desk)
    assert row is not None
    assert "took the daemon down 3 times" in row.reason
    assert watch(court.desk) is None


def test_the_clock_between_nominations_stands_still_while_a_release_is_watched(tmp_path: Path) -> None:
    court = released(tmp_path)
    court.bounds = replace(FREE, rate=replace(FREE.rate, dwell_seconds=60.0))
    court.move_working(court.text_model("third"))
    court.later(seconds=500)
    assert "dwell_seconds" in str(hindrance(court.desk))
    assert watch(court.desk) is not None
    court.later(seconds=59)
    assert "dwell_seconds" in str(hindrance(court.desk))
    court.later(seconds=1)
    assert hindrance(court.desk) is None


@pytest.mark.parametrize(("forge", "words"), [
    (lambda found: found["e"].update(targets=1e6), "e: the ledger says"),
    (lambda found: found.update(worse=None), "although the watch had found nothing"),
    (lambda found: found.update(alpha=0.5), "alpha of the watch is 0.5"),
    (lambda found: found.update(seed=1), "another seed"),
    (lambda found: found["looks"][0].update(items_digest="x"), "other items"),
    (lambda found: found.update(release=1), "does not hold"),
    (lambda found: found["looks"].pop(), "its scores give"),
])
def test_a_forged_rollback_is_reported_by_its_row(tmp_path: Path, forge: Any, words: str) -> None:
    court = released(tmp_path, on_new_items=-0.05)
    row = watch(court.desk)
    assert row is not None
    rows = [copy.deepcopy(each.to_json()) for each in court.ledger.rows()]
    forge(rows[-1]["evidence"]["watch"])
    found = problems(court, rows)
    assert any(line.startswith(f"row {row.id}: ") and words in line for line in found), found
