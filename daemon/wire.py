"""How the runner and a worker talk: one JSON object a line over a stream socket.

What the messages say is the business of `daemon.worker`; here is only that a message arrives whole or not at all.
Standard library only.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Final

from state.records import JsonObject, canonical

LONGEST_LINE: Final = 1 << 26


class Closed(Exception):
    """The other side is gone: it closed the socket, or died, or it does not keep to lines."""


class Wire:
    """One end of a connected stream socket. Not for use by two threads at once."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unread = bytearray()
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def send(self, message: JsonObject) -> None:
        """Raises Closed; TypeError or ValueError for what JSON cannot say."""
        line = canonical(message).encode() + b"\n"
        try:
            self._end.sendall(line)
        except OSError as error:
            raise Closed from error

    def receive(self, timeout_seconds: float | None = None) -> JsonObject | None:
        """The next message, or None when none came in time. Raises Closed; half a last line is nothing."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        searched = 0
        while (end := self._unread.find(b"\n", searched)) < 0:
            searched = len(self._unread)
            if searched > LONGEST_LINE:
                raise Closed
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left < 0 < searched:
                return None                         # what comes without end is not waited for
            if not self._poll.poll(None if left is None else max(0.0, left) * 1000):
                return None
            try:
                data = self._end.recv(1 << 16)
            except OSError as error:
                raise Closed from error
            if not data:
                raise Closed
            self._unread += data
        line = bytes(self._unread[:end])
        del self._unread[:end + 1]
        message: JsonObject = json.loads(line)
        return message

    def close(self) -> None:
        self._end.close()
