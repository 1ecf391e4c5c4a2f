"""A state folder of every earlier revision opens, is backed up and migrated, verifies, and the daemon goes on with it.

Two witnesses for each: `tests/old/state-<revision>.tar.gz`, a folder that kaizend itself wrote at that revision, and a
life of today whose rows are put into a database that the migrations made up to that revision. A new migration needs
the first for the revision before it: make it before the migration is written.
"""

from __future__ import annotations

import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from mishaps import Plant, Victim, memory_folder
from signatures import FIELDS, rechained

from state.database import MIGRATIONS, Database
from state.failpoints import Fault
from state.reading import Reading
from state.records import canonical
from state.tables import REVISION

OLD = Path(__file__).resolve().parents[1] / "old"
EARLIER = sorted(
    script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions() if script.revision != REVISION
)


@pytest.fixture(scope="module")
def plant() -> Iterator[Plant]:
    folder = Path(tempfile.mkdtemp(prefix="kaizend-upgrades-", dir=memory_folder()))
    try:
        with Plant(folder) as plant:
            yield plant
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def brought_back(state: Path, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put what a state folder holds into a database as it was at that revision; keys go where there were none."""
    with Reading(state / "kaizend.db") as reading:
        rows = [row.to_json() for row in reading.every_row()]
    for row in rows if revision == "0001" else []:
        row["evidence"].pop("signing_key", None)
    rows = rechained(rows)
    with monkeypatch.context() as patched:
        patched.setattr("state.database.REVISION", revision)
        database = Database(state / "old.db")
        database.migrate()
        database.close()
    old, new = sqlite3.connect(state / "old.db"), sqlite3.connect(state / "kaizend.db")
    for table, in old.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'alembic_version'"):
        columns = [column[1] for column in old.execute(f"PRAGMA table_info({table})")]
        found = new.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
        if table == "ledger":
            assert set(columns) == {*FIELDS, "hash"}
            found = [[canonical(row[name]) if isinstance(row[name], dict | list) else row[name] for name in columns]
                     for row in rows]
        old.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", found)
    signed = old.execute("SELECT 1 FROM sqlite_master WHERE name = 'heads'").fetchone()
    old.commit()
    for connection in (old, new):
        connection.close()
    for left in state.glob("kaizend.db*"):
        left.unlink()
    (state / "old.db").rename(state / "kaizend.db")
    for key in () if signed else ("signing.key", "signing.pub"):
        (state / key).unlink()


def revision_of(file: Path) -> str:
    with sqlite3.connect(file) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


@pytest.mark.parametrize("revision", EARLIER)
def test_a_folder_that_was_written_at_that_revision_is_taken_up_by_every_command(
    revision: str, plant: Plant, tmp_path: Path
) -> None:
    file = OLD / f"state-{revision}.tar.gz"
    assert file.is_file(), f"there is no state folder of revision {revision}: keep one, written before the migration"
    with tarfile.open(file) as tar:
        tar.extractall(tmp_path, filter="tar")
    (tmp_path / "kaizend.toml").write_text("[models]\n")
    state = tmp_path / "var"
    assert revision_of(state / "kaizend.db") == revision
    with Reading(state / "kaizend.db") as reading:
        before = [row.to_json() for row in reading.every_row()]
    gone = plant.command(tmp_path, "gc", "--apply")
    assert gone.status == 0, gone.err
    assert revision_of(state / "kaizend.db") == REVISION
    assert revision_of(state / f"kaizend.db.backup-{revision}") == revision
    assert plant.command(tmp_path, "verify").status == 0
    with Reading(state / "kaizend.db") as reading:
        assert [row.to_json() for row in reading.every_row()][: len(before)] == before
        assert reading.problems() == []
    for words in (("log",), ("status",), ("show", "1"), ("lineage",), ("gc",), ("backup", "kaizend.tar", "--drill"),
                  ("rollback", "--to", "1", "--reason", "x"), ("verify",)):
        done = plant.command(tmp_path, *words)
        assert done.status == (3 if words == ("status",) else 0), (words, done.out, done.err)


@pytest.mark.parametrize("moment", ["", "database.backup.before", "database.migrate.before", "database.migrate.after"])
@pytest.mark.parametrize("revision", EARLIER)
def test_a_life_of_that_revision_goes_on_also_when_its_migration_is_killed(
    revision: str, moment: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = Victim.new(plant, plant.folder / f"life-{revision}-{moment or 'whole'}", 3)
    assert victim.struck("jobbook.finished.after:16=kill") == []                         # in the middle of a cycle
    state = victim.folder / "var"
    brought_back(state, revision, monkeypatch)
    assert revision_of(state / "kaizend.db") == revision
    if moment:
        victim.struck(f"{moment}=kill")
        assert victim.faults[-1] == f"{moment}=kill"
    assert victim.ended(None) == []
    assert revision_of(state / "kaizend.db") == REVISION
    assert revision_of(state / f"kaizend.db.backup-{revision}") == revision
    rows = victim.life.rows()
    assert sum(row["event"] == "opened" and row["parent"] is None for row in rows) == 3
    assert sum(row["event"] == "key" for row in rows) == (revision == "0001")


@pytest.mark.parametrize("what", [Fault.ENOSPC, Fault.SHORT, Fault.EIO, Fault.SICK, "a folder in its place"])
def test_where_the_backup_before_a_migration_cannot_be_written_nothing_is_migrated_and_the_next_start_does_it(
    what: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = EARLIER[0]
    victim = Victim.new(plant, plant.folder / f"unwritable-{what.replace(' ', '-')}", 1)
    assert victim.live().status == 0
    state = victim.folder / "var"
    brought_back(state, revision, monkeypatch)
    backup, before = state / f"kaizend.db.backup-{revision}", dump(state / "kaizend.db")
    if isinstance(what, Fault):
        assert victim.struck(f"database.backup.begun={what}") == []
        assert not [*state.glob("kaizend.db.backup*")]
    else:
        (backup / "taken").mkdir(parents=True)
        done = victim.live()
        assert (done.status, len(done.complaint)) == (2, 1), done
        assert done.complaint[0].startswith(f"kaizend: cannot write the backup {backup}: ")
        shutil.rmtree(backup)
    assert revision_of(state / "kaizend.db") == revision
    assert dump(state / "kaizend.db") == before
    assert victim.ended(None) == []
    assert (revision_of(state / "kaizend.db"), revision_of(backup)) == (REVISION, revision)


def dump(file: Path) -> list[str]:
    """Everything in a database, as SQL."""
    with sqlite3.connect(file) as connection:
        return list(connection.iterdump())
