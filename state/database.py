"""The SQLite file: how it is opened, written, checked, migrated and backed up. All that is dialect-specific is here.

Invariants: a write is one BEGIN IMMEDIATE transaction, on disk when `transaction` returns (WAL, synchronous FULL);
writes of this process take turns; nothing is migrated before a backup is written. A damaged file stops the program:
it is never replaced by a fresh one.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from state.errors import HostError, StateError, in_one_line
from state.failpoints import failpoint
from state.tables import REVISION

__all__ = ["Database", "StateError", "append_only"]

BUSY_MILLISECONDS = 15_000
OF_THE_HOST = ("disk is full", "disk I/O error", "locked", "unable to open")         # in SQLite's words
MIGRATIONS = Path(__file__).parent / "migrations"
PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cache_size = -256",     # KiB for each connection; 2 MiB each by default
)
CONNECTIONS = 3         # open from the start: opened when they are wanted, each rare crowd would leave some behind


class Database:
    """One open database, shared by all threads of the process. Raises StateError for what an operator can cause."""

    def __init__(self, path: Path, *, check: bool = True) -> None:
        """Open or create the file. `check` reads all of it for damage: seconds per gigabyte."""
        self.path = path
        self.writes = 0
        self._turn = threading.RLock()
        self._mine = threading.local()
        _refuse_unusable(path)
        self.engine = create_engine(
            URL.create("sqlite", database=str(path)), pool_size=CONNECTIONS, max_overflow=0, pool_timeout=None
        )
        event.listen(self.engine, "connect", _on_connect)
        event.listen(self.engine, "begin", _on_begin)
        self._open_all()
        if check:
            self._check()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Write: everything done on the connection is committed together, or nothing when the block raises."""
        with self._turn:
            with self._connection() as connection:
                connection.execution_options(kaizend_write=True)
                with connection.begin():
                    yield connection
            self.writes += 1

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Read: everything read on the connection is from one committed state."""
        with self._connection() as connection, connection.begin():
            yield connection

    def revision(self) -> str | None:
        """The migration that the file stands at; None for a new one."""
        with self.snapshot() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            return found

    def migrate(self) -> None:
        """Bring the tables up to date, after a backup beside the file when there was something in it."""
        standing = self.revision()
        if standing == REVISION:
            return
        from alembic import command  # heavy: imported only when there is work for it
        from alembic.config import Config
        from alembic.script import ScriptDirectory
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if standing is not None:
            if standing not in known:
                raise StateError(f"{self.path} was written by a newer kaizend (revision {standing}): run that one")
            self.backup(self.path.with_name(f"{self.path.name}.backup-{standing}"))
        with self.transaction() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, REVISION)
            failpoint("database.migrate.before")
        failpoint("database.migrate.after")

    def backup(self, target: Path) -> None:
        """Write a whole, consistent copy to `target`, replacing it; the copy appears complete or not at all."""
        partial = target.with_name(target.name + ".partial")
        try:
            partial.unlink(missing_ok=True)
            failpoint("database.backup.begun")
            source, copy = sqlite3.connect(self.path), sqlite3.connect(partial)
            try:
                source.backup(copy)
            finally:
                copy.close()
                source.close()
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            failpoint("database.backup.before")
            partial.replace(target)
            sync_folder(target.parent)
        except (OSError, sqlite3.Error) as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise in_one_line("write the backup", target, error) from error
            raise HostError(f"cannot write the backup {target}: {error}") from error

    def responds(self, timeout_seconds: float = 5.0) -> bool:
        """Whether the writer's turn comes free within that time: False means that a write hangs."""
        if not self._turn.acquire(timeout=timeout_seconds):
            return False
        self._turn.release()
        return True

    def close(self) -> None:
        """Give the file back. The last one to close it folds the write-ahead log in."""
        with self._turn:
            self.engine.dispose()

    def _open_all(self) -> None:
        with self._in_words(), ExitStack() as connections:
            for _ in range(CONNECTIONS):
                connections.enter_context(self.engine.connect())

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """One of the connections, as soon as one is free: whoever has one gives it back without needing another."""
        if getattr(self._mine, "busy", False):
            raise RuntimeError("this thread reads or writes already")
        self._mine.busy = True
        try:
            with self._in_words(), self.engine.connect() as connection:
                yield connection
        finally:
            self._mine.busy = False

    def _check(self) -> None:
        with self.snapshot() as connection:
            found = connection.execute(text("PRAGMA quick_check(1)")).scalar()
        if found != "ok":
            self.close()
            first = str(found).splitlines()[-1]
            raise StateError(f"{self.path} is damaged ({first}): restore a backup; nothing was changed")

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = str(error.orig)
            kind = HostError if any(words in reason for words in OF_THE_HOST) else StateError
            raise kind(_words(self.path, reason)) from error


def append_only(table: str) -> list[str]:
    """The statements that make every UPDATE and DELETE on a table fail, whoever asks."""
    return [
        f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for act in ("UPDATE", "DELETE")
    ]


def sync_folder(folder: Path) -> None:
    """Make names that were added to or removed from a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _on_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None                        # the driver begins nothing by itself: _on_begin does
    for pragma in PRAGMAS:
        connection.execute(pragma)


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("kaizend_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _refuse_unusable(path: Path) -> None:
    if not path.parent.is_dir():
        raise StateError(f"cannot open {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise StateError(f"cannot open {path}: it is a folder")
    for needed in (path.parent, path):
        if needed.exists() and not os.access(needed, os.W_OK):
            raise StateError(f"cannot write to {path}: {needed} is read-only for this user")


def _words(path: Path, reason: str) -> str:
    if "disk is full" in reason:
        return f"no space left to write {path}: free some space on its disk and start again"
    if "not a database" in reason:
        return f"{path} is not a database of kaizend; nothing was changed"
    if "malformed" in reason:
        return f"{path} is damaged ({reason}): restore a backup; nothing was changed"
    if "disk I/O error" in reason:
        return f"{path} cannot be read or written (disk I/O error): look at its disk and start again"
    if "readonly" in reason:
        return f"cannot write to {path}: it is read-only"
    if "locked" in reason:
        return f"{path} is in use by another process"
    return f"{path}: {reason}"
