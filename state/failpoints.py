"""Named moments at which a test may make something go wrong. Standard library only.

Without KAIZEND_FAILPOINT in the environment every call is a no-op. The names stand as literals in the source, so a
test finds all of them by reading it. Where KAIZEND_FAILPOINT_ONCE names a file, the fault makes it, and where it is
there already nothing happens: so that a process which is started again at once gets past the same moment.

The faults of disk and clock are the business of a library that the test has preloaded; where there is none, an error
of the disk is raised at the moment itself.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from contextlib import suppress
from enum import StrEnum
from typing import Final

VARIABLE = "KAIZEND_FAILPOINT"
ONCE = "KAIZEND_FAILPOINT_ONCE"


class Fault(StrEnum):
    """What may go wrong at a moment."""

    KILL = "kill"              # SIGKILL
    RAISE = "raise"            # an exception that nobody expects
    ENOSPC = "enospc"          # from here on the disk is full
    SHORT = "short"            # the next write ends half-way, and then the disk is full
    EIO = "eio"                # the next fsync fails
    SICK = "sick"              # every fsync from here on fails
    CLOCK = "clock"            # the clock of day steps back by an hour


PRELOADED: Final = {
    Fault.ENOSPC: "full", Fault.SHORT: "short", Fault.EIO: "sync", Fault.SICK: "sick", Fault.CLOCK: "back",
}

_passages = 0
_turn = threading.Lock()


def failpoint(name: str) -> None:
    """Let KAIZEND_FAILPOINT happen here: "name", "name:n" for the n-th passage (from 1), "name:n=fault" (else kill)."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    moment, _, fault = wanted.partition("=")
    chosen, _, passage = moment.partition(":")
    if chosen == name and _count() == int(passage or 1) and _first():
        _befall(Fault(fault or Fault.KILL), name)


def _befall(fault: Fault, name: str) -> None:
    if fault is Fault.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault is Fault.RAISE:
        raise RuntimeError(f"a fault at {name}")
    import ctypes  # only here: most commands must start fast

    with suppress(AttributeError):
        ctypes.CDLL(None).kaizend_mishap(PRELOADED[fault].encode())
        return
    number = errno.EIO if fault in (Fault.EIO, Fault.SICK) else errno.ENOSPC
    raise OSError(number, os.strerror(number))


def _first() -> bool:
    """Whether nothing happened here before, where that matters."""
    mark = os.environ.get(ONCE)
    try:
        if mark:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _count() -> int:
    global _passages
    with _turn:
        _passages += 1
        return _passages
