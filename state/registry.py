"""Content-addressed artefacts, and the two links that others follow: `stable` and `working`.

    root/artifacts/<first two>/<digest>/    files read-only; a vault lies in root/vault/, open to the owner alone
    root/incoming/                          what is being copied in; emptied by `reconcile`
    root/stable, root/working               links into artifacts/, replaced atomically

Invariants: an artefact that the table names is complete and on disk; its files never change. The database is the
truth and the links follow it: whoever moves a channel does so in the ledger.
"""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from state import files as disk
from state.database import Database
from state.errors import StateError, in_one_line
from state.failpoints import failpoint
from state.records import Channel, JsonObject, digest_of
from state.rows import as_text, stamp, utc_now
from state.tables import artefacts, channels, intents

VAULT = "vault"
MOST_SEEN = 1024
ADOPT, REMOVE = "adopt", "remove"


class Registry:
    """The artefacts of one state folder. Every error is a StateError of one line."""

    def __init__(self, root: Path, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self.root = root
        self.database = database
        self.clock = clock
        self.artifacts, self.vault, self.incoming = root / "artifacts", root / "vault", root / "incoming"
        self._turn = threading.RLock()
        self._seen: dict[str, tuple[Path, str]] = {}    # where an artefact lies, and how it looked when it was whole
        with _in_words("make", root):
            for folder in (self.artifacts, self.vault, self.incoming):
                folder.mkdir(parents=True, exist_ok=True)
            self.vault.chmod(0o700)

    def adopt(self, path: Path, kind: str) -> str:
        """Move a file or folder of this file system into the store and return its digest; `path` is gone after it."""
        with _in_words("keep", path):
            manifest, single = disk.manifest_of(path), path.is_file()
            digest = digest_of(manifest)
            with self._turn:
                if not self._known(digest, kind):
                    self._place(self._staged(path), digest, kind, manifest, single=single)
                    self._found_whole(digest, self._place_of(digest, kind))
                elif not path.resolve().is_relative_to(self.artifacts.resolve()):
                    disk.discard(path)
            return digest

    def add_copy(self, path: Path, kind: str) -> str:
        """Copy a file or folder into the store and return its digest; `path` stays as it is."""
        waiting = self.incoming / uuid.uuid4().hex / (path.name or path.resolve().name)
        with _in_words("copy", path):
            try:
                waiting.parent.mkdir(parents=True)
                failpoint("registry.copy.before")
                disk.copy(path, waiting)
                failpoint("registry.copy.after")
                return self.adopt(waiting, kind)
            finally:
                disk.discard(waiting.parent)

    def path(self, digest: str) -> Path:
        """Where the artefact lies: a folder, or the file itself where one file was kept."""
        record = self._record(digest)
        place = self._place_of(digest, record.kind)
        return place / next(iter(json.loads(record.files))) if record.single else place

    def holds(self, digest: str) -> bool:
        """Whether the artefact is kept and its files are there."""
        record = self._find(digest)
        return record is not None and self._place_of(digest, record.kind).is_dir()

    def kind(self, digest: str) -> str:
        kind: str = self._record(digest).kind
        return kind

    def files(self, digest: str) -> dict[str, str]:
        """The manifest: {relative name: SHA-256}."""
        manifest: dict[str, str] = json.loads(self._record(digest).files)
        return manifest

    def digests(self) -> list[str]:
        """Every artefact that is kept, oldest first."""
        query = select(artefacts.c.digest).where(artefacts.c.removed.is_(None)).order_by(artefacts.c.created)
        with self.database.snapshot() as connection:
            return list(connection.execute(query).scalars())

    def verify(self, digest: str) -> list[str]:
        """What is wrong with the artefact's bytes, one line a file; nothing when they are those that were kept."""
        record = self._record(digest)
        expected, place = json.loads(record.files), self._place_of(digest, record.kind)
        if digest_of(expected) != digest:
            return [f"artefact {digest[:12]}: its list of files was changed"]
        if not place.is_dir():
            return [f"artefact {digest[:12]}: {place} is missing"]
        try:
            found = disk.manifest_of(place) if any(place.iterdir()) else {}
        except (OSError, StateError) as error:
            return [f"artefact {digest[:12]}: {error}"]
        said = {name: "was changed" if name in found else "is missing" for name in expected}
        said |= dict.fromkeys(found.keys() - expected.keys(), "was added")
        wrong = (name for name in sorted(said) if found.get(name) != expected.get(name))
        return [f"{place / name} {said[name]}" for name in wrong]

    def damage(self, digest: str) -> list[str]:
        """As `verify`, for what is about to be used: the bytes are read where this life has not found them whole yet,
        and again where a file's size, time of change or place on the disk is another one since.
        """
        known = self._seen.get(digest)
        if known and known[1] and _look_of(known[0]) == known[1]:
            return []
        place = self._place_of(digest, self._record(digest).kind)
        look, wrong = _look_of(place), self.verify(digest)
        if not wrong:
            self._found_whole(digest, place, look)
        return wrong

    def _found_whole(self, digest: str, place: Path, look: str | None = None) -> None:
        """Remember how it looks (or looked before it was read), for the last artefacts that were used."""
        with self._turn:
            self._seen.pop(digest, None)
            self._seen[digest] = place, _look_of(place) if look is None else look
            while len(self._seen) > MOST_SEEN:
                del self._seen[next(iter(self._seen))]

    def remove(self, digest: str) -> None:
        """Give up the files of an artefact that no channel points at. Jobs that gave it count as unfinished again."""
        with _in_words("remove", self.root), self._turn:
            body = {"digest": digest, "kind": self._record(digest).kind}
            with self.database.transaction() as connection:
                if connection.execute(select(channels.c.name).where(channels.c.digest == digest)).first():
                    raise StateError(f"artefact {digest[:12]} is in force: it cannot be removed")
                number = self._intend(connection, REMOVE, body)
                connection.execute(
                    update(artefacts).where(artefacts.c.digest == digest).values(removed=stamp(self.clock()))
                )
                failpoint("registry.remove.before")
            self._seen.pop(digest, None)
            failpoint("registry.remove.between")
            disk.discard(self._place_of(digest, body["kind"]))
            with self.database.transaction() as connection:
                self._settle(connection, number)
            failpoint("registry.remove.after")

    def link(self, channel: Channel, digest: str) -> None:
        """Point the channel's link at an artefact, atomically: a reader sees the old target or the new one."""
        target = self.path(digest).relative_to(self.root)
        link = self.root / str(channel)
        fresh = self.root / f".{channel}.{uuid.uuid4().hex}"
        with _in_words("move the link", link), self._turn:
            try:
                failpoint("registry.link.before")
                fresh.symlink_to(target)
                failpoint("registry.link.between")
                fresh.replace(link)
                failpoint("registry.link.replaced")
                disk.sync(self.root)
                failpoint("registry.link.after")
            finally:
                fresh.unlink(missing_ok=True)

    def repair_link(self, channel: Channel) -> bool:
        """Make the link follow the channels table. True when it had to be moved."""
        with self._turn:
            query = select(channels.c.digest).where(channels.c.name == str(channel))
            with self.database.snapshot() as connection:
                digest = connection.execute(query).scalar()
            if digest is None:
                return False
            link = self.root / str(channel)
            if link.is_symlink() and link.readlink() == self.path(digest).relative_to(self.root):
                return False
            self.link(channel, digest)
            return True

    def reconcile(self) -> list[str]:
        """Bring disk and tables together after a crash; what was done, in words. Call it before any work starts."""
        with _in_words("tidy", self.root), self._turn:
            done = [self._finish(intent) for intent in self._open_intents()]
            for stray in [*self.incoming.iterdir(), *(p for c in Channel for p in self.root.glob(f".{c}.*"))]:
                disk.discard(stray)
                done.append(f"removed {stray.name}, which was being written")
            return done + [f"moved the link {channel} back" for channel in Channel if self.repair_link(channel)]

    def _known(self, digest: str, kind: str) -> bool:
        """Whether the store has the content already. What was readable once cannot be sealed any more."""
        if not self.holds(digest):
            return False
        if kind == VAULT and self.kind(digest) != VAULT:
            raise StateError(f"artefact {digest[:12]} is kept as {self.kind(digest)!r}: it cannot become a vault")
        return True

    def _staged(self, path: Path) -> Path:
        """The folder that is renamed into place: `path` itself, or one made for a single or a distant file."""
        near = path.stat().st_dev == self.root.stat().st_dev
        if near and path.is_dir():
            return path
        staged = self.incoming / uuid.uuid4().hex
        inside = staged / path.name if path.is_file() else staged
        try:
            if near:
                staged.mkdir()
                path.rename(inside)
            else:
                disk.copy(path, inside)
                disk.discard(path)
        except OSError:
            disk.discard(staged)
            raise
        return staged

    def _place(self, staged: Path, digest: str, kind: str, manifest: dict[str, str], *, single: bool) -> None:
        """Intent, bytes on disk, rename, names on disk, row: in this order."""
        body = {"digest": digest, "kind": kind, "bytes": disk.size_of(staged), "files": manifest, "single": single}
        with self.database.transaction() as connection:
            number = self._intend(connection, ADOPT, body)
            failpoint("registry.adopt.before")
        failpoint("registry.adopt.intended")
        place = self._place_of(digest, kind)
        try:
            disk.make_durable(staged, disk.SEALED if kind == VAULT else disk.READ_ONLY)
            failpoint("registry.adopt.synced")
            place.parent.mkdir(mode=0o700 if kind == VAULT else 0o755, exist_ok=True)
            disk.discard(place)                              # a leftover that no row names
            staged.rename(place)
            failpoint("registry.adopt.renamed")
            for folder in (place.parent, place.parent.parent):
                disk.sync(folder)
        except OSError:
            with suppress(OSError, StateError):              # the first error is the one to tell
                disk.discard(place)
                with self.database.transaction() as connection:
                    self._settle(connection, number)
            raise
        with self.database.transaction() as connection:
            self._enter(connection, number, body)
            failpoint("registry.adopt.entering")
        failpoint("registry.adopt.after")

    def _enter(self, connection: Connection, number: int, body: JsonObject) -> None:
        values = body | {
            "files": as_text(body["files"]), "single": int(body["single"]), "created": stamp(self.clock()),
            "removed": None,
        }
        mine = artefacts.c.digest == body["digest"]
        if connection.execute(update(artefacts).where(mine).values(**values)).rowcount == 0:
            connection.execute(insert(artefacts).values(**values))
        self._settle(connection, number)

    def _finish(self, intent: Any) -> str:
        """Complete an interrupted act where its effect is whole, undo it otherwise."""
        body = json.loads(intent.body)
        if not re.fullmatch(r"[0-9a-f]{64}", body["digest"]):           # a place outside the store must not be touched
            raise StateError(f"{self.database.path} names no artefact by {body['digest']!r}: it was changed")
        digest, place = body["digest"], self._place_of(body["digest"], body["kind"])
        whole = intent.kind == ADOPT and _holds(place, body["files"])
        if whole:
            for folder in (place.parent, place.parent.parent):
                disk.sync(folder)
        else:
            disk.discard(place)
        with self.database.transaction() as connection:
            if whole:
                self._enter(connection, intent.id, body)
            else:
                self._settle(connection, intent.id)
            failpoint("registry.finish.before")
        failpoint("registry.finish.after")
        return f"{'kept' if whole else 'removed'} artefact {digest[:12]}, whose {intent.kind} was interrupted"

    def _open_intents(self) -> list[Any]:
        with self.database.snapshot() as connection:
            return list(connection.execute(select(intents).where(intents.c.settled.is_(None)).order_by(intents.c.id)))

    def _intend(self, connection: Connection, kind: str, body: JsonObject) -> int:
        made = connection.execute(insert(intents).values(kind=kind, body=as_text(body), opened=stamp(self.clock())))
        key = made.inserted_primary_key
        assert key is not None
        number: int = key[0]
        return number

    def _settle(self, connection: Connection, number: int) -> None:
        connection.execute(update(intents).where(intents.c.id == number).values(settled=stamp(self.clock())))

    def _place_of(self, digest: str, kind: str) -> Path:
        return (self.vault if kind == VAULT else self.artifacts) / digest[:2] / digest

    def _find(self, digest: str) -> Any:
        query = select(artefacts).where(artefacts.c.digest == digest, artefacts.c.removed.is_(None))
        with self.database.snapshot() as connection:
            return connection.execute(query).first()

    def _record(self, digest: str) -> Any:
        record = self._find(digest)
        if record is None:
            raise StateError(f"there is no artefact {digest[:12]} in {self.root}")
        return record


def _holds(place: Path, files: JsonObject) -> bool:
    """Whether a folder has these files and no others. One that a kill left half removed has not."""
    try:
        return place.is_dir() and disk.manifest_of(place) == files
    except StateError:
        return False


def _look_of(place: Path) -> str:
    """What the file system tells of an artefact's files without reading them; "" where it cannot be told."""
    try:
        told = [(file.relative_to(place).as_posix(), file.stat()) for file in disk.files_of(place)]
    except (OSError, StateError):
        return ""
    return digest_of([[name, status.st_size, status.st_mtime_ns, status.st_ino] for name, status in told])


@contextmanager
def _in_words(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        raise in_one_line(what, named, error) from error
