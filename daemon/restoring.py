"""restore: filling an empty state folder from a backup that verifies, or only trying whether it would.

A backup may be torn, or be somebody else's: nothing of it is trusted. Invariants: only plain files go where a state
folder has them, with the modes they have there; a file that is no backup, or does not verify, leaves everything as it
was; nothing is ever put over a state folder that is there.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import sys
import tarfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from daemon.keeping import ARTIFACTS, DATABASE, FILES, KEYS, VAULT, beside, own_folder
from daemon.lock import holder
from daemon.places import Places
from daemon.reports import places_of
from state import files as disk
from state.errors import UserError, in_one_line
from state.failpoints import failpoint

IN_A_STORE = re.compile(rf"({ARTIFACTS}|{VAULT})/([0-9a-f]{{2}})/\2[0-9a-f]{{62}}(/.+)?")
SHELF = re.compile(rf"({ARTIFACTS}|{VAULT})(/[0-9a-f]{{2}})?")
NOT_ONE = "not a backup of kaizend, or not all of one"


def restore_backup(config: Path | None, file: Path) -> None:
    """Fill an empty state folder from a backup that verifies; on any problem the folder is left as it was."""
    places = places_of(config)
    _refuse_occupied(places)
    _refuse_missing(file)
    places = replace(places, state=places.state.resolve())              # it may be a link to another disk
    try:
        with own_folder(beside(places.state, "restore")) as fresh:
            if not _verifies(places, file, fresh):
                raise UserError(f"{file} does not verify (see above): nothing was restored")
            failpoint("restore.verified")
            fresh.chmod(0o750)
            for path in (*fresh.rglob("*"), fresh):
                if not path.is_symlink():
                    disk.sync(path)
            if places.state.is_dir():
                places.state.rmdir()
            failpoint("restore.emptied")
            fresh.rename(places.state)
            disk.sync(places.state.parent)
    except OSError as error:
        raise in_one_line("restore to", places.state, error) from error
    sys.stdout.write(f"restored {places.state} from {file}\n")


def try_restore(config: Path | None, file: Path) -> int:
    """The drill: restore into a folder beside the file, verify all of it there, and take it away. Returns 0 when it all
    holds and 1 when something does not.
    """
    places = places_of(config)
    _refuse_missing(file)
    try:
        with own_folder(beside(file, "drill")) as fresh:
            holds = _verifies(places, file, fresh)
            failpoint("restore.drilled")
    except OSError as error:
        raise in_one_line("restore for a drill beside", file, error) from error
    sys.stdout.write(f"drill: {file} {'can be restored' if holds else 'does not verify'}; nothing was kept of it\n")
    return 0 if holds else 1


def _refuse_occupied(places: Places) -> None:
    """Raise UserError where there is a state folder already."""
    pid = holder(places.state / "lock")
    if pid is not None:
        raise UserError(f"kaizend is running on {places.state} (process {pid}): stop it, and move that folder away")
    if places.state.exists() and (not places.state.is_dir() or any(places.state.iterdir())):
        raise UserError(f"{places.state} is not empty: a restore needs an empty state folder (move it away first)")


def _refuse_missing(file: Path) -> None:
    """Raise UserError where there is no file to restore from, before any folder is made for it."""
    if not file.is_file():
        raise UserError(f"{file} is not a file")


def _verifies(places: Places, file: Path, folder: Path) -> bool:
    """Put a backup into an empty folder and verify it there, told line by line. Raises UserError for what is none."""
    from daemon.audit import audit
    from daemon.trust import Trust
    from state.signing import read_public

    _unpack(file, folder)
    _bring_together(file, folder)
    restored = replace(places, state=folder)
    trust = Trust(read_public(restored.public_key), str(restored.public_key))           # the backup's own
    return audit(restored, trust, as_json=False) == 0


def _unpack(file: Path, folder: Path) -> None:
    """The files of a backup, each in its place and with its mode."""
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                _refuse_foreign(file, member)
                if member.isreg() and not member.name.startswith(f"{FILES}/"):
                    _put(tar, member, folder / member.name)
    except FileExistsError as error:
        raise UserError(f"{file}: {NOT_ONE} ({error.filename} is in it twice)") from error
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise UserError(f"{file}: {NOT_ONE}") from error
    if not (folder / DATABASE).is_file():
        raise UserError(f"{file}: not a backup of kaizend (no {DATABASE} in it)")
    for root, modes in ((ARTIFACTS, disk.READ_ONLY), (VAULT, disk.SEALED)):
        for artefact in folder.glob(f"{root}/*/*"):
            disk.make_durable(artefact, modes)
    for shelf in (folder / VAULT, *(folder / VAULT).glob("*")):
        with suppress(FileNotFoundError):
            shelf.chmod(0o700)
    failpoint("restore.unpacked")


def _refuse_foreign(file: Path, member: tarfile.TarInfo) -> None:
    """Raise UserError for a member that `kaizend backup` does not write: links, devices, places elsewhere."""
    name = PurePosixPath(member.name)
    known = (
        member.name in (DATABASE, *KEYS) or (name.parts[:1] == (FILES,) and len(name.parts) == 2)
        or IN_A_STORE.fullmatch(member.name) or (member.isdir() and SHELF.fullmatch(member.name))
    )
    if not known or ".." in name.parts or not (member.isreg() or member.isdir()):
        raise UserError(f"{file}: {NOT_ONE} ({member.name!r} is nothing that a backup holds)")


def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as written:
        if target.name == KEYS[0]:
            target.chmod(0o600)
        shutil.copyfileobj(source, written)


def _bring_together(file: Path, folder: Path) -> None:
    """Tables of this version, what was being made when the copy was taken, and the two links."""
    from state.database import Database
    from state.registry import Registry

    try:
        database = Database(folder / DATABASE)
        try:
            database.migrate()
            Registry(folder, database).reconcile()
        finally:
            database.close()
    except (KeyError, TypeError, ValueError, sqlite3.Error) as error:
        raise UserError(f"{file}: {NOT_ONE} (its ledger was changed: {error})") from error
