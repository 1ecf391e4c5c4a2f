"""Ledger rows and values on their way into and out of the tables: JSON text, times, counters, the next link.

Everything here works inside a transaction that the caller holds.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy import Row as Record

from state.chain import START, hash_row
from state.records import Entry, Row, canonical
from state.tables import counters, ledger

JSON_COLUMNS = ("change", "evidence", "cost")


def utc_now() -> datetime:
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """A time as it is kept: UTC with microseconds, so that text order is time order."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def writable(text: str) -> str:
    """Text that UTF-8 can hold: a stray surrogate (from an undecodable file name) becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def as_text(value: Any) -> str:
    """The canonical JSON text of a value, as the tables keep it. Raises ValueError or TypeError."""
    return writable(canonical(value))


def head(connection: Connection) -> tuple[int, str]:
    """The last row's id and hash; (0, 64 zeros) while there is none."""
    last = connection.execute(select(ledger.c.id, ledger.c.hash).order_by(ledger.c.id.desc()).limit(1)).first()
    return (0, START) if last is None else (last.id, last.hash)


def add_row(connection: Connection, entry: Entry, time: str, *, opens: bool = False) -> Row:
    """Chain an entry to the head. `opens` makes the row's own id its cycle."""
    last, prev = head(connection)
    number = last + 1
    texts = {name: as_text(getattr(entry, name)) for name in JSON_COLUMNS}
    fields: dict[str, Any] = {
        "id": number, "time": time, "event": str(entry.event), "cycle": number if opens else entry.cycle,
        "parent": entry.parent, "loop": _name(entry.loop), "verdict": _name(entry.verdict),
        "reason": writable(entry.reason), "base": entry.base, "result": entry.result, "actor": str(entry.actor),
        "prev": prev,
    }
    values = fields | {name: json.loads(text) for name, text in texts.items()}
    row = Row(**values, hash=hash_row(values))
    connection.execute(insert(ledger).values(**fields, **texts, hash=row.hash))
    count_one(connection, row.event, row.loop, row.verdict)
    return row


def row_of(record: Record[Any]) -> Row:
    """A kept record of the ledger as a value."""
    fields = dict(record._mapping)
    return Row(**fields | {name: json.loads(fields[name]) for name in JSON_COLUMNS})


def count_one(connection: Connection, subject: str, loop: str | None = None, verdict: str | None = None) -> None:
    """Count one more of a kind of row."""
    key = {"subject": subject, "loop": loop or "", "verdict": verdict or ""}
    found = [getattr(counters.c, name) == value for name, value in key.items()]
    if connection.execute(update(counters).where(*found).values(count=counters.c.count + 1)).rowcount == 0:
        connection.execute(insert(counters).values(**key, count=1))


def _name(choice: object) -> str | None:
    return None if choice is None else str(choice)
