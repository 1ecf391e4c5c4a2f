"""Why an artefact stays: each reason by itself, on a ledger where no other holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from court import ASKS, Court, canned_court

from daemon.garbage import collect_garbage, why_kept
from safety.bounds import Bounds
from safety.release import nominate
from safety.rollback import rollback
from state.reading import Reading
from state.records import Channel, Event

FREE = replace(Bounds(), rate=replace(Bounds().rate, dwell_seconds=0.0, cycles_between_nominations=0))


@pytest.fixture
def court(tmp_path: Path) -> Court:
    (tmp_path / "kaizend.toml").write_text("")
    return canned_court(tmp_path / "var")


def released(court: Court, name: str) -> str:
    digest = court.text_model(name)
    court.move_working(digest)
    court.bounds = FREE
    row = nominate(court.desk)
    assert row is not None and court.ledger.channel(Channel.STABLE) == digest
    return digest


def reasons(court: Court) -> dict[str, str]:
    with Reading(court.ledger.database.path) as reading:
        return why_kept(reading)


def test_what_is_in_force_or_a_rollback_target_or_the_beginning_stays_and_a_spare_goes(
    court: Court, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(court.ledger.channel(Channel.STABLE))
    second, third, spare = released(court, "second"), released(court, "third"), court.text_model("spare")
    working = court.text_model("working")
    court.move_working(working)
    found = reasons(court)
    assert found[third] == "in force: stable" and found[working] == "in force: working"
    assert found[second].startswith("a rollback may go back to it: stable since row ")
    assert found[first] == "what this life began with"
    assert spare not in found
    collect_garbage(tmp_path, apply=False)
    dry = capsys.readouterr().out
    assert court.registry.holds(spare) and "1 artefacts, 5 bytes can go: add --apply" in dry
    collect_garbage(tmp_path, apply=True)
    assert "removed 1 artefacts, 5 bytes" in capsys.readouterr().out
    assert not court.registry.holds(spare)
    assert all(court.registry.holds(digest) for digest in (first, second, third, working))
    assert rollback(court.ledger, court.registry, None, "back").result == second


def test_what_was_rolled_back_goes_once_working_has_left_it_and_its_scores_stay(court: Court) -> None:
    bad = released(court, "bad")
    scores = next(iter(court.ledger.rows(event=Event.RELEASE))).evidence["scores"]
    rollback(court.ledger, court.registry, None, "worse", also_working=True)
    found = reasons(court)
    assert bad not in found
    assert found[scores] == "evidence that verify recomputes a decision from"


def test_the_models_of_a_nomination_that_waits_stay_when_working_has_moved_on(court: Court) -> None:
    court.bounds = ASKS
    asked = court.text_model("asked")
    court.move_working(asked)
    row = nominate(court.desk)
    assert row is not None and row.event == Event.PASSED
    court.move_working(court.text_model("later"))
    assert reasons(court)[asked].startswith("the nomination of row ")


def test_sealed_splits_stay(court: Court) -> None:
    seals = court.desk.seals
    assert {seals.vault, seals.guard, seals.seal} <= reasons(court).keys()
