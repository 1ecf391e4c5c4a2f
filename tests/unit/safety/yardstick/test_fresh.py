"""New items for the sealed side: out of the search's reach, not sealed, not trained on, and the same for one seed."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from court import GENERATED, canned_court

from daemon.deals import check_deals
from safety.bounds import Bounds
from safety.recall import watch
from safety.release import nominate
from safety.yardstick.fresh import can_deal, dealt_items, sealed_seed
from safety.yardstick.items import TaskError, TaskSpec
from safety.yardstick.tasks import draw, fresh_items, reserved
from state.records import Event, Split

SUMS = TaskSpec("sums", "target", {
    "kind": "reasoning_gym", "generator": "chain_sum",
    "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
}, vault_items=20, verifier="reasoning_gym")
MATHS, NAMING = GENERATED


def test_a_generators_questions_are_either_the_searchs_or_the_sealed_sides() -> None:
    """A tiny world, in which both sides meet the same questions under different numbers."""
    fresh = fresh_items(SUMS, Split.VAULT, 20, 3, frozenset())
    searched = draw(SUMS, Split.SEARCH, 100, 4)
    assert fresh
    assert searched
    assert all(reserved(SUMS, item) for item in fresh)
    assert not {item.id for item in fresh} & {item.id for item in searched}


def test_equal_arguments_deal_equal_items_and_another_seed_deals_others() -> None:
    deals = [dealt_items([MATHS, NAMING], {"maths": 50, "naming": 40}, seed, frozenset(), []) for seed in (1, 1, 2)]
    assert deals[0] == deals[1]
    assert deals[0] != deals[2]
    assert {name: len(items) for name, items in deals[0].items()} == {"maths": 50, "naming": 40}


def test_what_is_sealed_or_trained_on_is_not_dealt(tmp_path: Path) -> None:
    first = dealt_items([MATHS], {"maths": 60}, 1, frozenset(), [])["maths"]
    sealed = frozenset(item.id for item in first[:30])
    data = tmp_path / "data.jsonl"
    data.write_text("".join(
        json.dumps({"prompt": item.prompt, "answer": item.answer}) + "\n" for item in first[30:40]))
    again = {item.id for item in dealt_items([MATHS], {"maths": 60}, 1, sealed, [data])["maths"]}
    assert not again & sealed
    assert not again & {item.id for item in first[30:40]}
    assert {item.id for item in first[40:]} & again


def test_a_world_that_is_used_up_deals_what_is_left() -> None:
    everything = dealt_items([MATHS], {"maths": 10**6}, 1, frozenset(), [])["maths"]
    left = dealt_items([MATHS], {"maths": 100}, 1, frozenset(item.id for item in everything[5:]), [])["maths"]
    assert {item.id for item in left} == {item.id for item in everything[:5]}


def test_files_cannot_deal_and_search_items_are_never_dealt() -> None:
    task = TaskSpec("t", "target", {"kind": "jsonl", "path": "x"}, vault_items=5)
    assert not can_deal(task)
    with pytest.raises(TaskError, match="no new items"):
        fresh_items(task, Split.VAULT, 5, 1, frozenset())
    with pytest.raises(ValueError, match="never search items"):
        fresh_items(MATHS, Split.SEARCH, 5, 1, frozenset())


def test_the_seed_depends_on_the_vaults_bytes_the_purpose_and_the_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("one")
    seeds = [sealed_seed(tmp_path, purpose, k) for purpose in ("gate", "watch") for k in (1, 2)]
    (tmp_path / "a.jsonl").write_text("two")
    assert len({*seeds, sealed_seed(tmp_path, "gate", 1)}) == 5


def test_verify_deals_once_more_and_finds_a_seed_or_items_that_do_not_fit(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state", GENERATED)
    court.bounds = replace(Bounds(), gate=replace(Bounds().gate, items="fresh"))
    court.move_working(court.text_model("second"))
    assert nominate(court.desk) is not None
    assert watch(court.desk) is not None
    rows = [row.to_json() for row in court.ledger.rows()]

    def problems(changed: list[dict]) -> list[str]:  # type: ignore[type-arg]
        return list(check_deals(changed, court.registry.path, {}, "code"))

    assert problems(rows) == []
    forged = copy.deepcopy(rows)
    next(row for row in forged if row["event"] == Event.RELEASE)["evidence"]["seed"] += 1
    assert "does not follow from the vault" in problems(forged)[0]
    other = copy.deepcopy(rows)
    release, ended = (next(row for row in other if row["event"] == event) for event in (Event.RELEASE, Event.WATCHED))
    release["evidence"]["dealt"] = ended["evidence"]["watch"]["dealt"]
    assert "not those that its seed deals" in problems(other)[0]
    assert list(check_deals(forged, court.registry.path, {}, "another version")) == []
