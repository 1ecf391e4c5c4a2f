"""The control socket: how the command line speaks to the running daemon.

One connection carries one JSON line each way: {"command": "pause", ...} and the answer, which has "error" where the
answer is no. What the commands do is the business of whoever answers. Only the owner of the socket (and root) may
connect: the file has mode 0600 from its first instant. Standard library only: `kaizend status` waits for the import.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from state.errors import UserError

JsonObject = dict[str, Any]
Answer = Callable[[JsonObject], JsonObject]

LONGEST_REQUEST: Final = 1 << 16
LONGEST_ADDRESS: Final = 107                    # bytes; what sockaddr_un holds
READ_SECONDS: Final = 5.0


class Command(StrEnum):
    """What may be asked."""

    PAUSE = "pause"
    RESUME = "resume"
    DRAIN = "drain"
    STATUS = "status"
    ROLLBACK = "rollback"
    RELOAD = "reload"
    APPROVE = "approve"
    REJECT = "reject"


class NotRunning(UserError):
    """Nobody answers at the socket."""


class ControlServer:
    """Answers requests from `__enter__` to `__exit__`. `answer` is called by several threads; a `refusals` exception
    that it raises becomes {"error": its text}, any other ends that one connection without an answer."""

    def __init__(self, path: Path, answer: Answer, refusals: tuple[type[Exception], ...] = (UserError,)) -> None:
        self.path = path
        self.answer = answer
        self.refusals = refusals
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Raises UserError where the socket cannot be made, or where another daemon answers at it."""
        clear_away(self.path)
        try:
            self._server = _Server(self.path, self._reply)
        except OSError as error:
            raise UserError(f"cannot make the control socket {self.path}: {error.strerror or error}") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="control socket", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self.path.unlink(missing_ok=True)

    def _reply(self, line: bytes) -> JsonObject:
        try:
            request = json.loads(line)
        except ValueError:
            return {"error": "a request is one line of JSON"}
        commands = ", ".join(Command)
        if not isinstance(request, dict) or request.get("command") not in list(Command):
            return {"error": f"a request names one command: {commands}"}
        try:
            return self.answer(request)
        except self.refusals as refusal:
            return {"error": str(refusal)}


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """The threads and the accepting are socketserver's; the socket is made here, for its mode and its long path."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path, reply: Callable[[bytes], JsonObject]) -> None:
        super().__init__(str(path), _Connection)
        self.reply = reply
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(self.socket.fileno(), 0o600)          # before bind: the file is born with it
            with address_of(path) as address:
                self.socket.bind(address)
            self.socket.listen(16)
        except OSError:
            self.socket.close()
            raise

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()

    def shutdown_request(self, request: Any) -> None:
        request.close()

    def server_close(self) -> None:
        self.socket.close()


class _Connection(socketserver.StreamRequestHandler):
    """One request, one answer."""

    timeout = READ_SECONDS
    server: _Server

    def handle(self) -> None:
        try:
            line = self.rfile.readline(LONGEST_REQUEST)
            self.wfile.write(json.dumps(self.server.reply(line)).encode() + b"\n")
        except (TimeoutError, ConnectionError):
            return                                          # who asked did not wait for the answer


def ask(path: Path, request: JsonObject, timeout: float = 10.0) -> JsonObject:
    """The daemon's answer to one request. Raises NotRunning, or UserError when it does not answer in time."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
            wire.settimeout(timeout)
            with address_of(path) as address:
                wire.connect(address)
            wire.sendall(json.dumps(request).encode() + b"\n")
            with wire.makefile("rb") as answers:
                line = answers.readline()
    except TimeoutError as error:
        raise UserError(f"kaizend did not answer within {timeout:g} seconds") from error
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
        raise NotRunning(f"kaizend is not running (nobody answers at {path})") from error
    except OSError as error:
        raise UserError(f"cannot ask kaizend at {path}: {error.strerror or error}") from error
    if not line.endswith(b"\n"):
        raise UserError("kaizend gave no answer; its log says why")
    answer: JsonObject = json.loads(line)
    return answer


def clear_away(path: Path) -> None:
    """Remove the socket that a killed daemon left. Raises UserError where something else is in the way."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UserError(f"{path} is in the way of the control socket and is no socket: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, address_of(path) as address:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise UserError(f"cannot use the control socket {path}: {error.strerror or error}") from error
    raise UserError(f"another kaizend answers at {path}")


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """An address for `path` that fits: through an open folder where the path itself is too long."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
