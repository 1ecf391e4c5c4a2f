"""The daemon's side of its processes: the nursery it starts, the workers forked for it, and which of them are warm.

What a job is and when it is given up is the business of `daemon.runner`. Invariant: the nursery is started by a thread
that lives as long as the nursery does, because the kernel's parent-death signal follows the thread, not the process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from daemon.rooms import Room
from daemon.wire import Closed, Wire
from safety.sandbox import Limits, Rules

ROOT: Final = Path(__file__).resolve().parents[1]
LONGEST_MESSAGE: Final = 1 << 16
ANSWER_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 0.5
LOG_BYTES: Final = 1 << 20
MOST_JOBS_IN_A_WORKER: Final = 500
MOST_ENDINGS_KEPT: Final = 1000
CONNECT_PAUSE_SECONDS: Final = 0.5
FOR_THE_DAEMON_ONLY: Final = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"}


def environment_of_workers(threads: int, temporary: Path) -> dict[str, str]:
    """The daemon's environment, offline and quiet, with everything set that must be set before an import."""
    return {
        **{name: value for name, value in os.environ.items() if name not in FOR_THE_DAEMON_ONLY},
        "PYTHONUNBUFFERED": "1",                            # the last words of a killed worker are in its log
        "HF_HUB_OFFLINE": "1",                              # also TRL's switch for its telemetry
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        "PYTHONHASHSEED": "0",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",               # asking whether there is a GPU must not spoil the fork
        "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator would start a thread in the nursery
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",               # repeatable matrix products
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TMPDIR": str(temporary),
    }


class Nursery:
    """One nursery process. Made, it is starting; `fork` may be called at once and is answered when it is ready."""

    def __init__(
        self, folder: Path, threads: int, code: str, table: Path | None, unit: Path | None = None,
        outage: str | None = None,
    ) -> None:
        """With `unit`, the socket of a worker unit, that one is connected to, as soon as it is there, and no process is
        started. After an `outage` it has to serve before that is over."""
        self.pid: int | None = None
        self.unit = unit
        self.refusal: str | None = None
        self.outage = outage                                # why a unit does not serve, in words
        self.started: dict[str, float] | None = None        # seconds of importing, threads of the nursery
        self.ended = False
        self.connected = unit is None
        self.workers: set[int] = set()                      # that have said hello and not ended yet
        self._endings: dict[int, int] = {}
        self._nameless: dict[int, int | None] = {}          # what was asked and is answered
        self._changed = threading.Condition()
        self._given_up = threading.Event()
        if unit is not None:
            self._ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._keeper = threading.Thread(target=self._join, args=(unit,), name="nursery keeper", daemon=True)
            self._keeper.start()
            return
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            sys.executable, "-m", "daemon.nursery", "--control", str(theirs.fileno()), "--parent", str(os.getpid()),
            *(["--table", str(table.absolute())] if table else []), *(["--code", code] if code else []),
        ]
        self._keeper = threading.Thread(
            target=self._keep, args=(command, theirs, folder, threads), name="nursery keeper", daemon=True
        )
        self._keeper.start()

    def fork(self, rules: Rules) -> Wire:
        """A wire to a worker that is about to exist. Where it cannot be, the wire is closed from the other side. A unit
        has to have started."""
        ours, theirs = socket.socketpair()
        with theirs, suppress(OSError):
            socket.send_fds(self._ours, [json.dumps(rules.to_json()).encode()], [theirs.fileno()])
        return Wire(ours)

    def wait_started(self, timeout_seconds: float) -> bool:
        """Whether it is ready to fork, after waiting at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self.started is not None or self.ended, timeout_seconds)
            return self.started is not None and not self.ended

    def wait_settled(self, timeout_seconds: float) -> bool:
        """Whether it is known how its start went, well or not, after waiting at most so long. A unit that is not there
        is waited for: nothing can be begun without it."""
        with self._changed:
            self._changed.wait_for(lambda: self.started is not None or self.ended, timeout_seconds)
            serves = self.started is not None and not self.ended
            return serves or (self.ended and self.unit is None)

    def settle(self, timeout_seconds: float = 1.0) -> bool:
        """Whether it has ended, after waiting so long if it is going to: after a worker that died or never said hello.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self.ended, timeout_seconds)

    def ending(self, pid: int, timeout_seconds: float = 2.0) -> int | None:
        """How a worker ended (minus the signal, as subprocess says it), or None when the nursery cannot tell."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._endings or self.ended, timeout_seconds)
            return self._endings.get(pid)

    def nameless(self, pid: int) -> int | None:
        """Bytes of the files without a name of a worker and what it started, by the nursery's own look; None where it
        is not shown them either, or does not answer."""
        with suppress(OSError):
            self._ours.send(json.dumps({"nameless": pid}).encode())
        with self._changed:
            self._changed.wait_for(lambda: pid in self._nameless or pid in self._endings or self.ended, ANSWER_SECONDS)
            return self._nameless.pop(pid, None)

    def went_away(self) -> bool:
        """Whether it is a unit's and has ended: stopped or started anew by somebody, no fault of a worker's."""
        return self.unit is not None and self.settle(SETTLE_SECONDS)

    def stop(self) -> None:
        """End the nursery and with it every worker. Returns when they are gone."""
        self._given_up.set()
        with suppress(OSError):                             # it may have ended already
            self._ours.shutdown(socket.SHUT_RDWR)
        self._keeper.join()

    def _keep(self, command: list[str], theirs: socket.socket, folder: Path, threads: int) -> None:
        """The keeper's whole life: start the process, hear it out, bury it."""
        process = None
        try:
            with theirs:
                temporary = folder / "tmp"
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True, exist_ok=True)
                log = folder / "worker.log"
                keep_small(log)
                with log.open("ab") as out:
                    process = subprocess.Popen(
                        command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT,
                        env=environment_of_workers(threads, temporary.absolute()), start_new_session=True,
                    )
            self.pid = process.pid
            while message := self._next():
                self._hear(json.loads(message))
        except OSError as error:
            if process is None:
                self.refusal = f"the worker processes could not be started: {error}"
        finally:
            if process is not None:
                self._bury(process)
            for worker in self.workers:
                kill_group(worker)                          # itself is dead; what it started may not be
            with self._changed:
                self.ended = True
                self._changed.notify_all()
            self._ours.close()

    def _join(self, unit: Path) -> None:
        """The keeper's whole life beside a worker unit: connect, as soon as it is there, and hear it out."""
        try:
            again = self.outage is not None
            while not self._given_up.is_set():
                try:
                    self._ours.connect(str(unit))
                    self.outage = f"the worker unit at {unit} is starting again" if again else None
                    self.connected = True
                    break
                except OSError as error:
                    self.outage = f"the worker unit at {unit} does not answer: {error.strerror or error}"
                    self._given_up.wait(CONNECT_PAUSE_SECONDS)
            while message := self._next():
                self._hear(json.loads(message))
        except OSError as error:
            self.outage = f"the worker unit at {unit} does not answer: {error.strerror or error}"
        finally:
            with self._changed:
                self.outage = self.outage or f"the worker unit at {unit} has gone away"
                self.ended = True
                self._changed.notify_all()
            self._ours.close()

    def _next(self) -> bytes:
        """The next message, empty at the end. Where the nursery ended with a request of ours unread, the kernel tells
        of that once, before what the nursery had said: its refusal, as a rule."""
        try:
            return self._ours.recv(LONGEST_MESSAGE)
        except ConnectionResetError:
            return self._ours.recv(LONGEST_MESSAGE)

    def _hear(self, message: dict[str, object]) -> None:
        with self._changed:
            match message:
                case {"ready": dict(started)}:
                    self.started, self.outage = started, None
                case {"refused": str(reason)}:
                    self.refusal = reason
                case {"nameless": [int(pid), int() | None as held]}:
                    self._nameless[pid] = held
                case {"exited": [int(pid), int(status)]}:
                    self._endings[pid] = status
                    self._nameless.pop(pid, None)
                    self.workers.discard(pid)
                    if len(self._endings) > MOST_ENDINGS_KEPT:
                        del self._endings[next(iter(self._endings))]
            self._changed.notify_all()

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Worker:
    """One worker that has said hello, and its room."""

    def __init__(self, nursery: Nursery, wire: Wire, pid: int, room: Room, rules: Rules) -> None:
        self.nursery = nursery
        self.wire = wire
        self.pid = pid
        self.room = room
        self.rules = rules
        self.jobs = 0
        nursery.workers.add(pid)

    def kill(self) -> None:
        """End it and what it started; returns when it is gone."""
        if self.nursery.ending(self.pid, 0) is None:
            kill_group(self.pid)
        self.nursery.ending(self.pid)
        self.wire.close()

    def dismiss(self) -> None:
        """Let it end by itself: it has nothing left to do."""
        self.wire.close()
        self.room.remove()


