"""The first tables. A revision is never edited after its release; there is no way down but a backup."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from state.database import append_only

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_ledger()
    create_cycles()
    create_jobs()
    create_artefacts()
    create_channels()


def words(name: str, *, optional: bool = False, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=optional, primary_key=key)


def number(name: str, *, optional: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=optional)


def row_id(name: str, target: str | None = "ledger.id", *, key: bool = False) -> sa.Column[int]:
    """A ledger row's id: as a key it is never chosen by the database."""
    references = [sa.ForeignKey(target)] if target else []
    if key:
        return sa.Column(name, sa.Integer(), *references, primary_key=True, autoincrement=False)
    return sa.Column(name, sa.Integer(), *references, nullable=False)


def create_ledger() -> None:
    op.create_table(
        "ledger",
        row_id("id", None, key=True),
        words("time"), words("event"), number("cycle", optional=True), number("parent", optional=True),
        words("loop", optional=True), words("change"), words("verdict", optional=True), words("reason"),
        words("base", optional=True), words("result", optional=True), words("evidence"), words("cost"),
        words("actor"), words("prev"), words("hash"),
    )
    for column in ("time", "event", "cycle", "loop", "verdict", "result"):
        op.create_index(f"ledger_{column}", "ledger", [column])
    for first, second in (("loop", "verdict"), ("event", "loop"), ("event", "verdict")):
        op.create_index(f"ledger_{first}_{second}", "ledger", [first, second])
    for statement in append_only("ledger"):
        op.execute(statement)
    op.create_table(
        "counters", words("subject", key=True), words("loop", key=True), words("verdict", key=True), number("count")
    )


def create_cycles() -> None:
    op.create_table("loop_states", row_id("row", key=True), words("loop"), words("digest"), words("body"))
    op.create_index("loop_states_loop", "loop_states", ["loop", "row"])
    op.create_index("loop_states_digest", "loop_states", ["digest"])
    op.create_table(
        "cycles",
        row_id("id", key=True),
        number("parent"), number("ordinal"), words("loop"), words("candidate"), words("state_digest"),
        words("budget"), words("outcome", optional=True),
        sa.Column("closing", sa.Integer(), sa.ForeignKey("ledger.id")),
        sa.UniqueConstraint("parent", "ordinal", name="cycles_name"),
    )
    op.create_index("cycles_open", "cycles", ["id"], sqlite_where=sa.text("outcome IS NULL"))
    op.create_table("attempts", row_id("cycle", "ledger.id", key=True), number("marker"), number("count"))


def create_jobs() -> None:
    op.create_table(
        "jobs",
        words("digest", key=True), words("kind"), words("spec"), words("result", optional=True),
        words("cost", optional=True), words("finished_at", optional=True),
    )
    op.create_index("jobs_finished", "jobs", ["finished_at"])
    op.create_table(
        "job_starts",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("digest", sa.Text(), sa.ForeignKey("jobs.digest"), nullable=False),
        words("time"), number("pid"),
    )
    op.create_index("job_starts_digest", "job_starts", ["digest"])


def create_artefacts() -> None:
    op.create_table(
        "artefacts",
        words("digest", key=True), words("kind"), number("bytes"), words("files"), number("single"),
        words("created"), words("removed", optional=True),
    )
    op.create_table(
        "intents",
        sa.Column("id", sa.Integer(), primary_key=True),
        words("kind"), words("body"), words("opened"), words("settled", optional=True),
    )
    op.create_index("intents_open", "intents", ["id"], sqlite_where=sa.text("settled IS NULL"))


def create_channels() -> None:
    op.create_table(
        "channels",
        words("name", key=True),
        sa.Column("digest", sa.Text(), sa.ForeignKey("artefacts.digest"), nullable=False),
        row_id("row"),
    )
    op.create_table("latches", words("digest", key=True), row_id("row"), words("reason"))
