"""Cycles and loop states in the tables: found, kept, dropped. Everything works inside a transaction of `ledger`.

Invariant: of a loop's states the newest is in force; every open cycle's state is kept, older ones are dropped.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from state.records import (
    Budget,
    Candidate,
    Cycle,
    JsonObject,
    LoopName,
    Outcome,
    Verdict,
    digest_of,
)
from state.rows import as_text
from state.tables import NO_PARENT, cycles, loop_states

STATES_KEPT = 64           # newest states a loop keeps; an older one is what `learn` gives when its cycles are replayed


def find(connection: Connection, parent: int | None, ordinal: int) -> Cycle | None:
    """The cycle of that name."""
    named = select(cycles).where(
        cycles.c.parent == (NO_PARENT if parent is None else parent), cycles.c.ordinal == ordinal
    )
    record = connection.execute(named).first()
    return None if record is None else cycle_of(connection, record)


def cycle_of(connection: Connection, record: Any) -> Cycle:
    """A kept record as a value. Its state is empty when it was dropped since."""
    query = select(loop_states.c.body).where(loop_states.c.digest == record.state_digest).limit(1)
    body = connection.execute(query).scalar()
    return Cycle(
        record.id, LoopName(record.loop), record.parent or None, record.ordinal,
        Candidate.from_json(json.loads(record.candidate)), json.loads(body) if body else {},
        Budget.from_json(json.loads(record.budget)),
        Outcome.from_json(json.loads(record.outcome)) if record.outcome else None,
    )


def insert_cycle(
    connection: Connection, id: int, parent: int | None, ordinal: int, candidate: Candidate, state: str, budget: Budget
) -> None:
    """Keep an opened cycle; `state` is the digest of the loop's state before it."""
    connection.execute(insert(cycles).values(
        id=id, parent=NO_PARENT if parent is None else parent, ordinal=ordinal, loop=str(candidate.loop),
        candidate=as_text(candidate.to_json()), state_digest=state, budget=as_text(budget.to_json()),
    ))


def all_open(connection: Connection) -> list[Cycle]:
    """Every cycle without an outcome, outermost first: a cycle opens after the one around it."""
    found = connection.execute(select(cycles).where(cycles.c.outcome.is_(None)).order_by(cycles.c.id))
    return [cycle_of(connection, record) for record in found.all()]


def open_inside(connection: Connection, id: int) -> list[Cycle]:
    """The open cycles below a cycle, innermost first."""
    children = select(cycles).where(cycles.c.parent == id, cycles.c.outcome.is_(None)).order_by(cycles.c.id.desc())
    found: list[Cycle] = []
    for record in connection.execute(children).all():
        found += [*open_inside(connection, record.id), cycle_of(connection, record)]
    return found


def latest_state(connection: Connection, loop: LoopName) -> tuple[str, str] | None:
    """Digest and JSON text of the state in force."""
    query = select(loop_states.c.digest, loop_states.c.body).where(loop_states.c.loop == str(loop))
    found = connection.execute(query.order_by(loop_states.c.row.desc()).limit(1)).first()
    return None if found is None else (found.digest, found.body)


def keep_state(connection: Connection, row: int, loop: LoopName, state: JsonObject) -> str:
    """Put a state in force, unless it is already; returns its digest."""
    digest, latest = digest_of(state), latest_state(connection, loop)
    if latest is None or latest[0] != digest:
        connection.execute(insert(loop_states).values(row=row, loop=str(loop), digest=digest, body=as_text(state)))
    return digest


def drop_old_states(connection: Connection, loop: LoopName) -> None:
    """Forget what is older than the newest states, except for what an open cycle began with."""
    mine = loop_states.c.loop == str(loop)
    oldest = select(loop_states.c.row).where(mine).order_by(loop_states.c.row.desc()).limit(1).offset(STATES_KEPT)
    limit = connection.execute(oldest).scalar()
    if limit is not None:
        needed = select(cycles.c.state_digest).where(cycles.c.outcome.is_(None))
        connection.execute(
            delete(loop_states).where(mine, loop_states.c.row <= limit, loop_states.c.digest.not_in(needed))
        )


def recordable(outcome: Outcome, state: JsonObject | None) -> tuple[Outcome, JsonObject | None]:
    """Both as they would be read again. What JSON cannot say ends as CRASHED, with the loop's state as it was."""
    try:
        return Outcome.from_json(json.loads(as_text(outcome.to_json()))), json.loads(as_text(state))
    except (TypeError, ValueError) as error:
        reason = f"its outcome cannot be recorded: {type(error).__name__}: {error}"
        return Outcome(Verdict.CRASHED, reason, cost=outcome.cost), None


def left_behind(around: Cycle) -> Outcome:
    """The outcome of a cycle that was still open when the one around it closed."""
    return Outcome(Verdict.CRASHED, f"cycle {around.id} around it was closed before it ended")
