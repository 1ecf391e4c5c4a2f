"""gc, backup and restore: what may go, and how everything is carried away and brought back.

Invariants: nothing in force, nothing a rollback may need, nothing a ledger row's evidence stands on is ever given up;
a backup is one consistent state also while the daemon runs; a restore only ever fills an empty state folder.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tarfile
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from daemon.places import Places
from daemon.reports import places_of
from state.errors import StateError, UserError, in_one_line
from state.reading import Reading
from state.records import Event, JsonObject

KEPT_KINDS = {"scores", "guard", "seal", "vault", "data"}
DATABASE, ARTIFACTS, VAULT, FILES = "kaizend.db", "artifacts", "vault", "files"


def collect_garbage(config: Path | None, apply: bool) -> None:
    """Say, or with `apply` do, what can go: models and checkpoints that nothing in force or in reserve needs."""
    places = places_of(config)
    with Reading(places.database) as reading:
        needed = _needed(reading)
        gone = [
            artefact for artefact in reading.artefacts()
            if artefact["kind"] not in KEPT_KINDS and artefact["digest"] not in needed
        ]
    for artefact in gone:
        sys.stdout.write(f"{artefact['digest'][:12]}  {artefact['kind']:<10} {artefact['bytes']:>14,} bytes\n")
    total = sum(int(artefact["bytes"]) for artefact in gone)
    if not apply or not gone:
        sys.stdout.write(f"{len(gone)} artefacts, {total:,} bytes can go" + (": add --apply\n" if gone else "\n"))
        return
    _remove(places, gone)
    sys.stdout.write(f"removed {len(gone)} artefacts, {total:,} bytes\n")


def _needed(reading: Reading) -> set[str]:
    """Digests that stay: channels, everything that was ever stable, the genesis, open cycles, what loops remember."""
    needed = {pointer["digest"] for pointer in reading.channels().values()}
    for row in reading.every_row():
        if row.event in (Event.GENESIS, Event.RELEASE, Event.ROLLBACK, Event.NOMINATED):
            needed |= _digests_in([row.result, row.base, row.change])
    for cycle in reading.open_cycles():
        needed |= _digests_in([cycle.candidate.to_json(), cycle.state])
        for child in reading.children(cycle.id):
            needed |= _digests_in([child.candidate.to_json(), child.outcome.to_json() if child.outcome else None])
    for loop in ("architecture", "pipeline", "reward"):
        needed |= _digests_in(reading.loop_state(loop))
    return needed


def _digests_in(value: object) -> set[str]:
    """Every string of 64 hex digits in a JSON tree."""
    if isinstance(value, dict):
        return set().union(*map(_digests_in, value.keys()), *map(_digests_in, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(_digests_in, value))
    if isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value):
        return {value}
    return set()


def _remove(places: Places, gone: list[JsonObject]) -> None:
    from daemon.lock import Lock
    from state.database import Database
    from state.registry import Registry

    with Lock(places.state / "lock"):
        database = Database(places.database)
        try:
            database.migrate()
            registry = Registry(places.state, database)
            registry.reconcile()
            for artefact in gone:
                registry.remove(artefact["digest"])
        finally:
            database.close()


def write_backup(config: Path | None, file: Path) -> None:
    """One tar file: the database by SQLite's backup, every artefact it names, the key that signs where it lies in the
    state folder, kaizend.toml and bounds.toml."""
    places = places_of(config)
    if file.exists():
        raise UserError(f"{file} exists: a backup never overwrites")
    partial = file.with_name(file.name + ".partial")
    try:
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            copy = Path(folder) / DATABASE
            _copy_database(places.database, copy)
            partial.touch(0o600)                     # it holds the vault and the key
            with Reading(copy) as reading, tarfile.open(partial, "w") as tar:
                tar.add(copy, DATABASE)
                for path in (places.state / "signing.key", places.public_key):
                    if path.is_file():
                        tar.add(path, path.name)
                for artefact in reading.artefacts():
                    digest, root = artefact["digest"], VAULT if artefact["kind"] == VAULT else ARTIFACTS
                    tar.add(places.state / root / digest[:2] / digest, f"{root}/{digest[:2]}/{digest}")
                for path in (places.config, places.bounds):
                    if path.is_file():
                        tar.add(path, f"{FILES}/{path.name}")
        partial.rename(file)
    except OSError as error:
        raise in_one_line("write the backup", file, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    sys.stdout.write(f"wrote {file}\n")


def _copy_database(source: Path, target: Path) -> None:
    if not source.is_file():
        raise StateError(f"there is no ledger at {source}: nothing to back up")
    with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()


def restore_backup(config: Path | None, file: Path) -> None:
    """Fill an empty state folder from a backup that verifies; on any problem the folder is left as it was."""
    from daemon.audit import audit
    from daemon.trust import Trust
    from state.signing import read_public

    places = places_of(config)
    if places.state.exists() and (not places.state.is_dir() or any(places.state.iterdir())):
        raise UserError(f"{places.state} is not empty: a restore needs an empty state folder (move it away first)")
    if not file.is_file():
        raise UserError(f"{file} is not a file")
    fresh = places.state.with_name(places.state.name + ".restoring")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _unpack(file, fresh)
        restored = replace(places, state=fresh)
        trust = Trust(read_public(restored.public_key), str(restored.public_key))      # the backup's own
        if audit(restored, trust, as_json=False):
            raise UserError(f"{file} does not verify (see above): nothing was restored")
        if places.state.is_dir():
            places.state.rmdir()
        fresh.rename(places.state)
    except OSError as error:
        raise in_one_line("restore to", places.state, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    sys.stdout.write(f"restored {places.state} from {file}\n")


def _unpack(file: Path, folder: Path) -> None:
    """Put a backup's state into `folder`, its links included. Raises UserError for what is none."""
    from state.database import Database
    from state.registry import Registry

    try:
        folder.mkdir(mode=0o750, parents=True)
        with tarfile.open(file) as tar:
            tar.extractall(folder, filter="tar")
    except tarfile.TarError as error:
        raise UserError(f"{file}: not a backup of kaizend, or not all of one") from error
    if not (folder / DATABASE).is_file():
        raise UserError(f"{file}: not a backup of kaizend (no {DATABASE} in it)")
    shutil.rmtree(folder / FILES, ignore_errors=True)
    database = Database(folder / DATABASE)
    try:
        database.migrate()
        Registry(folder, database).reconcile()
    finally:
        database.close()
