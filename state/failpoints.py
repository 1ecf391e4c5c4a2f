"""Named moments at which a test may kill the process. Standard library only.

Without KAIZEND_FAILPOINT in the environment every call is a no-op. The names stand as literals in the source, so a
test finds all of them by reading it.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "KAIZEND_FAILPOINT"

_passages = 0
_turn = threading.Lock()


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL when KAIZEND_FAILPOINT is "name", or "name:n" on the n-th passage (from 1)."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    chosen, _, passage = wanted.partition(":")
    if chosen == name and _count() == int(passage or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def _count() -> int:
    global _passages
    with _turn:
        _passages += 1
        return _passages
