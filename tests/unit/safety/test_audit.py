"""The audit: an honest life has no problem, each kind of forgery has its line."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from court import Court, canned_court

from safety.audit import audit_releases
from safety.release import nominate
from state.records import JsonObject


@pytest.fixture
def life(tmp_path: Path) -> tuple[Court, list[JsonObject]]:
    court = canned_court(tmp_path / "state")
    for name in ("a", "b"):
        court.move_working(court.text_model(name))
        assert nominate(court.desk) is not None
        court.later(hours=1)
    return court, [copy.deepcopy(row.to_json()) for row in court.ledger.rows()]


def scores(court: Court, digest: str) -> JsonObject | None:
    body: JsonObject = json.loads(court.registry.path(digest).read_text())
    return body


def test_an_honest_life_recomputes(life: tuple[Court, list[JsonObject]]) -> None:
    court, rows = life
    assert [row["event"] for row in rows].count("release") == 2
    assert audit_releases(rows, lambda digest: scores(court, digest)) == []


@pytest.mark.parametrize(("forge", "words"), [
    (lambda row: row["evidence"].update(k=1), "k is 1"),
    (lambda row: row["evidence"].update(e=1e6), "e: the ledger says"),
    (lambda row: row["evidence"].update(decision="futile"), "although the gate's decision was futile"),
    (lambda row: row["evidence"].update(nomination=1), "does not hold"),
    (lambda row: row["evidence"].pop("scores"), "without per-item scores"),
    (lambda row: row.update(result="other"), "other models"),
])
def test_a_forged_release_is_reported_by_its_row(life: tuple[Court, list[JsonObject]], forge: Any, words: str) -> None:
    court, rows = life
    forge(rows[-1])
    problems = audit_releases(rows, lambda digest: scores(court, digest))
    assert any(line.startswith(f"row {rows[-1]['id']}: ") and words in line for line in problems), problems


def test_a_nomination_that_was_left_out_of_the_count_and_lost_scores_are_reported(
    life: tuple[Court, list[JsonObject]]
) -> None:
    _court, rows = life
    first = next(row for row in rows if row["event"] == "nominated")
    assert any("calls itself" in line for line in audit_releases([r for r in rows if r is not first], lambda d: None))
    assert any("gone" in line for line in audit_releases(rows, lambda digest: None))
