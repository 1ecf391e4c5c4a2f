"""Reading the state folder without SQLAlchemy and without being able to write: what the reading commands use.

Standard library only, so that a command answers in the time Python needs to start. Every query goes by an index or
by the counters, also on a ledger of a million rows. Errors are StateErrors of one line.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from state.chain import START, check_channels, check_latches, check_rows
from state.errors import StateError
from state.heads import NAMING, Head
from state.records import Budget, Candidate, Cost, Cycle, Event, JsonObject, LoopName, Outcome, Row

JSON_COLUMNS = ("change", "evidence", "cost")
PAGE = 1000
BUSY_SECONDS = 15
RELEASING = (str(Event.RELEASE), str(Event.ROLLBACK))      # events whose verdicts are counted as releases


class Reading:
    """One open database, for reading only. `path` is the database file. Each thread opens its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise StateError(f"there is no ledger at {path}: the daemon has not been started here yet")
        self._connection = _connect(path)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Inside, everything is read from one committed state, whatever the daemon writes meanwhile."""
        self._all("BEGIN")
        try:
            yield
        finally:
            self._all("ROLLBACK")

    # ---------------------------------------------------------------- rows

    def rows(
        self,
        limit: int = 20,
        loop: str | None = None,
        verdict: str | None = None,
        since: str | None = None,
        after: int | None = None,
        events: Sequence[str] = (),
    ) -> list[Row]:
        """The newest `limit` rows that fit, oldest first; with `after`, the first `limit` after that id instead.

        `since` is a UTC time, or the beginning of one, as rows carry it ("2026-11-22T07"). Where the clock was once
        set back, rows written before that may be left out.
        """
        wheres, values = ["1"], list[Any]()
        for column, wanted in (("loop", loop), ("verdict", verdict)):
            if wanted is not None:
                wheres.append(f"{column} = ?")
                values.append(str(wanted))
        if since is not None:
            wheres.append("id >= ?")
            values.append(self._first_since(since))
        if after is not None:
            wheres.append("id > ?")
            values.append(after)
        order = "DESC" if after is None else "ASC"
        pick = "+event" if loop and verdict else "event"     # the plus keeps SQLite on the index of loop and verdict
        found: list[Row] = []
        for event in events or (None,):                      # one query an event: each goes down its own index
            where = " AND ".join([*wheres, *([f"{pick} = ?"] if event else [])])
            query = f"SELECT * FROM ledger WHERE {where} ORDER BY id {order} LIMIT ?"
            found += map(_row, self._all(query, *values, *([str(event)] if event else []), limit))
        found.sort(key=lambda row: row.id)
        return found[-limit:] if after is None else found[:limit]

    def row(self, id: int) -> Row | None:
        found = self._one("SELECT * FROM ledger WHERE id = ?", id)
        return _row(found) if found else None

    def every_row(self) -> Iterator[Row]:
        """All rows in the order in which they are kept, read in pages."""
        last = -1
        while page := self._all("SELECT * FROM ledger WHERE id > ? ORDER BY id LIMIT ?", last, PAGE):
            yield from map(_row, page)
            last = page[-1]["id"]

    def links(self) -> Iterator[JsonObject]:
        """What `heads.HeadCheck` takes, of all rows in the order in which they are kept."""
        names = ", ".join(f"'{event}'" for event in NAMING)
        bodies = ", ".join(f"CASE WHEN event IN ({names}) THEN {name} END AS {name}" for name in ("change", "evidence"))
        query, last = f"SELECT id, hash, event, parent, {bodies} FROM ledger WHERE id > ? ORDER BY id LIMIT ?", -1
        while page := self._all(query, last, PAGE):
            for found in page:
                yield dict(found) | {name: _value(found[name]) for name in ("change", "evidence")}
            last = page[-1]["id"]

    def heads(self) -> list[Head]:
        """The signed heads, oldest first."""
        found = self._all("SELECT row, hash, time, key, signature FROM heads ORDER BY row")
        return [Head(row, *map(str, texts)) for row, *texts in found]

    def rows_with_result(self, digest: str) -> list[Row]:
        """The rows out of which a model came, oldest first: where it comes from."""
        return list(map(_row, self._all("SELECT * FROM ledger WHERE result = ? ORDER BY id", digest)))

    def head(self) -> tuple[int, str]:
        """Id and hash of the last row; (0, 64 zeros) while there is none."""
        found = self._one("SELECT id, hash FROM ledger ORDER BY id DESC LIMIT 1")
        return (found["id"], found["hash"]) if found else (0, START)

    def problems(self, head: tuple[int, str] | None = None) -> list[str]:
        """What is wrong with the ledger, one line a defect: the chain, its length, channels and latches against it."""
        moved, latched = dict[str, str](), set[str]()
        found = check_rows(self._followed(moved, latched), head)
        last, counted = self.head()[0], self.counts()["rows"]
        if last != counted:
            found.append(f"the ledger ends at row {last}, but {counted} rows were written")
        pointers = {name: pointer["digest"] for name, pointer in self.channels().items()}
        return found + check_channels(moved, pointers) + check_latches(latched, set(self.latches()))

    # ---------------------------------------------------------------- cycles

    def cycle(self, id: int) -> Cycle | None:
        found = self._one("SELECT * FROM cycles WHERE id = ?", id)
        return self._cycle(found) if found else None

    def cycle_rows(self, id: int) -> list[Row]:
        """The rows of a cycle: its opening, its closing, its alarms."""
        return list(map(_row, self._all("SELECT * FROM ledger WHERE cycle = ? ORDER BY id", id)))

    def children(self, id: int) -> list[Cycle]:
        """The cycles inside a cycle, in the order in which they were opened."""
        return [self._cycle(found) for found in self._all("SELECT * FROM cycles WHERE parent = ? ORDER BY ordinal", id)]

    def open_cycles(self) -> list[Cycle]:
        """The cycles without a verdict, outermost first."""
        return [self._cycle(found) for found in self._all("SELECT * FROM cycles WHERE outcome IS NULL ORDER BY id")]

    def loop_state(self, loop: str) -> JsonObject | None:
        """The state in force of a loop."""
        found = self._one("SELECT body FROM loop_states WHERE loop = ? ORDER BY row DESC LIMIT 1", str(loop))
        return json.loads(found["body"]) if found else None

    def counts(self) -> JsonObject:
        """{"rows", "events": {event: n}, "cycles": {loop: {verdict: n}}, "releases": {verdict: n}, "jobs"}.

        "cycles" counts the closed ones. Taken from the counters: no row is read.
        """
        counts: JsonObject = {"rows": 0, "events": {}, "cycles": {}, "releases": {}, "jobs": 0}
        for found in self._all("SELECT subject, loop, verdict, count FROM counters ORDER BY subject, loop, verdict"):
            subject, loop, verdict, count = found
            if subject == "job":
                counts["jobs"] = count
            if subject in ("job", "saved"):
                continue
            counts["rows"] += count
            counts["events"][subject] = counts["events"].get(subject, 0) + count
            if subject == "closed":
                counts["cycles"].setdefault(loop, {})[verdict] = count
            elif verdict and subject in RELEASING:
                counts["releases"][verdict] = counts["releases"].get(verdict, 0) + count
        return counts

    # ---------------------------------------------------------------- what is in force, and artefacts

    def channels(self) -> dict[str, JsonObject]:
        """{channel: {"digest", "row"}}: what each points at, and the id of the row that moved it there."""
        found = self._all("SELECT name, digest, row FROM channels ORDER BY name")
        return {name: {"digest": digest, "row": row} for name, digest, row in found}

    def latches(self) -> dict[str, JsonObject]:
        """{digest: {"row", "reason"}} of the models that stable must not move to again."""
        found = self._all("SELECT digest, row, reason FROM latches ORDER BY row")
        return {digest: {"row": row, "reason": reason} for digest, row, reason in found}

    def artefact(self, digest: str) -> JsonObject | None:
        """{"digest", "kind", "bytes", "files": {name: SHA-256}, "single", "created", "removed"}; None if unknown.

        `digest` may be shortened to what is still unambiguous.
        """
        found = self._all("SELECT * FROM artefacts WHERE digest >= ? AND digest < ? LIMIT 2", digest, digest + "g")
        if len(found) != 1:
            return None
        return dict(found[0]) | {"files": json.loads(found[0]["files"]), "single": bool(found[0]["single"])}

    def artefacts(self) -> list[JsonObject]:
        """Every artefact that is kept, oldest first: {"digest", "kind", "bytes", "created"}."""
        query = "SELECT digest, kind, bytes, created FROM artefacts WHERE removed IS NULL ORDER BY created"
        return [dict(found) for found in self._all(query)]

    def costs_since(self, moment: str) -> Iterator[Cost]:
        """What each job cost that ended since a UTC time, with or without a result; one after the other, because a day
        may have many.
        """
        try:
            for found in self._connection.execute("SELECT cost FROM jobs WHERE finished_at >= ?", (moment,)):
                yield Cost.from_json(json.loads(found["cost"]))
        except sqlite3.Error as error:
            raise _said(self.path, error) from error

    def earliest_since(self, id: int) -> str:
        """The smallest time that a row from that id on carries: where the clock was set back, not that of the first."""
        found = self._one("SELECT min(time) AS time FROM ledger WHERE id >= ?", id)
        return str(found["time"]) if found and found["time"] else ""

    def jobs_since(self, moment: str) -> list[JsonObject]:
        """{"spec", "result"} of the jobs that were started or ended since a UTC time; no result where there is none."""
        query = (
            "SELECT spec, result FROM jobs WHERE finished_at >= ?1 "
            "OR digest IN (SELECT digest FROM job_starts WHERE time >= ?1)"
        )
        return [
            {"spec": json.loads(spec), "result": json.loads(result) if result else None}
            for spec, result in self._all(query, moment)
        ]

    # ---------------------------------------------------------------- inside

    def _first_since(self, since: str) -> int:
        found = self._one("SELECT id FROM ledger WHERE time >= ? ORDER BY time, id LIMIT 1", since)
        return int(found["id"]) if found else self.head()[0] + 1

    def _followed(self, moved: dict[str, str], latched: set[str]) -> Iterator[JsonObject]:
        """All rows as they stand, noting on the way where each channel was moved last and what was latched."""
        for row in self.every_row():
            if isinstance(row.evidence, dict):
                moves, latch = row.evidence.get("moves", {}), row.evidence.get("latched")
                moved.update(moves if isinstance(moves, dict) else {})
                latched |= {latch} if isinstance(latch, str) else set()
            yield {name: getattr(row, name) for name in Row.__slots__}

    def _cycle(self, found: sqlite3.Row) -> Cycle:
        state = self._one("SELECT body FROM loop_states WHERE digest = ? LIMIT 1", found["state_digest"])
        return Cycle(
            found["id"], LoopName(found["loop"]), found["parent"] or None, found["ordinal"],
            Candidate.from_json(json.loads(found["candidate"])), json.loads(state["body"]) if state else {},
            Budget.from_json(json.loads(found["budget"])),
            Outcome.from_json(json.loads(found["outcome"])) if found["outcome"] else None,
        )

    def _one(self, query: str, *values: Any) -> sqlite3.Row | None:
        found = self._all(query, *values)
        return found[0] if found else None

    def _all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _said(self.path, error) from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open read-only. Where not even the shared-memory file can be made, nobody else has the database open either."""
    place = f"file:{quote(str(path.resolve()))}"
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        connection = sqlite3.connect(f"{place}?{mode}", uri=True, timeout=BUSY_SECONDS)
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("SELECT id FROM ledger LIMIT 1").fetchone()
            return connection
        except sqlite3.Error as error:
            connection.close()
            if mode != "mode=ro" or "unable to open" not in str(error):
                raise _said(path, error) from error
    raise AssertionError("unreachable")


def _said(path: Path, error: sqlite3.Error) -> StateError:
    reason = str(error)
    if "no such table" in reason or "no such column" in reason:
        return StateError(f"{path} is not a ledger of this version of kaizend: start the daemon once to migrate it")
    if "not a database" in reason:
        return StateError(f"{path} is not a database of kaizend")
    if "malformed" in reason:
        return StateError(f"{path} is damaged ({reason}): restore a backup")
    return StateError(f"cannot read {path}: {reason}")


def _row(found: sqlite3.Row) -> Row:
    fields = dict(found)
    for name in JSON_COLUMNS:
        fields[name] = _value(fields[name])
    return Row(**fields)


def _value(text: Any) -> Any:
    """A JSON column as a value. What is no JSON any more was changed: it stays text, and its row fails the check."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text
