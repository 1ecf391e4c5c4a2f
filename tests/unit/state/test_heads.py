"""Signed heads: what they find on a chain that is whole in itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from signatures import JsonRow, rechained

from state.chain import check_rows
from state.errors import StateError
from state.heads import Head, HeadCheck, check_elsewhere, is_signed, read_heads
from state.signing import SigningKey, genuine, make_key


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    folder = tmp_path_factory.mktemp("keys")
    return [make_key(folder / name) for name in ("one", "other")]


def row(event: str, **more: object) -> JsonRow:
    """A row of no loop; `rechained` gives it its id and hash."""
    empty = dict.fromkeys(("cycle", "parent", "loop", "verdict", "base", "result"))
    return {"time": "t", "event": event, **empty, "reason": "r", "change": {}, "evidence": {}, "cost": {},
            "actor": "loop", **more}


def life(key: SigningKey) -> list[JsonRow]:
    """Seven rows: bounds, genesis, an outermost cycle with one inside, a release."""
    return rechained([
        row("bounds"), row("genesis", evidence={"signing_key": key.public}), row("opened", cycle=3),
        row("opened", cycle=4, parent=3), row("closed", cycle=4, parent=3, verdict="REJECTED"),
        row("closed", cycle=3, verdict="PROMOTED"), row("release", verdict="PROMOTED"),
    ])


def sign(rows: list[JsonRow], key: SigningKey) -> list[Head]:
    return [key.head(r["id"], r["hash"], r["time"]) for r in rows if is_signed(r["event"], r["parent"])]


def check(rows: list[JsonRow], heads: list[Head], trusted: str | None) -> list[str]:
    assert check_rows(rows) == []                       # no help from the chain
    found = HeadCheck({head.row: head for head in heads}, genuine)
    for one in rows:
        found.take(one)
    return found.result(trusted, "signing.pub")


def test_all_that_ends_something_is_signed_and_what_lies_inside_a_cycle_is_not(keys: list[SigningKey]) -> None:
    rows = life(keys[0])
    assert [head.row for head in sign(rows, keys[0])] == [1, 2, 6, 7]
    assert check(rows, sign(rows, keys[0]), keys[0].public) == []


def test_a_ledger_that_was_never_signed_is_no_problem_until_a_key_says_otherwise(keys: list[SigningKey]) -> None:
    rows = rechained([row("genesis"), row("release")])
    assert check(rows, [], None) == []
    assert check(rows, [], keys[0].public) == ["no head is signed, although signing.pub holds the key of one who signs"]


def test_a_rewritten_row_is_found_at_the_next_head(keys: list[SigningKey]) -> None:
    heads = sign(life(keys[0]), keys[0])
    rows = life(keys[0])
    rows[3]["reason"] = "better"
    assert check(rechained(rows), heads, keys[0].public) == [
        "row 6 is not the one that was signed: the ledger was rewritten at it or before it (and so 1 more)"
    ]


def test_rows_and_heads_that_were_cut_off_inside_are_found(keys: list[SigningKey]) -> None:
    rows, heads = life(keys[0]), sign(life(keys[0]), keys[0])
    assert check(rows[:6], heads, keys[0].public) == ["rows 7 to 7 are missing: a head of row 7 is signed"]
    assert check(rows, heads[:-1], keys[0].public) == ["row 7 is not signed, and every row of its kind is"]
    assert check(rows[:6], heads[:-1], keys[0].public) == []        # only a head kept elsewhere shows this
    hashes = {r["id"]: r["hash"] for r in rows[:6]}
    assert check_elsewhere(hashes, 6, heads, genuine, "journal") == [
        "rows 7 to 7 are missing: journal holds a head of row 7"
    ]


def test_a_gap_is_named_by_the_head_of_the_missing_row(keys: list[SigningKey]) -> None:
    rows, heads = life(keys[0]), sign(life(keys[0]), keys[0])
    found = HeadCheck({head.row: head for head in heads}, genuine)
    for one in [*rows[:5], rows[6]]:
        found.take(one)
    assert found.result(keys[0].public, "signing.pub") == ["row 6 is missing: a head of it is signed"]


def test_heads_of_another_key_and_forged_ones_are_found(keys: list[SigningKey]) -> None:
    mine, theirs = keys
    rows, heads = life(mine), sign(life(mine), mine)
    forged = theirs.head(7, rows[6]["hash"], "t")
    assert "signed with key" in check(rows, [*heads[:-1], forged], mine.public)[0]
    pretended = Head(7, rows[6]["hash"], "t", mine.public, forged.signature)
    assert check(rows, [*heads[:-1], pretended], mine.public) == [
        f"the signature of row 7 is not one of key {mine.public[:12]}"
    ]
    everything = life(theirs)
    assert check(everything, sign(everything, theirs), mine.public) == [
        f"the heads are signed with key {theirs.public[:12]}, but signing.pub holds {mine.public[:12]}"
    ]
    assert "there is no public key" in check(rows, heads, None)[0]


def test_a_key_takes_over_by_a_row_that_names_both(keys: list[SigningKey]) -> None:
    first, second = keys
    taking = [*life(first), row("key", change={"before": first.public, "after": second.public}), row("rollback")]
    rows = rechained(taking)
    heads = [*sign(rows[:7], first), *sign(rows[7:], second)]
    assert check(rows, heads, second.public) == []
    assert "but signing.pub holds" in check(rows, heads, first.public)[0]
    unrelated = rechained([*life(first), row("key", change={"before": None, "after": second.public})])
    assert check(unrelated, [*sign(unrelated[:7], first), *sign(unrelated[7:], second)], second.public) == [
        f"row 8 names key {second.public[:12]}, but the rows before it are signed with {first.public[:12]}"
    ]
    silent = rechained([*life(first), row("rollback")])
    assert "the head of row 8 is signed with key" in check(
        silent, [*sign(silent[:7], first), *sign(silent[7:], second)], second.public)[0]


def test_an_older_ledger_is_signed_from_the_row_on_that_names_its_key(keys: list[SigningKey]) -> None:
    rows = rechained([row("genesis"), row("release"), row("key", change={"before": None, "after": keys[0].public})])
    assert check(rows, sign(rows[2:], keys[0]), keys[0].public) == []


def test_heads_are_read_from_whatever_the_journal_holds_beside_them(keys: list[SigningKey], tmp_path: Path) -> None:
    head = keys[0].head(3, "ab", "2026-11-22T00:00:00.000000Z")
    file = tmp_path / "journal"
    lines = ["Started kaizend.", json.dumps({"event": "started", "row": 3}), "", "[1]",
             json.dumps({**head.to_json(), "event": "signed", "level": "info", "timestamp": "x"}), '{"row": 4, "ha']
    file.write_text("\n".join(lines))
    assert read_heads(file) == [head] and genuine(read_heads(file)[0])
    with pytest.raises(StateError, match="cannot read"):
        read_heads(tmp_path / "nowhere")


@pytest.mark.parametrize("change", [
    {"row": 4}, {"hash": "ac"}, {"time": "t2"}, {"key": "00" * 32}, {"signature": "00" * 64}, {"signature": "no hex"},
])
def test_a_head_is_genuine_only_as_it_was_signed(keys: list[SigningKey], change: JsonRow) -> None:
    head = keys[0].head(3, "ab", "t")
    assert genuine(head) and not genuine(Head(**{**head.to_json(), **change}))
