"""backup: everything of a state folder in one file, also while the daemon runs. `daemon.restoring` brings it back.

Invariant: the file holds one moment of the ledger and every artefact that it names, whole: the daemon takes nothing
away, and `kaizend gc` and a backup keep each other waiting.
"""

from __future__ import annotations

import sqlite3
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from daemon.lock import at_rest
from daemon.places import Places
from daemon.reports import places_of
from state.errors import HostError, StateError, UserError, in_one_line
from state.failpoints import failpoint
from state.files import discard, sync
from state.reading import Reading

DATABASE, ARTIFACTS, VAULT, FILES = "kaizend.db", "artifacts", "vault", "files"
KEYS = ("signing.key", "signing.pub")


def write_backup(config: Path | None, file: Path) -> None:
    """One tar file: the database by SQLite's backup, every artefact it names, the key that signs where it lies in the
    state folder, kaizend.toml and bounds.toml.

    It is written in a folder beside it, which a later attempt clears away where a kill left it, and appears under its
    name when all of it is on the disk.
    """
    places, unfinished = places_of(config), beside(file, "backup")
    if file.exists():
        if unfinished.is_dir():                                     # killed when the backup had its name already
            with own_folder(unfinished):
                pass
        raise UserError(f"{file} exists: a backup never overwrites")
    if not places.database.is_file():
        raise StateError(f"there is no ledger at {places.database}: nothing to back up")
    try:
        with (
            at_rest(places.state / ARTIFACTS, alone=False),
            own_folder(unfinished) as partial,
        ):
            written = partial / file.name
            _write(places, partial / f"{file.name}.db", written)
            failpoint("backup.written")
            sync(written)
            written.rename(file)
            failpoint("backup.renamed")
            sync(file.parent)
    except OSError as error:
        raise in_one_line("write the backup", file, error) from error
    except sqlite3.Error as error:
        raise HostError(f"cannot write the backup {file}: {error}") from error
    sys.stdout.write(f"wrote {file}, {file.stat().st_size:,} bytes\n")


def beside(path: Path, command: str) -> Path:
    """The folder beside a path in which a command makes what will stand there. It has a name that nobody else gives."""
    return path.with_name(f".{path.name}.kaizend-{command}")


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """A folder of that name, empty and open to the owner alone, for one command at a time; what a kill left in it is
    cleared away, and it is gone afterwards if it was not moved.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with at_rest(folder, alone=True):
        try:
            for left in folder.iterdir():
                discard(left)
            yield folder
        finally:
            with suppress(OSError):
                discard(folder)


def _write(places: Places, copy: Path, written: Path) -> None:
    """The tar file itself. `copy` becomes the copy of the database."""
    _copy_database(places.database, copy)
    failpoint("backup.copied")
    written.touch(0o600)                         # it holds the vault and the key
    with Reading(copy) as reading, tarfile.open(written, "w") as tar:
        tar.add(copy, DATABASE)
        for path in (places.state / name for name in KEYS):
            if path.is_file():
                tar.add(path, path.name)
        for artefact in reading.artefacts():
            digest, root = artefact["digest"], VAULT if artefact["kind"] == VAULT else ARTIFACTS
            tar.add(places.state / root / digest[:2] / digest, f"{root}/{digest[:2]}/{digest}")
        for path in (places.config, places.bounds):
            if path.is_file():
                tar.add(path, f"{FILES}/{path.name}")


def _copy_database(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
