"""The operator's approval: what passed waits, an answer is a row, and what changed meanwhile is honoured."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from court import ASKS, GENERATED, Court, canned, canned_court

from safety.approval import ApprovalError, settle
from safety.audit import audit_releases
from safety.bounds import Bounds
from safety.gate import level
from safety.history import Nominations
from safety.recall import watch
from safety.release import due, hindrance, nominate
from safety.rollback import rollback
from state.records import Actor, Channel, Event, JsonObject, Row, Verdict


def held(tmp_path: Path, **answers: Any) -> tuple[Court, Row]:
    """A court in which a nomination has passed and waits."""
    court = canned_court(tmp_path / "state", GENERATED, **answers)
    court.bounds = ASKS
    court.move_working(court.text_model("second"))
    row = nominate(court.desk)
    assert row is not None
    return court, row


def answer(court: Court, row: Row, approved: bool = True, reason: str = "read and tried") -> Row:
    return settle(court.ledger, court.registry, court.bounds, row.id, reason, approved=approved)


def problems(court: Court, rows: list[JsonObject] | None = None) -> list[str]:
    def scores(digest: str) -> JsonObject:
        body: JsonObject = json.loads(court.registry.path(digest).read_text())
        return body

    return audit_releases(rows or [row.to_json() for row in court.ledger.rows()], scores)


def test_what_passed_waits_in_a_row_and_no_channel_moves(tmp_path: Path) -> None:
    court, row = held(tmp_path)
    assert (row.event, row.verdict) == (Event.PASSED, None)
    assert "waits for approval" in row.reason
    assert court.ledger.channel(Channel.STABLE) == row.base
    assert Nominations.of(court.ledger).open is None
    assert Nominations.of(court.ledger).waiting == row
    assert not due(court.desk)
    assert nominate(court.desk) is None


def test_what_the_gate_rejected_does_not_wait(tmp_path: Path) -> None:
    _court, row = held(tmp_path, decision="futile")
    assert (row.event, row.verdict) == (Event.RELEASE, Verdict.REJECTED)


def test_an_approval_releases_with_the_evidence_of_the_gate_and_begins_the_watch(tmp_path: Path) -> None:
    court, row = held(tmp_path)
    done = answer(court, row)
    assert (done.event, done.verdict, done.actor) == (Event.RELEASE, Verdict.PROMOTED, Actor.OPERATOR)
    assert (done.reason, done.change) == ("read and tried", {"act": "approve", "passed": row.id})
    assert court.ledger.channel(Channel.STABLE) == row.result
    assert (court.root / "stable" / "name.txt").read_text() == "second"
    assert done.evidence["e"] == row.evidence["e"]
    assert problems(court) == []
    ended = watch(court.desk)
    assert ended is not None
    assert ended.event == Event.WATCHED


def test_a_rejection_leaves_stable_and_the_model_is_not_asked_for_again(tmp_path: Path) -> None:
    court, row = held(tmp_path)
    done = answer(court, row, approved=False)
    assert (done.verdict, done.actor, done.change["act"]) == (Verdict.REJECTED, Actor.OPERATOR, "reject")
    assert court.ledger.channel(Channel.STABLE) == row.base
    assert "already" in str(hindrance(court.desk))
    assert problems(court) == []


def test_the_nomination_can_be_named_by_either_row_and_nothing_else(tmp_path: Path) -> None:
    court, row = held(tmp_path)
    with pytest.raises(ApprovalError, match=f"row {row.id} does"):
        settle(court.ledger, court.registry, court.bounds, row.id + 7, "why not", approved=True)
    with pytest.raises(ApprovalError, match="needs a reason"):
        answer(court, row, reason=" ")
    settle(court.ledger, court.registry, court.bounds, row.evidence["nomination"], "fine", approved=True)
    with pytest.raises(ApprovalError, match="no nomination waits"):
        answer(court, row)


def test_a_rollback_in_between_makes_it_too_late(tmp_path: Path) -> None:
    court, first = held(tmp_path)
    answer(court, first)
    assert watch(court.desk) is not None
    court.move_working(court.text_model("third"))
    court.later(minutes=2)
    row = nominate(court.desk)
    assert row is not None
    assert row.event == Event.PASSED
    rollback(court.ledger, court.registry, None, "users complain")
    stable = court.ledger.channel(Channel.STABLE)
    done = answer(court, row)
    assert (done.verdict, done.actor) == (Verdict.REFUSED, Actor.OPERATOR)
    assert "stable has moved" in done.reason
    assert court.ledger.channel(Channel.STABLE) == stable
    assert problems(court) == []


@pytest.mark.parametrize(("section", "values", "words"), [
    ("gate", {"alpha": 0.001}, "gate.alpha"),
    ("gate", {"d0": 0.01}, "gate.d0"),
    ("gate", {"max_noise": 0.0}, None),
    ("guards", {"margin": 0.02}, "guards.margin of naming"),
    ("model", {"max_parameters": 5}, "model.max_parameters"),
    ("behaviour", {"calibration": 0.05}, "behaviour.calibration"),
    ("serving", {"latency_ratio": 0.5}, "serving.latency_ratio"),
    ("rate", {"drift_per_week": 0.1}, "rate.drift_per_week"),
])
def test_bounds_that_were_tightened_in_between_are_honoured(
    tmp_path: Path, section: str, values: dict[str, Any], words: str | None
) -> None:
    court, row = held(tmp_path)
    court.bounds = replace(ASKS, **{section: replace(getattr(ASKS, section), **values)})
    done = answer(court, row)
    assert done.verdict == (Verdict.REFUSED if words else Verdict.PROMOTED)
    assert (words or "") in done.reason
    assert (court.ledger.channel(Channel.STABLE) == row.base) == bool(words)


def test_while_one_waits_the_next_is_asked_at_its_time_and_refused_without_a_look_at_the_vault(tmp_path: Path) -> None:
    """So that the number of the one after it is the same whether the waiting one had passed or not."""
    numbers = []
    for decision in ("release", "futile"):
        court, first = held(tmp_path / decision, decision=decision)
        court.move_working(court.text_model("third"))
        assert "dwell" in str(hindrance(court.desk))
        court.later(seconds=60)
        ran = len(court.runner.ran)
        row = nominate(court.desk)
        assert row is not None
        if decision == "release":
            assert (row.verdict, len(court.runner.ran)) == (Verdict.REFUSED, ran)
            assert f"waits for the operator (row {first.id})" in row.reason
            answer(court, first)
            assert watch(court.desk) is not None
            assert problems(court) == []
        court.move_working(court.text_model("fourth"))
        court.later(seconds=60)
        last = nominate(court.desk)
        assert last is not None
        numbers.append(last.evidence["k"])
    assert numbers == [3, 3]


def test_one_that_nobody_can_release_any_more_is_withdrawn_when_the_next_is_due(tmp_path: Path) -> None:
    court, first = held(tmp_path)
    court.bounds = replace(ASKS, gate=replace(ASKS.gate, alpha=0.001))
    court.move_working(court.text_model("third"))
    court.later(seconds=60)
    assert nominate(court.desk) is not None
    row = next(each for each in court.ledger.rows(event=Event.RELEASE) if each.result == first.result)
    assert (row.verdict, row.actor) == (Verdict.REFUSED, Actor.LOOP)
    assert "it waited for approval, and gate.alpha" in row.reason


def test_approval_that_is_asked_for_meanwhile_releases_nothing_of_an_open_nomination(tmp_path: Path) -> None:
    """The bounds are not those of the nomination any more."""
    court = canned_court(tmp_path / "state", GENERATED)
    court.move_working(court.text_model("second"))
    court.runner.jobs = {}
    with pytest.raises(KeyError):
        nominate(court.desk)
    court.runner.jobs, court.bounds = canned(), ASKS
    row = nominate(court.desk)
    assert row is not None
    assert (row.event, row.verdict) == (Event.RELEASE, Verdict.REFUSED)
    assert row.reason.startswith("code.bounds")


def test_a_release_without_the_approval_it_needed_is_reported(tmp_path: Path) -> None:
    court, row = held(tmp_path)
    answer(court, row)
    rows = [copy.deepcopy(each.to_json()) for each in court.ledger.rows()]
    rows[-1]["actor"] = "loop"
    assert any("without the operator's approval" in line for line in problems(court, rows))


def test_e_lond_counts_the_releases_before_and_its_level_is_fixed_in_the_nomination(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state", GENERATED)
    court.bounds = replace(Bounds(), gate=replace(Bounds().gate, procedure="e-lond"))
    for k, name in enumerate(("second", "third", "fourth"), 1):
        court.move_working(court.text_model(name))
        row = nominate(court.desk)
        assert row is not None
        assert row.verdict == Verdict.PROMOTED
        assert (row.evidence["k"], row.evidence["releases"], row.evidence["procedure"]) == (k, k - 1, "e-lond")
        harmonic = sum(1 / i for i in range(1, k + 1))
        assert row.evidence["alpha_k"] == pytest.approx(level(k, 0.05) * k / harmonic)
        assert watch(court.desk) is not None
        court.later(hours=1)
    assert problems(court) == []
    rows = [copy.deepcopy(each.to_json()) for each in court.ledger.rows()]
    asked = [each for each in rows if each["event"] == Event.NOMINATED][-1]
    asked["evidence"]["releases"] = 1
    assert any("it counts 1 releases" in line for line in problems(court, rows))


def test_fresh_items_are_committed_to_before_they_are_dealt_and_the_seed_is_told_with_the_answer(
    tmp_path: Path,
) -> None:
    from safety.gate import commitment_of

    court = canned_court(tmp_path / "state", GENERATED)
    court.bounds = replace(
        ASKS, gate=replace(Bounds().gate, items="fresh"), rate=replace(ASKS.rate, dwell_seconds=0.0))
    dealt = []
    for name in ("second", "third"):
        court.move_working(court.text_model(name))
        row = nominate(court.desk)
        assert row is not None
        asked = court.ledger.row(row.evidence["nomination"])
        assert asked is not None
        assert "seed" not in asked.evidence
        assert asked.evidence["commitment"] == commitment_of(row.evidence["seed"])
        gate = next(spec for spec in reversed(court.runner.ran) if spec.kind == "gate" and "k" in spec.params)
        assert gate.inputs["dealt"] == row.evidence["dealt"]
        lines = (court.registry.path(row.evidence["dealt"]) / "maths.jsonl").read_text().splitlines()
        dealt.append([json.loads(line)["id"] for line in lines])
        assert watch(court.desk) is not None
    assert [len(ids) for ids in dealt] == [100, 100]
    assert dealt[0] != dealt[1]
    assert problems(court) == []
    rows = [copy.deepcopy(each.to_json()) for each in court.ledger.rows()]
    next(each for each in rows if each["event"] == Event.RELEASE)["evidence"]["seed"] = 5
    assert any("another seed" in line for line in problems(court, rows))


@pytest.mark.parametrize("waits", [True, False])
def test_what_was_refused_because_another_waited_is_not_asked_again_when_bounds_change(
    tmp_path: Path, waits: bool
) -> None:
    """As it would not be if the one before it had not passed: the vault's word decides nothing here either."""
    court, first = held(tmp_path, decision="release" if waits else "futile")
    court.move_working(court.text_model("third"))
    court.later(seconds=60)
    assert nominate(court.desk) is not None
    if waits:
        answer(court, first, approved=False)
    court.bounds = replace(ASKS, model=replace(ASKS.model, max_layers=100))
    court.later(seconds=60)
    assert "already" in str(hindrance(court.desk))


def test_what_was_approved_too_late_is_not_asked_again_under_the_new_bounds(tmp_path: Path) -> None:
    court, row = held(tmp_path)
    court.bounds = replace(ASKS, gate=replace(ASKS.gate, alpha=0.001))
    assert answer(court, row).verdict == Verdict.REFUSED
    court.later(seconds=60)
    assert "already" in str(hindrance(court.desk))
