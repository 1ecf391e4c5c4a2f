"""One daemon per state folder, with real processes."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from daemon.lock import InUse, Lock, holder
from state.errors import UserError

HOLD = """
import sys, pathlib; from daemon.lock import Lock
with Lock(pathlib.Path(sys.argv[1])): print(flush=True); input()
"""
ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_second_daemon_is_told_who_holds_the_folder(tmp_path, other):
    words = f"kaizend is already running on {tmp_path} (process {other.pid})"
    with pytest.raises(InUse, match=re.escape(words)) as refused, Lock(tmp_path / "lock"):
        pass
    assert refused.value.pid == other.pid
    assert holder(tmp_path / "lock") == other.pid


def test_the_lock_of_a_killed_daemon_is_free(tmp_path, other):
    other.kill()
    other.wait()
    assert holder(tmp_path / "lock") is None
    with Lock(tmp_path / "lock"):
        assert holder(tmp_path / "lock") == os.getpid()
    assert holder(tmp_path / "lock") is None


def test_a_child_process_does_not_hold_the_lock(tmp_path):
    with Lock(tmp_path / "lock"):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        assert holder(tmp_path / "lock") is None
    finally:
        child.kill()
        child.wait()


def test_a_lock_that_was_never_taken_has_no_holder(tmp_path):
    assert holder(tmp_path / "lock") is None
    assert not (tmp_path / "lock").exists()


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot open .*lock: No such file"), Lock(tmp_path / "nowhere" / "lock"):
        pass