class Pool:
    """The nursery in force and the idle warm workers. Every method may be called by any thread."""

    def __init__(
        self, folder: Path, threads: int, code: str, table: Path | None, unit: Path | None = None
    ) -> None:
        self._make: Callable[[str | None], Nursery] = lambda outage: Nursery(
            folder, threads, code, table, unit, outage
        )
        self._log = folder / "worker.log"
        self._lock = threading.Lock()
        self._nursery: Nursery | None = None
        self._idle: list[Worker] = []
        self._closed = False

    def nursery(self) -> Nursery:
        """The living nursery; a new one is started where there is none."""
        with self._lock:
            if self._closed:
                raise Closed
            if self._nursery is None or self._nursery.ended:
                for worker in self._idle:
                    worker.dismiss()
                self._idle.clear()
                self._nursery = self._make(self._nursery.outage if self._nursery else None)
            return self._nursery

    def outage(self) -> str | None:
        """Why the worker unit does not serve, in words; None where it does, or where there is no unit."""
        with self._lock:
            return self._nursery.outage if self._nursery else None

    def idle_worker(self, limits: Limits) -> Worker | None:
        """The warm worker that was used last, whose cache is the fullest. One under other limits is let go."""
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.nursery.ending(worker.pid, 0) is None and worker.rules.limits == limits:
                    return worker
                worker.dismiss()
            return None

    def take_back(self, worker: Worker) -> None:
        """Keep a worker that finished its job warm, unless it has grown old."""
        self.keep_log_small()
        worker.jobs += 1
        with self._lock:
            if worker.nursery is self._nursery and worker.jobs < MOST_JOBS_IN_A_WORKER:
                self._idle.append(worker)
                return
        worker.dismiss()

    def keep_log_small(self) -> None:
        """Every worker writes to the log, and may write much."""
        keep_small(self._log)

    def pids(self) -> tuple[int | None, list[int]]:
        """The nursery's process id and those of the idle workers."""
        with self._lock:
            return (self._nursery.pid if self._nursery else None), [worker.pid for worker in self._idle]

    def close(self) -> None:
        """End every process."""
        with self._lock:
            self._closed = True
            nursery, self._nursery = self._nursery, None
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.dismiss()
        if nursery is not None:
            nursery.stop()


def kill_group(leader: int) -> None:
    """Kill every process of a process group, if any is left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def keep_small(log: Path) -> None:
    """Move a log that has grown aside. It is emptied in place, because living processes write to it."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        shutil.copyfile(log, log.with_name(log.name + ".1"))
        os.truncate(log, 0)

