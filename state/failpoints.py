"""Named moments at which a test may kill the process. Standard library only.

Without KAIZEND_FAILPOINT in the environment every call is a no-op. The names stand as literals in the source, so a
test finds all of them by reading it. Where KAIZEND_FAILPOINT_ONCE names a file, the kill makes it, and where it is
there already nobody is killed: so that a process which is started again at once gets past the same moment.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "KAIZEND_FAILPOINT"
ONCE = "KAIZEND_FAILPOINT_ONCE"

_passages = 0
_turn = threading.Lock()


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL when KAIZEND_FAILPOINT is "name", or "name:n" on the n-th passage (from 1)."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    chosen, _, passage = wanted.partition(":")
    if chosen == name and _count() == int(passage or 1) and _first():
        os.kill(os.getpid(), signal.SIGKILL)


def _first() -> bool:
    """Whether nobody was killed here before, where that matters."""
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
