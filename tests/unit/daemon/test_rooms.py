"""The rooms of workers: what comes in, what goes out, and what a killed daemon leaves behind."""

import os
from pathlib import Path

import pytest

from daemon.rooms import Room, reclaim
from daemon.scratch import discard, open_again, went_on

DIGEST = "d" * 64


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    folder = tmp_path / "var" / "jobs"
    folder.mkdir(parents=True)
    return folder


def scratch_in(jobs: Path) -> Path:
    scratch = jobs / DIGEST
    scratch.mkdir()
    (scratch / "saved").write_text("3")
    return scratch


def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "ab" / ("a" * 64)
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_text("weights")
    (folder / "single").write_text("single")
    return folder


def test_a_job_comes_in_with_what_it_is_given_and_goes_out_with_what_it_made(jobs, tmp_path):
    room, scratch, given = Room(jobs), scratch_in(jobs), artefact(tmp_path)
    here, inputs = room.move_in(scratch, {"model": given, "again": given, "file": given / "single"})
    assert not scratch.exists()
    assert (here / "saved").read_text() == "3"
    assert Path(inputs["model"], "deep", "weights").samefile(given / "deep" / "weights")
    assert inputs["model"] == inputs["again"]
    assert Path(inputs["model"]).name == given.name                     # as where it came from
    assert Path(inputs["file"]).read_text() == "single"
    (here / "made").write_text("x")
    (room.temporary / "left").mkdir()
    (room.outside / "stray").write_text("x")
    room.move_out(scratch)
    assert sorted(path.name for path in scratch.iterdir()) == ["made", "saved"]
    assert [list(place.iterdir()) for place in (room.inside, room.outside, room.temporary)] == [[], [], []]
    assert (given / "deep" / "weights").read_text() == "weights"
    room.remove()
    assert not room.folder.exists()


def test_where_a_file_cannot_have_a_second_name_it_is_copied(jobs, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    _, inputs = Room(jobs).move_in(scratch_in(jobs), {"file": artefact(tmp_path) / "single"})
    assert Path(inputs["file"]).read_text() == "single"
    assert Path(inputs["file"]).stat().st_nlink == 1


def test_what_a_killed_daemon_left_in_a_room_is_found_again(jobs, tmp_path):
    scratch = scratch_in(jobs)
    Room(jobs).move_in(scratch, {"model": artefact(tmp_path)})
    reclaim(jobs)
    assert (scratch / "saved").read_text() == "3"
    assert [path.name for path in jobs.iterdir()] == [DIGEST]
    assert (tmp_path / "ab" / ("a" * 64) / "single").read_text() == "single"


def test_a_folder_of_any_depth_and_without_any_mode_can_be_removed(jobs, monkeypatch):
    scratch = scratch_in(jobs)
    monkeypatch.chdir(scratch)
    for number in range(1100):                                          # deeper than any path may be long
        os.mkdir("x" * 20)
        if number % 100 == 0:
            Path("file").write_text("x")
        os.chdir("x" * 20)
    os.chdir("/")
    (scratch / "locked").mkdir(mode=0)
    discard(scratch)
    assert not scratch.exists()


def test_scratch_that_cannot_be_opened_again_is_begun_anew(jobs, monkeypatch):
    scratch = scratch_in(jobs)
    monkeypatch.chdir(scratch)
    for _ in range(1100):
        os.mkdir("x" * 20)
        os.chdir("x" * 20)
    os.chdir("/")
    open_again(scratch)
    assert list(scratch.iterdir()) == []


def test_no_link_leads_the_daemon_out_of_the_scratch(jobs, tmp_path):
    scratch, beside = scratch_in(jobs), tmp_path / "beside"
    beside.write_text("step-000000000")
    (scratch / "steps" / "step-000000001").mkdir(parents=True)
    (scratch / ".seen").symlink_to(beside)
    assert went_on(scratch)
    assert beside.read_text() == "step-000000000"
