"""Signed heads: whatever is done to a row that a head covers is found, although the chain was computed anew."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signatures import JsonRow, rechained

from state.chain import FIELDS, check_rows
from state.heads import Head, HeadCheck, check_elsewhere, is_signed
from state.signing import SigningKey, genuine, make_key

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.none() | st.booleans() | st.integers() | texts | st.dictionaries(texts, texts | st.integers(), max_size=2)
EVENTS = ("opened", "closed", "nominated", "release", "rollback", "bounds", "alarm", "operator")
KEYS: list[SigningKey] = []


@pytest.fixture(scope="module", autouse=True)
def _keys(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("keys")
    KEYS[:] = [make_key(folder / name) for name in ("own", "intruder's")]


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[list[JsonRow], list[Head]]:
    """A ledger of a few rows as the program writes it: each row of its kind signed, sometimes the last one as well."""
    rows: list[JsonRow] = []
    for number in range(draw(st.integers(2, 8))):
        event = "genesis" if number == 0 else draw(st.sampled_from(EVENTS))
        rows.append({
            "time": draw(texts), "event": event, "cycle": None, "loop": None, "verdict": None, "base": None,
            "parent": draw(st.none() | st.just(1)) if event in ("opened", "closed", "alarm") else None,
            "change": draw(st.dictionaries(texts, texts, max_size=2)), "reason": draw(texts), "result": None,
            "evidence": {"signing_key": KEYS[0].public} if event == "genesis" else {"e": draw(st.integers())},
            "cost": {}, "actor": "loop",
        })
    rows = rechained(rows)
    last = rows[-1]["id"] if draw(st.booleans()) else 0
    return rows, [
        KEYS[0].head(row["id"], row["hash"], row["time"])
        for row in rows if is_signed(row["event"], row["parent"]) or row["id"] == last
    ]


def problems(rows: list[JsonRow], heads: list[Head], trusted: str | None = None) -> list[str]:
    check = HeadCheck({head.row: head for head in heads}, genuine)
    for row in rows:
        check.take(row)
    return check.result(trusted or KEYS[0].public, "signing.pub")


@given(ledgers())
def test_a_ledger_as_it_was_written_has_no_problem(ledger: tuple[list[JsonRow], list[Head]]) -> None:
    rows, heads = ledger
    assert check_rows(rows) == [] and problems(rows, heads) == []
    hashes = {row["id"]: row["hash"] for row in rows}
    assert check_elsewhere(hashes, len(rows), heads, genuine, "elsewhere") == []


@given(ledgers(), st.data())
def test_any_change_of_any_covered_row_with_the_chain_computed_anew_is_found(
    ledger: tuple[list[JsonRow], list[Head]], data: st.DataObject
) -> None:
    rows, heads = copy.deepcopy(ledger)
    row = data.draw(st.sampled_from(rows[: heads[-1].row]))
    field = data.draw(st.sampled_from([name for name in FIELDS if name not in ("id", "prev")]))
    original = row[field]
    row[field] = data.draw(values.filter(lambda value: repr(value) != repr(original)))
    forged = rechained(rows)
    assert check_rows(forged) == [] and problems(forged, heads) != []


@given(ledgers(), st.data())
def test_any_deletion_repetition_or_other_order_up_to_a_head_is_found(
    ledger: tuple[list[JsonRow], list[Head]], data: st.DataObject
) -> None:
    rows, heads = ledger
    covered = heads[-1].row
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=len(rows) + 1))
    if order[:covered] == list(range(covered)):
        return                                               # only rows that no head covers were touched
    forged = rechained([rows[index] for index in order])
    assert problems(forged, heads) != []


@given(ledgers(), st.data())
def test_heads_taken_away_or_signed_anew_by_another_are_found(
    ledger: tuple[list[JsonRow], list[Head]], data: st.DataObject
) -> None:
    """The intruder rewrites a row and then does what can be done about the heads without the key."""
    rows, heads = copy.deepcopy(ledger)
    must = [head.row for head in heads if is_signed(rows[head.row - 1]["event"], rows[head.row - 1]["parent"])]
    row = data.draw(st.sampled_from(rows[: must[-1]]))
    row["reason"] += "!"
    forged = rechained(rows)
    kept = [head for head in heads if head.row < row["id"]]
    name_own: bool = data.draw(st.booleans())
    if name_own:
        forged[0]["evidence"] = {"signing_key": KEYS[1].public}
        forged, kept = rechained(forged), []
    mine = [KEYS[1].head(row["id"], row["hash"], row["time"]) for row in forged if row["id"] in must]
    tries: list[list[Head]] = [kept, [*kept, *(head for head in mine if head.row >= row["id"])], mine, []]
    for attempt in tries:
        assert problems(forged, attempt) != []
    hashes: dict[int, Any] = {row["id"]: row["hash"] for row in forged}
    assert check_elsewhere(hashes, len(forged), heads, genuine, "elsewhere") != []


@given(ledgers(), st.data())
def test_a_ledger_cut_back_to_an_earlier_head_is_found_by_any_later_one_kept_elsewhere(
    ledger: tuple[list[JsonRow], list[Head]], data: st.DataObject
) -> None:
    rows, heads = ledger
    left = data.draw(st.integers(0, heads[-1].row - 1))
    hashes = {row["id"]: row["hash"] for row in rows[:left]}
    elsewhere = [head for head in heads if head.row > left]
    kept = data.draw(st.lists(st.sampled_from(elsewhere), min_size=1, max_size=3))
    assert check_elsewhere(hashes, left, kept, genuine, "elsewhere") != []
