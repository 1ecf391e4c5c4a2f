"""The chain: whatever is changed, deleted, moved or put in is found, and a whole chain raises no alarm."""

from __future__ import annotations

import copy
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.chain import FIELDS, START, check_channels, check_rows, hash_row
from state.database import Database
from state.ledger import Ledger
from state.reading import Reading
from state.records import Channel, Entry, Event
from state.registry import Registry

JsonRow = dict[str, Any]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5,
)
objects = st.dictionaries(texts, values, max_size=3)


@st.composite
def chains(draw: st.DrawFn, least: int = 1) -> list[JsonRow]:
    """A whole chain of a few rows."""
    rows: list[JsonRow] = []
    prev = START
    for number in range(1, draw(st.integers(least, 7)) + 1):
        row: JsonRow = {
            "id": number, "time": draw(texts), "event": draw(texts), "cycle": draw(st.none() | st.integers(0)),
            "parent": None, "loop": draw(st.none() | texts), "change": draw(objects), "verdict": None,
            "reason": draw(texts), "base": None, "result": draw(st.none() | texts), "evidence": draw(objects),
            "cost": draw(objects), "actor": "loop", "prev": prev,
        }
        row["hash"] = prev = hash_row(row)
        rows.append(row)
    return rows


def head_of(rows: list[JsonRow]) -> tuple[int, str]:
    return rows[-1]["id"], rows[-1]["hash"]


@given(chains())
def test_a_whole_chain_has_no_problems(rows: list[JsonRow]) -> None:
    assert check_rows(rows) == [] and check_rows(rows, head_of(rows)) == []


@given(chains(), st.data())
def test_any_changed_field_is_found_and_its_row_named(rows: list[JsonRow], data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(rows))
    field = data.draw(st.sampled_from([*FIELDS[1:], "hash"]))
    original = row[field]
    row[field] = data.draw((values | objects).filter(lambda value: repr(value) != repr(original)))
    assert any(f"row {row['id']} was changed" in problem for problem in check_rows(rows, None))


@given(chains(2), st.data())
def test_any_deleted_row_is_found_and_named(rows: list[JsonRow], data: st.DataObject) -> None:
    head = head_of(rows)
    index = data.draw(st.integers(0, len(rows) - 1))
    number = rows.pop(index)["id"]
    if index < len(rows):
        assert f"row {number} is missing" in check_rows(rows)
    else:
        assert check_rows(rows) == [] and check_rows(rows, head) == [
            f"rows up to {number} are missing: the chain ends at row {number - 1}"
        ]


@given(chains(2), st.data())
def test_any_other_order_is_found(rows: list[JsonRow], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    assert (check_rows([rows[index] for index in order]) == []) == (order == sorted(order))


@given(chains(2), st.data())
def test_two_rows_that_swapped_their_contents_are_found(rows: list[JsonRow], data: st.DataObject) -> None:
    one, other = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=2, max_size=2, unique=True))
    rows[one], rows[other] = rows[other] | {"id": rows[one]["id"]}, rows[one] | {"id": rows[other]["id"]}
    assert check_rows(rows) != []


@given(chains(), st.data())
def test_a_chain_rewritten_with_fitting_hashes_does_not_fit_the_head_kept_elsewhere(
    rows: list[JsonRow], data: st.DataObject
) -> None:
    head = head_of(rows)
    forged = copy.deepcopy(rows)
    start = data.draw(st.integers(0, len(rows) - 1))
    forged[start]["reason"] += "!"
    for before, row in zip([None, *forged], forged, strict=False):
        row["prev"] = before["hash"] if before else START
        row["hash"] = hash_row(row)
    assert check_rows(forged) == [] and "rewritten" in check_rows(forged, head)[0]


@given(chains(), st.data())
def test_an_inserted_copy_is_found(rows: list[JsonRow], data: st.DataObject) -> None:
    rows.insert(data.draw(st.integers(0, len(rows))), dict(data.draw(st.sampled_from(rows))))
    assert check_rows(rows) != []


@given(st.dictionaries(texts, texts, max_size=3), st.dictionaries(texts, texts, max_size=3))
def test_channels_agree_with_the_ledger_exactly_when_no_problem_is_named(
    moved: dict[str, str], pointers: dict[str, str]
) -> None:
    assert (check_channels(moved, pointers) == []) == (moved == pointers)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The database file of a small real ledger."""
    root = tmp_path_factory.mktemp("written")
    database = Database(root / "kaizend.db")
    database.migrate()
    registry = Registry(root, database)
    ledger = Ledger(database, registry)
    for name in ("one", "two"):
        (root / name).write_text(name)
        ledger.append(Entry(Event.GENESIS, name, evidence={"x": 0.1}), move=(Channel.STABLE, registry.adopt(
            root / name, "model")))
    for n in range(4):
        ledger.append(Entry(Event.OPERATOR, f"act {n}", change={"n": n}))
    database.close()
    return (root / "kaizend.db").read_bytes()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_whatever_is_done_to_the_file_behind_the_triggers_is_found(
    tmp_path_factory: pytest.TempPathFactory, written: bytes, data: st.DataObject
) -> None:
    path: Path = tmp_path_factory.mktemp("tampered") / "kaizend.db"
    path.write_bytes(written)
    number = data.draw(st.integers(1, 6))
    text = data.draw(texts)
    statement, values_given = data.draw(st.sampled_from([
        ("UPDATE ledger SET reason = reason || 'x' || ? WHERE id = ?", (text, number)),
        ("UPDATE ledger SET evidence = '{\"n\":1}' || substr(?, 1, 0) WHERE id = ?", (text, number)),
        ("UPDATE ledger SET change = '{' || ? WHERE id = ?", (text, number)),
        ("DELETE FROM ledger WHERE substr(?, 1, 0) = '' AND id = ?", (text, number)),
        ("UPDATE ledger SET id = id + 100 WHERE substr(?, 1, 0) = '' AND id = ?", (text, number)),
        ("UPDATE channels SET digest = 'x' || ? WHERE ? > 0", (text, number)),
    ]))
    with Reading(path) as reading:
        assert reading.problems() == []
    connection = sqlite3.connect(path)
    connection.executescript("DROP TRIGGER ledger_no_update; DROP TRIGGER ledger_no_delete;")
    assert connection.execute(statement, values_given).rowcount == 1
    connection.commit()
    connection.close()
    with Reading(path) as reading:
        assert reading.problems() != []
