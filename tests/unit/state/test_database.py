"""The database file: migrations, backups, damage, and errors in words."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select

from state import tables
from state.database import MIGRATIONS, Database, StateError
from state.jobbook import JobBook
from state.jobs import JobResult, JobSpec
from state.records import Cost


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(tmp_path / "kaizend.db")
    database.migrate()
    return database


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(database: Database) -> None:
    with database.snapshot() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_the_code_knows_the_newest_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == tables.REVISION


def test_a_new_file_is_migrated_without_a_backup_and_once(database: Database, tmp_path: Path) -> None:
    writes = database.writes
    database.migrate()
    assert database.writes == writes and database.revision() == tables.REVISION
    assert not list(tmp_path.glob("*backup*"))


def test_an_older_file_is_backed_up_before_it_is_migrated(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    JobBook(database).started(JobSpec("build"), 1)
    scripts = tmp_path / "migrations"
    subprocess.run(["cp", "-r", str(MIGRATIONS), str(scripts)], check=True)
    (scripts / "versions" / "r9000.py").write_text(
        f"from alembic import op\nrevision, down_revision = '9000', '{tables.REVISION}'\n"
        "branch_labels = depends_on = None\ndef upgrade():\n    op.execute('DROP TABLE job_starts')\n"
    )
    monkeypatch.setattr("state.database.MIGRATIONS", scripts)
    monkeypatch.setattr("state.database.REVISION", "9000")
    database.migrate()
    assert database.revision() == "9000"
    kept = sqlite3.connect(tmp_path / f"kaizend.db.backup-{tables.REVISION}")
    assert kept.execute("SELECT count(*) FROM job_starts").fetchone() == (1,)


def test_a_file_of_a_newer_version_is_refused(database: Database) -> None:
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StateError, match="newer kaizend"):
        database.migrate()


def test_writes_are_durable_at_every_commit(database: Database) -> None:
    with database.snapshot() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                 for name in ("journal_mode", "synchronous", "foreign_keys")]
    assert found == ["wal", 2, 1]


def test_a_block_that_raises_leaves_nothing(database: Database) -> None:
    writes = database.writes
    with pytest.raises(KeyboardInterrupt), database.transaction() as connection:
        connection.exec_driver_sql("INSERT INTO counters VALUES ('x', '', '', 1)")
        raise KeyboardInterrupt
    with database.snapshot() as connection:
        assert connection.exec_driver_sql("SELECT * FROM counters").all() == []
    assert database.writes == writes


def test_a_transaction_inside_a_transaction_is_a_defect_and_not_a_deadlock(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction(), database.transaction():
        pass
    with database.transaction():
        pass


def test_a_read_inside_a_read_is_a_defect_and_not_a_deadlock(database: Database) -> None:
    with (
        database.snapshot(),
        pytest.raises(RuntimeError, match="reads or writes already"),
        database.snapshot(),
    ):
        pass
    assert database.revision() is not None


def test_a_crowd_of_threads_waits_for_the_connections_there_are_and_opens_no_other_file(database: Database) -> None:
    database.migrate()
    before, found, crowd = open_files(database), [], threading.Barrier(12)

    def read_and_write() -> None:
        crowd.wait()
        for _ in range(5):
            with database.snapshot() as connection:
                connection.execute(select(tables.ledger)).all()
            found.append(open_files(database))
            with database.transaction():
                pass

    threads = [threading.Thread(target=read_and_write) for _ in range(crowd.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [before] * (12 * 5)
    assert open_files(database) == before > 0


def open_files(database: Database) -> int:
    """How many descriptors of this process are of the database's files."""
    links = []
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):                     # one of a listing that has ended meanwhile
            links.append(handle.readlink())
    return sum(str(link).startswith(str(database.path)) for link in links)


def test_readers_are_not_held_up_by_a_writer(database: Database) -> None:
    seen: list[object] = []
    with database.transaction() as connection:
        connection.exec_driver_sql("INSERT INTO counters VALUES ('x', '', '', 1)")
        reader = threading.Thread(target=lambda: seen.append(JobBook(database).starts("x")))
        reader.start()
        reader.join(5)
    assert seen == [0]


def test_a_damaged_file_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "kaizend.db"
    database = Database(path)
    database.migrate()
    for n in range(200):
        with database.transaction() as connection:
            connection.exec_driver_sql(f"INSERT INTO counters VALUES ('{n}{'x' * 500}', '', '', 1)")
    database.close()
    content = bytearray(path.read_bytes())
    content[-30_000:-10_000] = os.urandom(20_000)
    path.write_bytes(content)
    with pytest.raises(StateError, match="damaged") as caught:
        Database(path)
    assert "\n" not in str(caught.value) and path.read_bytes() == bytes(content)


@pytest.mark.parametrize("what", ["text", "folder", "absent"])
def test_what_is_not_a_database_is_said_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "kaizend.db"
    if what == "text":
        path.write_text("this is no database\n" * 500)
    elif what == "folder":
        path.mkdir()
    else:
        path = tmp_path / "nowhere" / "kaizend.db"
    with pytest.raises(StateError, match=r"kaizend\.db") as caught:
        Database(path)
    assert "\n" not in str(caught.value)


def test_a_read_only_folder_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)      # the superuser may write anywhere
    with pytest.raises(StateError, match="read-only"):
        Database(tmp_path / "kaizend.db")


def test_a_full_disk_is_said_in_one_line_and_loses_nothing(database: Database) -> None:
    jobs = JobBook(database)
    jobs.started(JobSpec("first"), 1)
    limit = database.engine.raw_connection()
    pages = limit.cursor().execute("PRAGMA page_count").fetchone()[0]
    limit.cursor().execute(f"PRAGMA max_page_count = {pages}")
    limit.close()                                            # back to the pool: the next write gets it
    with pytest.raises(StateError, match="no space left"):
        for n in range(100):
            jobs.started(JobSpec("big", params={"n": n, "text": "x" * 5000}), 1)
    assert jobs.starts(JobSpec("first").digest) == 1
    assert Database(database.path).revision() == tables.REVISION


def test_a_job_finishes_once_and_its_starts_are_counted(database: Database) -> None:
    jobs, spec = JobBook(database), JobSpec("build", {"a": "b" * 64}, {"n": (1, 2)}, 3, "c")
    assert jobs.result(spec.digest) is None and jobs.starts(spec.digest) == 0
    jobs.started(spec, 10)
    jobs.started(spec, 11)
    assert jobs.starts(spec.digest) == 2 and jobs.result(spec.digest) is None
    first = JobResult({"loss": 0.5}, {"model": "d" * 64}, Cost(1.0, 2.0, 3, 4, 5.0))
    jobs.finished(spec, first)
    jobs.finished(spec, JobResult({"loss": 0.1}, {}, Cost()))
    assert jobs.result(spec.digest) == first
    with pytest.raises(ValueError):
        jobs.finished(JobSpec("x"), JobResult({"loss": float("nan")}, {}, Cost()))


def test_reading_and_its_neighbours_import_nothing_heavy() -> None:
    code = (
        "import sys, state.reading, state.chain, state.failpoints, state.code\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    )
    here = f"import sys; sys.path.insert(0, {str(MIGRATIONS.parent.parent)!r})\n"
    found = subprocess.run([sys.executable, "-Ic", here + code], capture_output=True, text=True, check=True)
    heavy = {"sqlalchemy", "alembic", "numpy", "torch"}
    assert not heavy & set(found.stdout.replace("'", " ").replace("[", " ").replace("]", " ").replace(",", " ").split())
