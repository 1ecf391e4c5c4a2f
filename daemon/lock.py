"""One daemon per state folder: a lock on a file in it, which the kernel gives back when its holder dies.

The file stays and holds the process id of the last holder; whether it is held is the kernel's word, not the file's.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from state.errors import UserError, in_one_line

PATIENCE_SECONDS: Final = 0.5                     # someone who only looks holds it for a moment
PAUSE_SECONDS: Final = 0.05


class InUse(UserError):
    """Another daemon holds the folder. `pid` is its process id, 0 where that is not known."""

    def __init__(self, folder: Path, pid: int) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"kaizend is already running on {folder} ({who})")
        self.pid = pid


class Lock:
    """Held from `__enter__` to `__exit__`, or to the death of the process; children do not inherit it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1

    def __enter__(self) -> Self:
        """Raises InUse, or UserError where the file cannot be made."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"cannot open {self.path}: {error.strerror}") from error
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not grab(handle, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                pid = read_pid(handle)
                os.close(handle)
                raise InUse(self.path.parent, pid)
            time.sleep(PAUSE_SECONDS)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)
        self._handle = -1


def holder(path: Path) -> int | None:
    """The process id of the daemon that holds the lock (0 where it is not known), or None when nobody does."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if grab(handle, fcntl.LOCK_SH) else read_pid(handle)
    finally:
        os.close(handle)


@contextmanager
def at_rest(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold a folder while its content is copied away, which several may do at once, or `alone` to take some of it away.

    Nothing is written: the kernel locks the folder itself. Raises UserError where it is held otherwise.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise in_one_line("open", folder, error) from error
    try:
        if not grab(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
            raise UserError(f"{folder} is in use by a backup, a restore, an export or gc: try again when that is done")
        yield
    finally:
        os.close(handle)


def grab(handle: int, how: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_pid(handle: int) -> int:
    """What the last holder wrote; 0 when it was not a number."""
    text = os.pread(handle, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdecimal() else 0
