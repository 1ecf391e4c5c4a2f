"""The registry: artefacts in, verified, linked, removed, and tidied after a crash."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from state import files as disk
from state.database import Database, StateError
from state.jobbook import JobBook
from state.jobs import JobResult, JobSpec
from state.ledger import Ledger
from state.records import Channel, Cost, Entry, Event, digest_of
from state.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    database = Database(tmp_path / "kaizend.db")
    database.migrate()
    yield Registry(tmp_path, database)
    database.close()


def folder(parent: Path, name: str = "it's a model\n", **files: str) -> Path:
    """A folder whose name is hard on careless code."""
    made = parent / "elsewhere" / name
    (made / "inner").mkdir(parents=True)
    (made / "inner" / "x.txt").write_text("x")
    for file, text in files.items():
        (made / file).write_text(text)
    return made


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_an_adopted_folder_is_moved_under_the_digest_of_its_manifest(registry: Registry, tmp_path: Path) -> None:
    source = folder(tmp_path, a="1")
    digest = registry.adopt(source, "model")
    assert digest == digest_of({"a": sha("1"), "inner/x.txt": sha("x")}) and not source.exists()
    assert registry.path(digest) == tmp_path / "artifacts" / digest[:2] / digest
    assert registry.files(digest) == {"a": sha("1"), "inner/x.txt": sha("x")} and registry.kind(digest) == "model"
    assert stat.S_IMODE((registry.path(digest) / "a").stat().st_mode) == 0o444


def test_a_single_file_is_addressed_itself(registry: Registry, tmp_path: Path) -> None:
    source = tmp_path / "scores.json"
    source.write_text("{}")
    digest = registry.adopt(source, "scores")
    assert digest == digest_of({"scores.json": sha("{}")}) and not source.exists()
    assert registry.path(digest).read_text() == "{}" and registry.path(digest).name == "scores.json"
    assert registry.verify(digest) == [] and list(registry.incoming.iterdir()) == []


def test_what_is_present_already_is_reused_without_a_commit(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="1"), "model")
    writes, again = registry.database.writes, folder(tmp_path, a="1")
    assert registry.adopt(again, "model") == digest and not again.exists()
    assert registry.adopt(registry.path(digest), "model") == digest and registry.holds(digest)
    assert registry.database.writes == writes and registry.digests() == [digest]


def test_a_copy_leaves_the_original_and_follows_its_links(registry: Registry, tmp_path: Path) -> None:
    source = folder(tmp_path, a="1")
    (tmp_path / "blob").write_text("weights")
    (source / "model.safetensors").symlink_to(tmp_path / "blob")
    (source / ".cache").mkdir()
    (source / ".cache" / "stamp").write_text("today")
    digest = registry.add_copy(source, "model")
    assert set(registry.files(digest)) == {"a", "inner/x.txt", "model.safetensors"}
    assert not (registry.path(digest) / "model.safetensors").is_symlink() and (source / "a").exists()
    assert list(registry.incoming.iterdir()) == []


def test_a_vault_is_kept_apart_and_open_to_its_owner_alone(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="secret"), "vault")
    place = registry.path(digest)
    assert place.is_relative_to(tmp_path / "vault")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "vault", place, place / "a")] == [
        0o700, 0o700, 0o400,
    ]


def test_what_was_readable_once_cannot_become_a_vault(registry: Registry, tmp_path: Path) -> None:
    registry.adopt(folder(tmp_path, a="1"), "data")
    with pytest.raises(StateError, match="cannot become a vault"):
        registry.adopt(folder(tmp_path, a="1"), "vault")


@pytest.mark.parametrize("what", ["nothing", "empty", "link"])
def test_what_has_no_content_of_its_own_is_refused(registry: Registry, tmp_path: Path, what: str) -> None:
    source = tmp_path / "source"
    if what == "empty":
        source.mkdir()
    if what == "link":
        folder(tmp_path, "real")
        source.mkdir()
        (source / "l").symlink_to("/etc/passwd")
    with pytest.raises(StateError, match="source"):
        registry.adopt(source, "model")
    assert registry.digests() == []


def test_a_changed_a_missing_and_an_added_file_are_named(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="1", b="2"), "model")
    place = registry.path(digest)
    for file in (place / "a", place / "b"):
        file.chmod(0o644)
    (place / "a").write_text("!")
    (place / "b").unlink()
    (place / "c").write_text("3")
    assert registry.verify(digest) == [
        f"{place / 'a'} was changed", f"{place / 'b'} is missing", f"{place / 'c'} was added",
    ]


def test_one_flipped_bit_is_found(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="weights"), "model")
    file = registry.path(digest) / "a"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    assert registry.verify(digest) == [f"{file} was changed"]


def test_a_missing_artefact_is_named(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="1"), "model")
    disk.discard(registry.path(digest))
    assert not registry.holds(digest) and "is missing" in registry.verify(digest)[0]
    assert registry.adopt(folder(tmp_path, a="1"), "model") == digest and registry.verify(digest) == []
    with pytest.raises(StateError, match="no artefact ffff"):
        registry.path("f" * 64)


def test_a_link_is_relative_and_replaced_in_one_step(registry: Registry, tmp_path: Path) -> None:
    one, two = (registry.adopt(folder(tmp_path, a=text), "model") for text in "12")
    for digest in (one, two):
        registry.link(Channel.STABLE, digest)
        assert (tmp_path / "stable").readlink() == Path("artifacts") / digest[:2] / digest
    assert (tmp_path / "stable" / "a").read_text() == "2"
    moved = tmp_path.with_name(tmp_path.name + " moved")
    tmp_path.rename(moved)
    assert (moved / "stable" / "a").read_text() == "2"
    moved.rename(tmp_path)


@pytest.mark.parametrize("act", ["fsync", "copyfile", "rename"])
def test_a_full_disk_leaves_no_half_artefact_and_says_so(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = folder(tmp_path, a="1")
    with monkeypatch.context() as patch:
        if act == "copyfile":
            patch.setattr("shutil.copy2", full)
            patch.setattr("shutil.copyfile", full)
        elif act == "rename":
            patch.setattr(Path, "rename", full)
        else:
            patch.setattr(os, "fsync", full)
        with pytest.raises(StateError, match="no space left") as caught:
            registry.add_copy(source, "model")
    assert "\n" not in str(caught.value)
    assert registry.digests() == [] and list(registry.incoming.iterdir()) == []
    assert not [path for path in registry.artifacts.rglob("*") if path.is_file()]
    assert registry.reconcile() == []
    assert registry.holds(registry.add_copy(source, "model"))


def test_an_unfinished_adoption_is_completed_when_its_bytes_are_whole(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="1"), "model")
    with registry.database.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM artefacts")
        connection.exec_driver_sql("UPDATE intents SET settled = NULL")
    assert registry.reconcile() == [f"kept artefact {digest[:12]}, whose adopt was interrupted"]
    assert registry.verify(digest) == [] and registry.reconcile() == []


def test_an_unfinished_adoption_of_torn_bytes_is_undone(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="1"), "model")
    place = registry.path(digest)
    disk.discard(place / "a")
    with registry.database.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM artefacts")
        connection.exec_driver_sql("UPDATE intents SET settled = NULL")
    assert registry.reconcile() == [f"removed artefact {digest[:12]}, whose adopt was interrupted"]
    assert not place.exists() and not registry.holds(digest)


def test_what_was_being_copied_or_linked_is_taken_away_at_start(registry: Registry, tmp_path: Path) -> None:
    (registry.incoming / "half").mkdir()
    (tmp_path / ".stable.0").symlink_to("nowhere")
    assert len(registry.reconcile()) == 2
    assert list(registry.incoming.iterdir()) == [] and not (tmp_path / ".stable.0").is_symlink()


def test_a_removed_artefact_is_gone_and_its_job_counts_as_unfinished(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="1"), "model")
    jobs, spec, other = JobBook(registry.database), JobSpec("build"), JobSpec("score")
    jobs.finished(spec, JobResult({}, {"model": digest}, Cost()))
    jobs.finished(other, JobResult({"n": 1}, {}, Cost()))
    place = registry.path(digest)
    registry.remove(digest)
    assert not place.exists() and not registry.holds(digest) and registry.digests() == []
    assert jobs.result(spec.digest) is None and jobs.result(other.digest) is not None
    assert registry.adopt(folder(tmp_path, a="1"), "model") == digest and registry.holds(digest)


def test_an_artefact_in_force_cannot_be_removed(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="1"), "model")
    Ledger(registry.database, registry).append(Entry(Event.GENESIS, "began"), move=(Channel.STABLE, digest))
    with pytest.raises(StateError, match="in force"):
        registry.remove(digest)
    assert registry.verify(digest) == []


def spoil(file: Path, text: str) -> None:
    file.chmod(0o644)
    file.write_text(text)


@pytest.mark.parametrize("text", ["2", "", "11"])
def test_damage_is_found_before_an_artefact_is_used_and_gone_once_the_bytes_are_back(
    registry: Registry, tmp_path: Path, text: str
) -> None:
    digest = registry.adopt(folder(tmp_path, a="1"), "data")
    file = registry.path(digest) / "a"
    assert registry.damage(digest) == []
    spoil(file, text)
    assert registry.damage(digest) == registry.verify(digest) == [f"{file} was changed"]
    spoil(file, "1")
    assert registry.damage(digest) == []
    file.unlink()
    assert registry.damage(digest) == [f"{file} is missing"]


def test_what_was_damaged_while_nobody_looked_is_found_by_the_next_life(registry: Registry, tmp_path: Path) -> None:
    digest = registry.adopt(folder(tmp_path, a="1"), "data")
    file = registry.path(digest) / "a"
    before = file.stat()
    spoil(file, "2")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert registry.damage(digest) == []                            # as a disk that rots: it looks as it did
    assert Registry(tmp_path, registry.database).damage(digest) == [f"{file} was changed"]


def test_an_artefact_that_looks_as_it_did_is_not_read_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.adopt(folder(tmp_path, a="1"), "data")
    other = Registry(tmp_path, registry.database)
    assert other.damage(digest) == []
    monkeypatch.setattr(Registry, "verify", None)
    assert registry.damage(digest) == other.damage(digest) == []
