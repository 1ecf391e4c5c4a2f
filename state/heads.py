"""Signed heads: the ledger's last row as it stood at a moment, under a key that the database does not hold.

Standard library only. Invariants: whatever ends something (genesis, bounds, nomination, release, rollback, an
operator's act, an outermost cycle) is signed in the transaction that writes its row; the row that names a key is
signed by it. So a chain that was computed anew from any row on does not fit the first head after that row, and a row
that should be signed cannot be left unsigned. What only the heads kept elsewhere can show: a ledger that was cut back
to an earlier signed head, or written anew by someone who holds the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from state.errors import in_one_line
from state.records import Event, JsonObject

SIGNING_KEY = "signing_key"      # in the evidence of a GENESIS row: the key in force from the beginning
NAMING = (Event.GENESIS, Event.KEY)
SHOWN = 12                       # digits of a key that people see
HEXADECIMAL = re.compile("(?:[0-9a-f]{2})+")
REWRITTEN = "the ledger was rewritten at it or before it"


@dataclass(frozen=True, slots=True)
class Head:
    """The ledger up to a row, signed. `key` and `signature` are hexadecimal."""

    row: int
    hash: str
    time: str
    key: str
    signature: str

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Head:
        """Raises KeyError, TypeError or ValueError for what is no head."""
        texts = {name: body[name] for name in ("hash", "time", "key", "signature")}
        if not isinstance(body["row"], int) or not all(isinstance(text, str) for text in texts.values()):
            raise TypeError("a head is a row id and four texts")
        if not all(HEXADECIMAL.fullmatch(texts[name]) for name in ("hash", "key", "signature")):
            raise ValueError("a head's hash, key and signature are written in small hexadecimal digits")
        return cls(body["row"], **texts)


Genuine = Callable[[Head], bool]         # whether a head's signature is that of its key


def message(row: int, hash: str, time: str) -> bytes:
    """What is signed: one line of text, so that any program that knows Ed25519 can check it."""
    return f"kaizend head {row} {hash} {time}\n".encode()


def is_signed(event: str, parent: int | None) -> bool:
    """Whether a row of this kind is signed as it is written: all but what lies inside an outermost cycle."""
    return parent is None and event not in (Event.OPENED, Event.ALARM)


def key_named(row: Mapping[str, Any]) -> str | None:
    """The key that a row puts in force."""
    column, name = ("evidence", SIGNING_KEY) if row["event"] == Event.GENESIS else ("change", "after")
    if row["event"] not in NAMING or not isinstance(row[column], dict):
        return None
    named = row[column].get(name)
    return named if isinstance(named, str) else None


@dataclass(slots=True)
class HeadCheck:
    """What is wrong with signed heads, told row by row. `heads` are those of the ledger itself, one a row.
    `key` is the key in force after the rows taken so far.
    """

    heads: Mapping[int, Head]
    genuine: Genuine
    key: str | None = None
    signed: int = 0                                            # the last row that its head fits
    last: int = 0
    seen: set[int] = field(default_factory=set)                # the rows of which there is a head
    wrong: dict[tuple[str, str], list[int]] = field(default_factory=dict)       # words around rows: the rows

    def take(self, row: Mapping[str, Any]) -> None:
        """The next row, in the order in which rows are kept: id, hash, event, parent; of NAMING ones also change and
        evidence as values."""
        self.last = id = row["id"]
        self._follow_key(row)
        head = self.heads.get(id)
        if head is None:
            if self.key is not None and is_signed(row["event"], row["parent"]):
                self._note("", id, "is not signed, and every row of its kind is")
            return
        self.seen.add(id)
        self.key = self.key or head.key
        if head.key != self.key:
            self._note("the head of ", id, f"is signed with key {short(head.key)}, not {short(self.key)}")
        elif not self.genuine(head):
            self._note("the signature of ", id, f"is not one of key {short(self.key)}")
        elif head.hash != row["hash"]:
            self._note("", id, f"is not the one that was signed: {REWRITTEN}")
        else:
            self.signed = id

    def _follow_key(self, row: Mapping[str, Any]) -> None:
        named = key_named(row)
        if named is None:
            return
        expected = (None, named) if row["event"] == Event.GENESIS else (row["change"].get("before"),)
        if self.key not in expected:
            self._note(
                "", row["id"], f"names key {short(named)}, but the rows before it are signed with {short(self.key)}"
            )
        self.key = named

    def _note(self, before: str, row: int, after: str) -> None:
        self.wrong.setdefault((before, after), []).append(row)

    def result(self, trusted: str | None, where: str) -> list[str]:
        """All that is wrong, one line each. `trusted` is the key that `where` holds; None where there is none."""
        found = [_line(before, rows, after) for (before, after), rows in self.wrong.items()]
        gone = sorted(self.heads.keys() - self.seen)
        found += [f"row {id} is missing: a head of it is signed" for id in gone if id <= self.last]
        beyond = [id for id in gone if id > self.last]
        if beyond:
            found.append(f"rows {self.last + 1} to {beyond[-1]} are missing: a head of row {beyond[-1]} is signed")
        if trusted is None and self.key is not None:
            found.append(f"there is no public key in {where}: nothing says whose the signatures are")
        elif trusted is not None and self.key is None and self.last:
            found.append(f"no head is signed, although {where} holds the key of one who signs")
        elif trusted is not None and self.key not in (None, trusted):
            found.append(f"the heads are signed with key {short(self.key)}, but {where} holds {short(trusted)}")
        return found


def check_elsewhere(
    hashes: Mapping[int, str], last: int, heads: Sequence[Head], genuine: Genuine, where: str
) -> list[str]:
    """What is wrong with the ledger, given heads that were kept elsewhere: each must lie on the chain.

    `hashes` are those of the ledger's rows, at least of the ones that the heads speak of; `last` is the last row.
    """
    forged = [head.row for head in heads if not genuine(head)]
    found = [_line("the signature of ", forged, f"in {where} does not fit")] if forged else []
    strangers = sorted({head.row for head in heads if head.row in hashes and hashes[head.row] != head.hash})
    if strangers:
        found.append(_line("", strangers, f"is not the one that {where} knows: {REWRITTEN}"))
    beyond = max((head.row for head in heads if head.row not in hashes), default=0)
    if beyond > last:
        found.append(f"rows {last + 1} to {beyond} are missing: {where} holds a head of row {beyond}")
    elif beyond:
        found.append(f"row {beyond} is missing: {where} holds a head of it")
    return found


def short(key: str | None) -> str:
    """A key as people see it."""
    return "".join(filter(str.isalnum, key[:SHOWN])) if key else "none"


def _line(before: str, rows: Sequence[int], after: str) -> str:
    """One line for all rows that have the same problem: one rewritten row may take hundreds of heads with it."""
    return f"{before}row {rows[0]} {after}" + (f" (and so {len(rows) - 1} more)" if rows[1:] else "")


def read_heads(file: Path) -> list[Head]:
    """The heads in a file of JSON lines: what `service.heads_file` holds, or the journal. Other lines are passed over.

    Raises StateError where the file cannot be read.
    """
    heads = []
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):
                    heads.append(Head.from_json(json.loads(line)))
    except OSError as error:
        raise in_one_line("read", file, error) from error
    return heads
