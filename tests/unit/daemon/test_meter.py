"""What is measured of a process from outside."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon import meter
from daemon.meter import Meter, disk_used, group_of, memory_gib, nameless, threads_of
from safety.sandbox import Limits

LIMITS = Limits(memory_gib=0.0, scratch_gib=1.0)


@pytest.fixture
def room(tmp_path: Path) -> Path:
    for name in ("in", "out", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_memory_threads_and_group_of_a_process():
    code = (
        "import os, subprocess, threading, time; x = os.urandom(64 << 20)\n"
        "threading.Thread(target=time.sleep, args=(60,)).start(); subprocess.Popen(['sleep', '60'])\n"
        "print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 0.06 < memory_gib(process.pid) < 0.2
        assert threads_of(process.pid) == 2
        leader, child = group_of(process.pid)
        assert leader == process.pid
        os.killpg(process.pid, 9)
        process.wait()
    assert (memory_gib(process.pid), threads_of(process.pid)) == (0.0, 0)
    assert child not in group_of(process.pid)


def test_space_is_counted_with_and_without_a_name(room):
    (room / "out" / "deep").mkdir()
    (room / "out" / "deep" / "file").write_bytes(b"x" * 100_000)
    (room / "in" / "given").write_bytes(b"x" * 100_000)                 # what a job was given is not its own
    used, files, levels = disk_used(room)
    assert 100_000 <= used < 200_000
    assert (files, levels) == (2, 1)
    with (room / "out" / "gone").open("wb") as out:
        before = nameless([os.getpid()])
        out.write(b"x" * 300_000)
        out.flush()
        (room / "out" / "gone").unlink()
        found = nameless([os.getpid()])
        assert before is not None and found is not None
        assert found - before >= 300_000
        with os.fdopen(os.dup(out.fileno()), "wb"):                         # the same file, once more
            assert nameless([os.getpid(), os.getpid()]) == found
    assert nameless([2**22 + 1]) == 0


@pytest.mark.parametrize("call", ["listdir", "stat"])
def test_what_the_kernel_hides_is_asked_of_whoever_may_see_it(room, monkeypatch, call):
    def hidden(path):
        raise PermissionError(path)

    monkeypatch.setattr("safety.nameless.os", SimpleNamespace(listdir=os.listdir, stat=os.stat))
    monkeypatch.setattr(f"safety.nameless.os.{call}", hidden)
    assert nameless([os.getpid()]) is None
    asked = []
    watch = Meter(os.getpid(), room, Limits(memory_gib=100.0, scratch_gib=1.0), ask=lambda pid: asked.append(pid) or 0)
    assert asked == [os.getpid()]
    watch.ask = lambda pid: 2 << 30
    assert str(watch.breach(last=True)) == "resources.scratch_gib: 2 is outside 1"
    watch.ask = lambda pid: None
    assert watch.breach(last=True) is None


def test_the_first_bound_that_is_broken_is_named(room, monkeypatch):
    assert str(Meter(os.getpid(), room, LIMITS).breach()).startswith("resources.worker_memory_gib: ")
    roomy = Limits(memory_gib=100.0, scratch_gib=1e-6)
    watch = Meter(os.getpid(), room, roomy)
    (room / "out" / "file").write_bytes(b"x" * 100_000)
    assert str(watch.breach(last=True)).startswith("resources.scratch_gib: ")
    monkeypatch.setattr(meter, "MOST_FILES", 0)
    assert str(Meter(0, room, Limits(1.0, 1.0)).breach()) == "files of a job: 1 is outside 0"
    monkeypatch.setattr(meter, "MOST_LEVELS", 2)
    monkeypatch.setattr(meter, "MOST_FILES", 100)
    (room / "tmp" / "a" / "b" / "c").mkdir(parents=True)
    assert "folders of a job inside each other" in str(Meter(0, room, Limits(1.0, 1.0)).breach())


def test_a_job_does_not_take_the_last_of_what_must_remain_free(room, monkeypatch):
    free = [10.0]
    monkeypatch.setattr(meter.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free[0] * meter.GIB})())
    watch = Meter(0, room, Limits(1.0, 100.0), min_free_gib=4.0)
    free[0] = 1.9999
    assert watch.breach(last=True) is None                              # somebody else took it
    (room / "out" / "file").write_bytes(b"x" * 1_000_000)
    assert str(watch.breach(last=True)) == "resources.min_disk_free_gib: 1.9999 is outside 4"
