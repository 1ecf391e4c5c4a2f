"""The ledger: every self-modification and every operator's act, with the cycles and loop states that belong to it.

Invariants: a row, the channel it moves, the latch it sets, the cycle it opens or closes and the counters change in
one transaction; a cycle is named by its parent and ordinal and closes once; no cycle stays open inside a closed one.
The chain is in `chain`, reading without SQLAlchemy in `reading`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert, select, update

from state import cycles, rows
from state.database import Database
from state.errors import StateError
from state.failpoints import failpoint
from state.heads import SIGNING_KEY
from state.jobbook import FINISHED, SAVED
from state.records import (
    Actor,
    Budget,
    Candidate,
    Channel,
    Cycle,
    Entry,
    Event,
    JsonObject,
    LoopName,
    Outcome,
    Row,
    Verdict,
    digest_of,
)
from state.registry import Registry
from state.signer import Signer
from state.tables import NO_PARENT, attempts, channels, counters, latches, ledger
from state.tables import cycles as cycle_table

PAGE = 1000                # rows read at a time
RESERVED = ("moves", "latched", SIGNING_KEY)        # words in a row's evidence that only the ledger itself writes
MOST_FRUITLESS_ATTEMPTS = 3            # of a cycle or a nomination, in a row


class Ledger:
    """The ledger of one state folder, shared by the threads of one process."""

    def __init__(
        self, database: Database, registry: Registry, clock: Callable[[], datetime] = rows.utc_now,
        on_row: Callable[[Row], None] = lambda row: None, signer: Signer | None = None,
    ) -> None:
        """`on_row` is told each row after it was committed; what it does cannot change what is recorded. `signer`
        signs what is to be signed with it; without one nothing is.

        `deciding` is held by whoever looks at what is in force and then moves it, so that two such acts take turns.
        """
        self.database = database
        self.registry = registry
        self.clock = clock
        self.signer = signer
        self.on_row = on_row if signer is None else signer.telling(on_row)
        self.deciding = threading.RLock()

    # ---------------------------------------------------------------- rows

    def head(self) -> tuple[int, str]:
        """Id and hash of the last row; (0, 64 zeros) while there is none."""
        with self.database.snapshot() as connection:
            return rows.head(connection)

    def append(
        self,
        entry: Entry,
        *,
        move: tuple[Channel, str] | Mapping[Channel, str] | None = None,
        latch: str | None = None,
    ) -> Row:
        """Add a row; with it move channels and latch a digest. What was moved stands in the row's evidence too.

        Raises StateError when a channel would point at an artefact that is not kept.
        """
        moves = dict([move] if isinstance(move, tuple) else move or {})
        self._refuse_absent(moves)
        with self.database.transaction() as connection:
            row = self._add(connection, entry, moves, latch)
            failpoint("ledger.append.before")
        failpoint("ledger.append.after")
        self._follow(moves)
        self.on_row(row)
        return row

    def sign_last(self) -> None:
        """Sign the last row, whatever it is: call this when the service stops in an orderly way."""
        if self.signer is not None:
            self.signer.sign_last()

    def row(self, id: int) -> Row | None:
        with self.database.snapshot() as connection:
            found = connection.execute(select(ledger).where(ledger.c.id == id)).first()
        return None if found is None else rows.row_of(found)

    def rows(self, after: int = 0, event: Event | None = None) -> Iterator[Row]:
        """The rows after an id, oldest first, read in pages so that no transaction is held open."""
        query = select(ledger).order_by(ledger.c.id).limit(PAGE)
        if event is not None:
            query = query.where(ledger.c.event == str(event))
        while True:
            with self.database.snapshot() as connection:
                page = connection.execute(query.where(ledger.c.id > after)).all()
            yield from map(rows.row_of, page)
            if len(page) < PAGE:
                return
            after = page[-1].id

    def latest(self, *events: Event) -> Row | None:
        """The newest row of any of these events."""
        query = select(func.max(ledger.c.id))
        with self.database.snapshot() as connection:
            newest = [connection.execute(query.where(ledger.c.event == str(event))).scalar() for event in events]
        found = [number for number in newest if number is not None]
        return self.row(max(found)) if found else None

    def latest_time(self, until: int | None = None) -> datetime | None:
        """The largest time that a row carries, of those up to the id `until`; None where there are none. After the
        clock was set back, it is not the newest row's."""
        query = select(ledger.c.time).order_by(ledger.c.time.desc()).limit(1)
        with self.database.snapshot() as connection:
            found = connection.execute(query if until is None else query.where(ledger.c.id <= until)).scalar()
        return None if found is None else datetime.fromisoformat(found)

    def root_verdicts(self, after: int = 0, count: int = 50) -> tuple[str, ...]:
        """The verdicts of the last `count` root cycles that closed after row `after`, the newest first."""
        query = (
            select(ledger.c.verdict)
            .where(ledger.c.event == str(Event.CLOSED), ledger.c.parent.is_(None), ledger.c.id > after)
            .order_by(ledger.c.id.desc()).limit(count)
        )
        with self.database.snapshot() as connection:
            return tuple(connection.execute(query).scalars())

    def merge_of(self, digest: str) -> JsonObject | None:
        """The change of the one merge out of which a model came as it is; None for every other model."""
        query = select(ledger.c.change).where(ledger.c.result == digest, ledger.c.event == str(Event.CLOSED))
        with self.database.snapshot() as connection:
            changes: list[JsonObject] = [json.loads(text) for text in connection.execute(query).scalars()]
        merges = [change for change in changes if change.get("kind") == "merge"]
        return merges[-1] if merges and len(merges) == len(changes) else None

    # ---------------------------------------------------------------- cycles

    def find_cycle(self, parent: int | None, ordinal: int) -> Cycle | None:
        """The cycle of that name. The state of one long closed may be gone: then it is empty."""
        with self.database.snapshot() as connection:
            return cycles.find(connection, parent, ordinal)

    def open_cycle(
        self, parent: int | None, ordinal: int, candidate: Candidate, state: JsonObject, budget: Budget
    ) -> Cycle:
        """Record what is about to be tried, before anything is. A cycle of that name that exists already is returned.

        The cycle comes back as it would be read again, so that a first run and a resumed one see the same values.
        """
        inside = "" if parent is None else f" inside cycle {parent}"
        with self.database.transaction() as connection:
            found = cycles.find(connection, parent, ordinal)
            if found is not None:
                return found
            digest = digest_of(state)
            entry = Entry(
                Event.OPENED, f"{candidate.loop} proposed a candidate{inside}", parent=parent, loop=candidate.loop,
                change=candidate.change, base=candidate.base, evidence={
                    "state": digest, "budget": budget.to_json(), "ordinal": ordinal, "incumbent": candidate.incumbent,
                },
            )
            row = rows.add_row(connection, entry, self._now(), opens=True)
            cycles.keep_state(connection, row.id, candidate.loop, state)
            cycles.insert_cycle(connection, row.id, parent, ordinal, candidate, digest, budget)
            opened = cycles.find(connection, parent, ordinal)
            failpoint("ledger.open.before")
        failpoint("ledger.open.after")
        self.on_row(row)
        assert opened is not None
        return opened

    def begin_attempt(self, what: Cycle | Row) -> int:
        """Count an attempt at a cycle or at the nomination of a row. Returns how many in a row began without progress
        anywhere in between: 1 for the first.

        Progress is a job finished or found further saved, or a cycle opened or closed. Opening counts so that, where
        an inner cycle takes the process down, the inner one reaches the limit first and not the cycles around it.
        """
        subjects = (FINISHED, SAVED, str(Event.OPENED), str(Event.CLOSED))
        with self.database.transaction() as connection:
            query = select(func.coalesce(func.sum(counters.c.count), 0)).where(counters.c.subject.in_(subjects))
            marker = connection.execute(query).scalar_one()
            mine = attempts.c.cycle == what.id
            last = connection.execute(select(attempts.c.marker, attempts.c.count).where(mine)).first()
            count = last[1] + 1 if last is not None and last[0] == marker else 1
            if last is None:
                connection.execute(insert(attempts).values(cycle=what.id, marker=marker, count=count))
            else:
                connection.execute(update(attempts).where(mine).values(marker=marker, count=count))
            failpoint("ledger.attempt.before")
        failpoint("ledger.attempt.after")
        return count

    def was_cut_short(self) -> bool:
        """Whether what is open now was being tried when the last life ended, and not in an orderly way."""
        tried = select(attempts.c.cycle).join(cycle_table, cycle_table.c.id == attempts.c.cycle)
        with self.database.snapshot() as connection:
            return connection.execute(tried.where(cycle_table.c.outcome.is_(None)).limit(1)).first() is not None

    def forget_attempts(self) -> None:
        """Call this when the service stops in an orderly way: what it parks did not take it down."""
        with self.database.transaction() as connection:
            connection.execute(delete(attempts))

    def close_cycle(self, cycle: Cycle, outcome: Outcome, state: JsonObject | None) -> Outcome:
        """Record the verdict and the loop's new state (None: it stays); a promoted root cycle moves `working` to its
        result. Each of the "alarms" among the evidence has a row of its own, before the cycle's.

        A closed cycle keeps the outcome it has, and that one is returned. An outcome or state that JSON cannot say
        (a NaN) closes the cycle as CRASHED with the state it began with. Raises StateError for a result not kept.
        """
        outcome, new_state = cycles.recordable(outcome, state)
        promotes = cycle.parent is None and outcome.verdict is Verdict.PROMOTED
        moves = {Channel.WORKING: outcome.result} if promotes and outcome.result else {}
        self._refuse_absent(moves)
        with self.database.transaction() as connection:
            known = cycles.find(connection, cycle.parent, cycle.ordinal)
            if known is None or known.id != cycle.id:
                raise StateError(f"cycle {cycle.id} was never opened")
            if known.outcome is not None:
                return known.outcome
            closed = [
                self._close(connection, orphan, cycles.left_behind(cycle), None, {})
                for orphan in cycles.open_inside(connection, cycle.id)
            ]
            closed += self._alarms(connection, known, outcome)
            closed.append(self._close(connection, known, outcome, new_state, moves))
            failpoint("ledger.close.before")
        failpoint("ledger.close.after")
        self._follow(moves)
        for row in closed:
            self.on_row(row)
        return outcome

    def open_cycles(self) -> list[Cycle]:
        """The cycles without a verdict, outermost first."""
        with self.database.snapshot() as connection:
            return cycles.all_open(connection)

    def root_count(self) -> int:
        """How many root cycles were opened so far: the ordinal of the next one."""
        query = select(func.max(cycle_table.c.ordinal)).where(cycle_table.c.parent == NO_PARENT)
        with self.database.snapshot() as connection:
            newest = connection.execute(query).scalar()
        return 0 if newest is None else newest + 1

    # ---------------------------------------------------------------- what is in force

    def loop_state(self, loop: LoopName) -> JsonObject | None:
        """The loop's state after its last closed cycle; None before its first cycle."""
        with self.database.snapshot() as connection:
            found = cycles.latest_state(connection, loop)
        if found is None:
            return None
        state: JsonObject = json.loads(found[1])
        return state

    def set_loop_state(self, loop: LoopName, state: JsonObject, reason: str) -> Row:
        """An operator's change of what a loop remembers: the row and the new state in one transaction."""
        entry = Entry(
            Event.OPERATOR, reason, loop=loop, change={"act": "set loop state"}, evidence={"state": digest_of(state)},
            actor=Actor.OPERATOR,
        )
        with self.database.transaction() as connection:
            row = self._add(connection, entry, {}, None)
            cycles.keep_state(connection, row.id, loop, state)
        self.on_row(row)
        return row

    def channel(self, channel: Channel) -> str | None:
        """The digest that the channel points at."""
        with self.database.snapshot() as connection:
            found: str | None = connection.execute(
                select(channels.c.digest).where(channels.c.name == str(channel))
            ).scalar()
        return found

    def latched(self) -> set[str]:
        """The digests that stable must not move to again."""
        with self.database.snapshot() as connection:
            return set(connection.execute(select(latches.c.digest)).scalars())

    # ---------------------------------------------------------------- inside a transaction

    def _add(self, connection: Connection, entry: Entry, moves: Mapping[Channel, str], latch: str | None) -> Row:
        """A row with everything it moves. The row itself says so, which puts the pointers under the chain."""
        said: JsonObject = {"moves": {str(channel): digest for channel, digest in moves.items()}} if moves else {}
        if latch is not None:
            said["latched"] = latch
        if self.signer is not None and entry.event is Event.GENESIS:
            said[SIGNING_KEY] = self.signer.key.public
        own = {name: value for name, value in entry.evidence.items() if name not in RESERVED}
        row = rows.add_row(connection, replace(entry, evidence=own | said), self._now())
        if self.signer is not None:
            self.signer.sign(connection, row)
        for channel, digest in moves.items():
            values = {"name": str(channel), "digest": digest, "row": row.id}
            mine = channels.c.name == str(channel)
            if connection.execute(update(channels).where(mine).values(**values)).rowcount == 0:
                connection.execute(insert(channels).values(**values))
        known = select(latches.c.digest).where(latches.c.digest == latch)
        if latch is not None and connection.execute(known).first() is None:
            connection.execute(insert(latches).values(digest=latch, row=row.id, reason=row.reason))
        return row

    def _alarms(self, connection: Connection, cycle: Cycle, outcome: Outcome) -> list[Row]:
        """What the monitor saw, a row an alarm: {"name", "seen", "figures"}."""
        return [
            self._add(connection, Entry(
                Event.ALARM, alarm["seen"], cycle=cycle.id, parent=cycle.parent, loop=cycle.loop,
                change={"alarm": alarm["name"]}, base=cycle.candidate.base, evidence=alarm["figures"],
            ), {}, None)
            for alarm in outcome.evidence.get("alarms", [])
        ]

    def _close(
        self, connection: Connection, cycle: Cycle, outcome: Outcome, state: JsonObject | None,
        moves: Mapping[Channel, str],
    ) -> Row:
        """Write the closing row, the new state (None: it stays) and the outcome."""
        candidate = cycle.candidate
        latest = cycles.latest_state(connection, candidate.loop)
        digest = digest_of(state) if state is not None else latest[0] if latest else None
        row = self._add(connection, Entry(
            Event.CLOSED, outcome.reason, cycle=cycle.id, parent=cycle.parent, loop=candidate.loop,
            change=candidate.change, verdict=outcome.verdict, base=candidate.base, result=outcome.result,
            evidence=outcome.evidence | {"state": digest}, cost=outcome.cost.to_json(),
        ), moves, None)
        connection.execute(
            update(cycle_table).where(cycle_table.c.id == cycle.id)
            .values(outcome=rows.as_text(outcome.to_json()), closing=row.id)
        )
        if state is not None:
            cycles.keep_state(connection, row.id, candidate.loop, state)
            cycles.drop_old_states(connection, candidate.loop)
        connection.execute(delete(attempts).where(attempts.c.cycle == cycle.id))
        return row

    def _refuse_absent(self, moves: Mapping[Channel, str]) -> None:
        for channel, digest in moves.items():
            if not self.registry.holds(digest):
                raise StateError(f"{channel} cannot move to {digest[:12]}: the registry does not hold it")

    def _follow(self, moves: Mapping[Channel, str]) -> None:
        for channel in moves:
            try:
                self.registry.repair_link(channel)
            except StateError as error:
                raise type(error)(
                    f"{channel} has moved in the ledger, but its link has not followed yet ({error}): the next start "
                    "moves it"
                ) from error

    def _now(self) -> str:
        return rows.stamp(self.clock())
