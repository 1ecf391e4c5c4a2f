"""The hash chain over the ledger's rows: how a row is hashed, and what a reader finds wrong. Standard library only.

Invariant: `hash` covers every other field of its row, `prev` is the hash of the row before, ids run from 1 without a
gap. So a row that was changed, deleted or moved is found by whoever reads the rows in order. Rows cut off at the end
leave a shorter chain that is whole in itself: they are found by comparing with a head kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from state.records import digest_of

START = "0" * 64
FIELDS = (
    "id", "time", "event", "cycle", "parent", "loop", "change", "verdict", "reason", "base", "result", "evidence",
    "cost", "actor", "prev",
)


def hash_row(fields: Mapping[str, Any]) -> str:
    """The hash of a row, from its fields as values (JSON columns decoded); a `hash` field is left out."""
    return digest_of({name: fields[name] for name in FIELDS})


def check_rows(rows: Iterable[Mapping[str, Any]], head: tuple[int, str] | None = None) -> list[str]:
    """What is wrong with the chain, one line a defect, naming row ids; nothing when it is whole.

    `rows` come in the order in which they are kept, from the first. `head` is a last id and hash known from elsewhere
    (a signature, the journal): rows that were cut off after it, or a chain rewritten before it, are then found too.
    """
    problems: list[str] = []
    expected, prev, seen_head = 1, START, head is None or head == (0, START)
    for row in rows:
        number = row["id"]
        problems += _order(number, expected)
        if number == expected and row["prev"] != prev:
            problems.append(f"row {number} does not continue row {number - 1}: one of the two was changed or replaced")
        if not _is_whole(row):
            problems.append(f"row {number} was changed: its contents do not match its hash")
        if head is not None and number == head[0]:
            seen_head = True
            if row["hash"] != head[1]:
                problems.append(f"row {number} is not the one known as the head: the chain was rewritten up to it")
        expected, prev = number + 1, row["hash"]
    if head is not None and not seen_head:
        problems.append(f"rows up to {head[0]} are missing: the chain ends at row {expected - 1}")
    return problems


def _order(number: int, expected: int) -> list[str]:
    if number == expected + 1:
        return [f"row {expected} is missing"]
    if number > expected:
        return [f"rows {expected} to {number - 1} are missing"]
    if number < expected:
        return [f"row {number} is out of order: it comes after row {expected - 1}"]
    return []


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Whether contents and hash agree. What cannot be hashed at all (a torn text) was changed."""
    try:
        return bool(hash_row(row) == row["hash"])
    except (TypeError, ValueError):
        return False


def check_channels(moved: Mapping[str, str], pointers: Mapping[str, str]) -> list[str]:
    """What is wrong with the channels, given where the chain moved each last: a pointer that was set by nobody."""
    problems = []
    for name in sorted({*moved, *pointers}):
        stands, belongs = pointers.get(name, "nothing")[:12], moved.get(name, "nothing")[:12]
        if moved.get(name) != pointers.get(name):
            problems.append(f"{name} points at {stands}, but the ledger moved it to {belongs}")
    return problems


def check_latches(latched: set[str], kept: set[str]) -> list[str]:
    """What is wrong with the latches, given what the chain latched: one taken away, or one that nobody set."""
    return [f"{digest[:12]} was latched, but its latch is gone" for digest in sorted(latched - kept)] + [
        f"{digest[:12]} is latched, but by no row" for digest in sorted(kept - latched)
    ]
