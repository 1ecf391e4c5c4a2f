"""Looking at a kaizend folder and its daemon from outside, as the tests of the whole system do."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from miniature import ROOT, environment, start

import daemon.foreground  # noqa: F401  imported here once, not by every command that is forked
from daemon.__main__ import main
from state.reading import Reading
from state.records import Row

LIMIT_SECONDS = 60.0


def until(condition: Callable[[], Any], seconds: float = LIMIT_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {seconds:g} seconds")
        time.sleep(0.02)
    return found


def kaizend(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own, forked from this one, which has the program imported already."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            become_kaizend(folder, words, more, (out.fileno(), err.fileno()))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for said in (out, err):
            said.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


def become_kaizend(folder: Path, words: tuple[str, ...], more: dict[str, str], ends: tuple[int, int]) -> NoReturn:
    code = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment(**{"PYTHONPATH": str(ROOT), **more}))
        for number, end in enumerate(ends, 1):
            os.dup2(end, number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        sys.argv = ["kaizend", *words]
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:                                        # noqa: BLE001  as the interpreter would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def rows(folder: Path) -> list[Row]:
    with Reading(folder / "var" / "kaizend.db") as reading:
        return list(reading.every_row())


def channels(folder: Path) -> dict[str, str]:
    with Reading(folder / "var" / "kaizend.db") as reading:
        return {name: pointer["digest"] for name, pointer in reading.channels().items()}


def in_flight(folder: Path) -> list[int]:
    with Reading(folder / "var" / "kaizend.db") as reading:
        return [cycle.id for cycle in reading.open_cycles()]


def previous(folder: Path) -> str:
    """What was stable before the last release."""
    before = [row.base for row in rows(folder) if row.event == "release" and row.verdict == "PROMOTED"][-1]
    assert before
    return before


def links_agree(folder: Path) -> bool:
    """Whether both links point at what the channels table says."""
    return all((folder / "var" / name).resolve().name == digest for name, digest in channels(folder).items())


def asked(folder: Path, *words: str) -> Any:
    """The JSON object that a command prints."""
    return json.loads(kaizend(folder, *words, "--json").stdout)


def state_of(folder: Path) -> tuple[int, str]:
    done = kaizend(folder, "status", "--json")
    return done.returncode, json.loads(done.stdout)["state"]


def listing(folder: Path) -> dict[str, str]:
    """Every file of a folder with a digest of its bytes, links with their targets; without what SQLite leaves."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*")) if not path.name.startswith("kaizend.db-")
    }


def complaint(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line for a person, after checking that there is exactly one and nothing worse."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]     # the log is JSON lines
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode, len(lines)) == (code, 1), (done.returncode, done.stdout, done.stderr)
    assert lines[0].startswith("kaizend: ")
    return lines[0]


@contextmanager
def serving(folder: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A running daemon, killed at the end if it still lives."""
    process = start(folder, "run", *words, **environment)
    try:
        until(lambda: (folder / "var" / "kaizend.sock").exists() or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str], seconds: float) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(seconds)
