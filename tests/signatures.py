"""What the signed heads of a state folder say, for tests that look at one from outside."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.trust import Trust, check_signatures
from state.chain import FIELDS, START, hash_row
from state.heads import Head, read_heads
from state.reading import Reading
from state.records import canonical
from state.signing import read_public

JsonRow = dict[str, Any]
DATABASE, PUBLIC, ELSEWHERE = "kaizend.db", "signing.pub", "heads.jsonl"


def signature_problems(root: Path, key: Path | None = None, heads: Path | None = None) -> list[str]:
    """What `kaizend verify` finds wrong with the signatures of the ledger in a folder."""
    public = key or root / PUBLIC
    with Reading(root / DATABASE) as reading:
        return check_signatures(
            reading.links(), reading.heads(), Trust.of((read_public(public), str(public)), heads)
        )[1]


def heads_of(root: Path) -> list[Head]:
    with Reading(root / DATABASE) as reading:
        return reading.heads()


def check_heads(root: Path) -> None:
    """Everything that must be signed is, and the file elsewhere has all of it, once a start has made up for a kill."""
    elsewhere = root / ELSEWHERE
    assert signature_problems(root) == []
    if heads_of(root):
        assert signature_problems(root, heads=elsewhere) == []
        assert {head.row for head in read_heads(elsewhere)} == {head.row for head in heads_of(root)}


def rechained(rows: list[JsonRow]) -> list[JsonRow]:
    """The same rows with ids, links and hashes computed anew: a chain that is whole."""
    prev, whole = START, []
    for number, row in enumerate(rows, 1):
        row = {**row, "id": number, "prev": prev}
        row["hash"] = prev = hash_row(row)
        whole.append(row)
    return whole


def rewrite(database: Path, change: Callable[[list[JsonRow]], list[JsonRow] | None]) -> None:
    """Rewrite the ledger as one would who can write the database and knows the program: rows changed, the chain
    computed anew, the counters and channels made to fit. `change` edits the rows or returns others."""
    with Reading(database) as reading:
        rows = [row.to_json() for row in reading.every_row()]
    rows = rechained(change(rows) or rows)
    connection = sqlite3.connect(database)
    drop_triggers(connection)
    connection.execute("DELETE FROM ledger")
    columns = (*FIELDS, "hash")
    connection.executemany(
        f"INSERT INTO ledger ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
        [[canonical(row[name]) if isinstance(row[name], dict | list) else row[name] for name in columns]
         for row in rows],
    )
    connection.execute("DELETE FROM counters WHERE subject NOT IN ('job', 'saved')")
    connection.execute(
        "INSERT INTO counters SELECT event, coalesce(loop, ''), coalesce(verdict, ''), count(*) FROM ledger "
        "GROUP BY event, coalesce(loop, ''), coalesce(verdict, '')"
    )
    moved: dict[str, str] = {}
    for row in rows:
        if isinstance(row["evidence"], dict):
            moved.update(row["evidence"].get("moves", {}))
    for name, digest in moved.items():
        connection.execute("UPDATE channels SET digest = ? WHERE name = ?", (digest, name))
    connection.commit()
    connection.close()


def drop_triggers(connection: sqlite3.Connection) -> None:
    for name, in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")


def run_sql(database: Path, *statements: str) -> None:
    connection = sqlite3.connect(database)
    drop_triggers(connection)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
