"""The tables, as SQLAlchemy sees them. How they come to be is written in `migrations`; a test holds the two together.

`ledger` and `heads` are append-only by triggers. JSON is kept as canonical text. A missing parent, loop or verdict is
kept as 0 or "" where a unique key needs it, because SQL lets NULLs repeat.
"""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint, text

REVISION = "0002"          # the newest migration: what a database must stand at
NO_PARENT = 0              # cycles.parent of a root cycle

metadata = MetaData()

ledger = Table(
    "ledger", metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("time", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("cycle", Integer),
    Column("parent", Integer),
    Column("loop", Text),
    Column("change", Text, nullable=False),
    Column("verdict", Text),
    Column("reason", Text, nullable=False),
    Column("base", Text),
    Column("result", Text),
    Column("evidence", Text, nullable=False),
    Column("cost", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("prev", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Index("ledger_time", "time"),
    Index("ledger_event", "event"),
    Index("ledger_cycle", "cycle"),
    Index("ledger_loop", "loop"),
    Index("ledger_verdict", "verdict"),
    Index("ledger_loop_verdict", "loop", "verdict"),
    Index("ledger_event_loop", "event", "loop"),
    Index("ledger_event_verdict", "event", "verdict"),
    Index("ledger_result", "result"),
)

heads = Table(             # the ledger as it stood at a row, signed; see `heads`
    "heads", metadata,
    Column("row", Integer, ForeignKey("ledger.id"), primary_key=True, autoincrement=False),
    Column("hash", Text, nullable=False),
    Column("time", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("signature", Text, nullable=False),
)

loop_states = Table(       # every state that a recent or open cycle saw; the newest row of a loop is in force
    "loop_states", metadata,
    Column("row", Integer, ForeignKey("ledger.id"), primary_key=True, autoincrement=False),
    Column("loop", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("body", Text, nullable=False),
    Index("loop_states_loop", "loop", "row"),
    Index("loop_states_digest", "digest"),
)

cycles = Table(
    "cycles", metadata,
    Column("id", Integer, ForeignKey("ledger.id"), primary_key=True, autoincrement=False),
    Column("parent", Integer, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("loop", Text, nullable=False),
    Column("candidate", Text, nullable=False),
    Column("state_digest", Text, nullable=False),
    Column("budget", Text, nullable=False),
    Column("outcome", Text),
    Column("closing", Integer, ForeignKey("ledger.id")),
    UniqueConstraint("parent", "ordinal", name="cycles_name"),
    Index("cycles_open", "id", sqlite_where=text("outcome IS NULL")),
)

attempts = Table(          # how often a cycle or a nomination (its row) was begun at the same point of progress
    "attempts", metadata,
    Column("cycle", Integer, ForeignKey("ledger.id"), primary_key=True, autoincrement=False),
    Column("marker", Integer, nullable=False),
    Column("count", Integer, nullable=False),
)

counters = Table(          # how many rows of each kind there are, so that nobody has to count them
    "counters", metadata,
    Column("subject", Text, primary_key=True),
    Column("loop", Text, primary_key=True),
    Column("verdict", Text, primary_key=True),
    Column("count", Integer, nullable=False),
)

jobs = Table(
    "jobs", metadata,
    Column("digest", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("result", Text),
    Column("cost", Text),
    Column("finished_at", Text),
    Index("jobs_finished", "finished_at"),
)

job_starts = Table(
    "job_starts", metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, ForeignKey("jobs.digest"), nullable=False),
    Column("time", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Index("job_starts_digest", "digest"),
)

artefacts = Table(
    "artefacts", metadata,
    Column("digest", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("files", Text, nullable=False),          # {relative name: SHA-256}
    Column("single", Integer, nullable=False),      # 1: one file, addressed itself; 0: a folder
    Column("created", Text, nullable=False),
    Column("removed", Text),                        # when its files were given up; the row stays
)

intents = Table(
    "intents", metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("opened", Text, nullable=False),
    Column("settled", Text),
    Index("intents_open", "id", sqlite_where=text("settled IS NULL")),
)

channels = Table(
    "channels", metadata,
    Column("name", Text, primary_key=True),
    Column("digest", Text, ForeignKey("artefacts.digest"), nullable=False),
    Column("row", Integer, ForeignKey("ledger.id"), nullable=False),
)

latches = Table(           # models that stable must never move to again
    "latches", metadata,
    Column("digest", Text, primary_key=True),
    Column("row", Integer, ForeignKey("ledger.id"), nullable=False),
    Column("reason", Text, nullable=False),
)
