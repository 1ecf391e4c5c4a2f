"""Signed heads. What was written before this revision is covered by the first head that is signed after it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from state.database import append_only

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "heads",
        sa.Column("row", sa.Integer(), sa.ForeignKey("ledger.id"), primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("hash", "time", "key", "signature")),
    )
    for statement in append_only("heads"):
        op.execute(statement)
