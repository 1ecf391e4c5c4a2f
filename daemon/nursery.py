"""The nursery: one process that imports the heavy modules once and forks every worker from itself.

    python -m daemon.nursery --control FD --parent PID [--table FILE] [--code DIGEST]
    python -m daemon.nursery --listen SOCKET

The daemon starts the first form; the second is a worker unit of its own, with a stricter sandbox, which serves the
one daemon that connects and ends with that connection (systemd starts it anew).

It says {"ready": {"seconds": s, "threads": n}} or {"refused": reason} on its control socket, forks a worker for every
socket it is sent there, together with the rules of the worker's sandbox, and says {"exited": [pid, status]} when one
ends. Asked {"nameless": pid} it says {"nameless": [pid, bytes]}: what the worker and its processes hold open without a
name, which a daemon in another user namespace is not shown. Two invariants. It never computes: a
process with an OpenMP pool or a CUDA context must not fork. And nobody outlives anybody: it dies with the daemon and
the workers die with it, by the kernel's parent-death signal and, for itself, by the end of the control socket.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from daemon.meter import group_of
from daemon.wire import Wire
from daemon.worker import JOBS, log, serve
from safety.nameless import nameless
from safety.sandbox import Rules, confine
from state.code import code_version
from state.errors import UserError

PR_SET_PDEATHSIG: Final = 1
KILL_ME_FIRST: Final = "500"
LONGEST_MESSAGE: Final = 1 << 16


def main(arguments: list[str] | None = None) -> None:
    """Import, report, and tend the workers until the daemon is gone."""
    parser = argparse.ArgumentParser(prog="daemon.nursery", description="Forks kaizend's workers. Started by kaizend.")
    parser.add_argument("--control", type=int, help="file descriptor of the control socket")
    parser.add_argument("--parent", type=int, help="process id of the daemon")
    parser.add_argument("--listen", type=Path, help="wait for the daemon at this socket instead")
    parser.add_argument("--table", type=Path, help="Python file whose JOBS replaces the table of jobs")
    parser.add_argument("--code", default="", help="the code version that jobs are made for")
    asked = parser.parse_args(arguments)
    if (asked.listen is None) == (asked.control is None or asked.parent is None):
        parser.error("give --control and --parent, or --listen")
    if asked.parent is not None:
        die_with(asked.parent)
    faulthandler.enable()                               # a crash in native code leaves a trace in the log
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    began = time.monotonic()
    with wait_for_daemon(asked.listen) if asked.listen else socket.socket(fileno=asked.control) as control:
        if asked.code and asked.code != code_version():
            say(control, {"refused": "the program on disk is no longer the one that was started; restart kaizend"})
            return
        table = read_table(asked.table) if asked.table else JOBS
        import_modules(table)
        gc.collect()
        gc.freeze()                                     # what is shared with the workers stays shared
        threads = len(list(Path("/proc/self/task").iterdir()))
        say(control, {"ready": {"seconds": round(time.monotonic() - began, 3), "threads": threads}})
        tend(control, table)
    os._exit(0)                                         # nothing to put in order, and much to take apart


def wait_for_daemon(address: Path) -> socket.socket:
    """The connection of the first daemon that comes. The socket is its owner's alone and is gone afterwards."""
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        os.fchmod(door.fileno(), 0o600)
        door.bind(str(address))
        door.listen(1)
        control, _ = door.accept()
    address.unlink(missing_ok=True)
    return control


def die_with(parent: int) -> None:
    """Be killed by the kernel when the parent dies; at once, if it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def read_table(file: Path) -> Mapping[str, str]:
    """JOBS of a Python file, which can name its own functions by the file's stem."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    jobs: Mapping[str, str] = module.JOBS
    return jobs


def import_modules(table: Mapping[str, str]) -> None:
    """Import every module the table names. One that cannot be imported fails its own jobs, not the others."""
    for name in sorted({target.partition(":")[0] for target in table.values()}):
        try:
            importlib.import_module(name)
        except (ImportError, OSError):
            log(f"the jobs of {name} cannot be loaded\n{traceback.format_exc()}")


def tend(control: socket.socket, table: Mapping[str, str]) -> None:
    """Fork on request and report the ends, until the control socket ends."""
    children: dict[int, int] = {}                                                   # pidfd -> pid
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in children:
                poll.unregister(ready)
                with suppress(ProcessLookupError):              # while its number is still its own
                    os.killpg(children[ready], signal.SIGKILL)
                _, status = os.waitpid(children[ready], 0)
                say(control, {"exited": [children.pop(ready), os.waitstatus_to_exitcode(status)]})
                os.close(ready)
                continue
            request, ends, _, _ = socket.recv_fds(control, LONGEST_MESSAGE, 1)
            if not request:
                return
            asked = json.loads(request)
            if (pid := asked.get("nameless")) in children.values():
                say(control, {"nameless": [pid, nameless(group_of(pid))]})
            for end in ends:
                rules = Rules.from_json(asked)
                if (pid := fork_worker(end, control, children, table, rules)) is not None:
                    watch = os.pidfd_open(pid)
                    children[watch] = pid
                    poll.register(watch, select.POLLIN)
                os.close(end)


def fork_worker(
    end: int, control: socket.socket, children: Mapping[int, int], table: Mapping[str, str], rules: Rules
) -> int | None:
    """The new worker's pid, or None where the system refused one: the runner then finds its socket closed."""
    nursery = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        log(f"no worker could be forked: {error}")
        return None
    if pid == 0:
        be_worker(end, control, children, table, rules, nursery)
    return pid


def be_worker(
    end: int, control: socket.socket, children: Mapping[int, int], table: Mapping[str, str], rules: Rules, nursery: int
) -> NoReturn:
    """The forked process, to its end. It never unwinds into the nursery's frames."""
    status = 1
    try:
        die_with(nursery)
        os.setpgid(0, 0)                                        # so that killing it kills what it started
        control.close()
        for watch in children:
            os.close(watch)
        prefer_for_the_oom_killer()
        wire = Wire(socket.socket(fileno=end))
        move_temporary_files(rules.temporary)
        try:
            holds = confine(rules)
        except UserError as error:
            wire.send({"refused": str(error)})
        else:
            if holds.missing:
                log(f"the sandbox lacks {'; '.join(holds.missing)}")
            serve(wire, table, holds)
        status = 0
    finally:
        if status:
            log(f"the worker ended\n{traceback.format_exc()}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def move_temporary_files(folder: str) -> None:
    """What libraries write on the way goes into the worker's own room: anywhere else the sandbox refuses it."""
    os.environ.update(dict.fromkeys(("TMPDIR", "CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"), folder))
    tempfile.tempdir = None


def prefer_for_the_oom_killer() -> None:
    """When memory runs out, a worker goes before the daemon and before its neighbours."""
    try:
        Path("/proc/self/oom_score_adj").write_text(KILL_ME_FIRST)
    except OSError as error:
        log(f"oom_score_adj was not set: {error}")


def say(control: socket.socket, message: dict[str, object]) -> None:
    """Tell the daemon; where it is gone, the end of the control socket is read next."""
    try:
        control.send(json.dumps(message).encode())
    except OSError as error:
        log(f"the daemon did not hear {message}: {error}")


if __name__ == "__main__":
    main()
