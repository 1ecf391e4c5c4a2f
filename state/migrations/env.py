"""Alembic's entry. The connection, with its transaction already open, is handed over by `Database.migrate`."""

from __future__ import annotations

from alembic import context

from state.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
