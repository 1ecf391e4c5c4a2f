"""A ledger that is signed: its key is found or made, and named in the ledger, before anything is written.

Invariants: the state folder remembers in its public key's file whose signatures its ledger bears, and while that file
lies there no other key is taken, so that a ledger that was stripped of its signatures, or bears another's, is not
signed anew. Every key in force is named by a row: the GENESIS row, or a KEY row where the ledger is older than its
key or another key takes over. The name is in the ledger before the public key is in its file: a start that was
killed in between is made again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from state.database import Database
from state.errors import ConfigurationError
from state.heads import Head, short
from state.ledger import Ledger
from state.records import Entry, Event, Row
from state.registry import Registry
from state.rows import utc_now
from state.signer import Signer
from state.signing import SigningKey, make_key, read_key, read_public, write_public


def signed_ledger(
    database: Database, registry: Registry, private: Path, public: Path, elsewhere: Path | None = None, *,
    on_row: Callable[[Row], None] = lambda row: None, on_head: Callable[[Head], None] = lambda head: None,
    on_missed: Callable[[str], None] = lambda reason: None, clock: Callable[[], datetime] = utc_now,
) -> Ledger:
    """The ledger of a database, and its signer brought up to date. `private` and `public` are the files of the key.

    Raises ConfigurationError where the ledger is not the one that was signed, or the key not the one that signed it.
    """
    known = read_public(public)
    key = _key(private, public, known)
    signer = Signer(database, key, elsewhere, on_head, on_missed)
    ledger = Ledger(database, registry, clock, on_row, signer)
    last, written = signer.last(), ledger.head()[0] > 0
    before = last.key if last is not None else None
    if known is not None and written and before != known:
        raise ConfigurationError(
            f"{database.path} is not the ledger that key {short(known)} has signed (its heads bear "
            f"{'no signature' if before is None else f'key {short(before)}'}), it was changed outside kaizend: restore "
            f"a backup, or remove {public} to go on with it all the same, which is recorded"
        )
    signer.catch_up()
    if written and before != key.public:
        reason = "heads are signed from here on" if before is None else "another key signs from here on"
        ledger.append(Entry(Event.KEY, reason, change={"before": before, "after": key.public}))
    if known is None:
        write_public(public, key.public)
    return ledger


def _key(private: Path, public: Path, known: str | None) -> SigningKey:
    """The key in the file, or a new one where nothing was signed yet."""
    key = read_key(private)
    if known is None:
        return key or make_key(private)
    if key is None or key.public != known:
        what = "is not there" if key is None else f"is another key ({short(key.public)})"
        raise ConfigurationError(
            f"{private} {what}, and the ledger is signed with key {short(known)}: put that one back, or remove "
            f"{public} to go on with another key, which is recorded"
        )
    return key
