"""Who signs the ledger's heads: into the table, in the transaction of the row, and then to the places elsewhere.

Invariants: a row that `is_signed` says must be signed is committed together with its signature or not at all; a head
is told elsewhere only after it was committed; what a kill or a full disk kept from the file elsewhere is made up for
at the next head or the next start. The file elsewhere is only ever appended to.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, insert, select

from state import rows
from state.database import Database
from state.errors import ConfigurationError, StateError, in_one_line
from state.failpoints import failpoint
from state.files import sync
from state.heads import Head, is_signed, read_heads
from state.records import Row
from state.signing import SigningKey, genuine
from state.tables import heads, ledger

OnHead = Callable[[Head], None]
OnMissed = Callable[[str], None]


class Signer:
    """Signs with one key. `elsewhere` is a file that every head is appended to, durably.

    `on_head` is told each head after its commit (the journal); `on_missed` why a head could not be copied to the file:
    that stops nothing, and the next head takes it along.
    """

    def __init__(
        self, database: Database, key: SigningKey, elsewhere: Path | None = None,
        on_head: OnHead = lambda head: None, on_missed: OnMissed = lambda reason: None,
    ) -> None:
        self.database = database
        self.key = key
        self.elsewhere = elsewhere
        self.on_head = on_head
        self.on_missed = on_missed
        self._copied = 0                           # the last row of which the file elsewhere holds a head
        self._turn = threading.Lock()

    def sign(self, connection: Connection, row: Row) -> None:
        """Sign the row that was just added, where its kind is signed."""
        if is_signed(row.event, row.parent):
            _keep(connection, self.key.head(row.id, row.hash, row.time))

    def sign_last(self) -> None:
        """Sign the ledger's last row whatever it is: what an orderly stop does."""
        with self.database.transaction() as connection:
            id, hash = rows.head(connection)
            last = _newest(connection)
            if id == 0 or (last is not None and last.row == id):
                return
            head = self.key.head(id, hash, rows.stamp(rows.utc_now()))
            _keep(connection, head)
            failpoint("signer.last.before")
        failpoint("signer.last.after")
        self._tell(head)

    def telling(self, on_row: Callable[[Row], None]) -> Callable[[Row], None]:
        """`on_row` for a ledger that is signed: the head that was committed with a row is told after the row."""
        def tell(row: Row) -> None:
            on_row(row)
            if is_signed(row.event, row.parent):
                with self.database.snapshot() as connection:
                    head = _newest(connection, row.id)
                if head is not None:
                    self._tell(head)

        return tell

    def catch_up(self) -> None:
        """Bring the file elsewhere up to date and tell the journal the last head again: what every start does.

        Raises ConfigurationError where the last signed row is not in the ledger as it was signed, by the table or by
        the file elsewhere, and where that file cannot be written.
        """
        last = self.last()
        if last is not None:
            self._refuse_other(last, str(self.database.path))
        try:
            self._look_elsewhere()
            self._copy()
        except OSError as error:
            raise ConfigurationError(str(in_one_line("append to", Path(str(self.elsewhere)), error))) from error
        except StateError as error:
            raise ConfigurationError(str(error)) from error
        if last is not None:
            self.on_head(last)

    def last(self) -> Head | None:
        """The newest head; None while nothing was signed."""
        with self.database.snapshot() as connection:
            return _newest(connection)

    # ---------------------------------------------------------------- inside

    def _tell(self, head: Head) -> None:
        self.on_head(head)
        try:
            with self._turn:
                self._copy()
        except OSError as error:
            self.on_missed(str(in_one_line("append to", Path(str(self.elsewhere)), error)))

    def _look_elsewhere(self) -> None:
        """Find the last row of which the file elsewhere holds a head."""
        if self.elsewhere is None or not self.elsewhere.exists():
            return
        newest = max(read_heads(self.elsewhere), key=lambda head: head.row, default=None)
        if newest is not None:
            self._refuse_other(newest, str(self.elsewhere))
            self._copied = newest.row

    def _refuse_other(self, head: Head, where: str) -> None:
        with self.database.snapshot() as connection:
            hash = connection.execute(select(ledger.c.hash).where(ledger.c.id == head.row)).scalar()
        if hash != head.hash or not genuine(head):
            raise ConfigurationError(
                f"the ledger does not hold row {head.row} as it was signed, by the head in {where}: it was rewritten "
                "or cut back outside kaizend (`kaizend verify` says more)"
            )

    def _copy(self) -> None:
        """Append to the file elsewhere every head after the last one it holds. Raises OSError."""
        if self.elsewhere is None:
            return
        with self.database.snapshot() as connection:
            query = select(heads).where(heads.c.row > self._copied).order_by(heads.c.row)
            found = [Head(**one._mapping) for one in connection.execute(query)]
        if not found:
            return
        failpoint("signer.copied.before")
        append_lines(self.elsewhere, [json.dumps(head.to_json()) for head in found])
        self._copied = found[-1].row
        failpoint("signer.copied.after")


def append_lines(file: Path, lines: list[str]) -> None:
    """Add lines to a file, durably; a line that a kill cut short is ended first. Raises OSError."""
    with file.open("a+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write("".join(line + "\n" for line in lines).encode())
        stream.flush()
        os.fsync(stream.fileno())
    if size == 0:
        sync(file.parent)


def _keep(connection: Connection, head: Head) -> None:
    connection.execute(insert(heads).values(**head.to_json()))


def _newest(connection: Connection, row: int | None = None) -> Head | None:
    """The newest head, or that of one row."""
    query = select(heads).order_by(heads.c.row.desc()).limit(1)
    found = connection.execute(query if row is None else query.where(heads.c.row == row)).first()
    return None if found is None else Head(**found._mapping)
