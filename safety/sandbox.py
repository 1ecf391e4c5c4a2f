"""The sandbox of a worker: what a process that runs jobs may still do, and what of that holds on this host.

A worker sees its own room and nothing else of the state folder: what it was given, read-only, and what it makes. It
has no network, no privileges, no power over other processes, and cannot start any unless a bound allows it. Each part
is a mechanism of the kernel and stands alone, so that a host which lacks one still has the others; `Holds` says which.
Memory, disk and time are watched from outside (`daemon.meter`). Standard library only: this runs in the forked worker,
beside torch, and in `kaizend check`.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from traceback import walk_tb
from typing import Any, Final

from safety import landlock, syscalls
from safety.bounds import Bounds
from safety.kernel import (
    CLONE_NEWNET,
    CLONE_NEWUSER,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    drop_capabilities,
    prctl,
    unshare,
)
from safety.nameless import nameless
from state.code import PACKAGES
from state.errors import ConfigurationError
from state.records import JsonObject

GIB: Final = 2**30
MOST_THREADS: Final = max(512, 4 * (os.cpu_count() or 1))
"""Threads of a worker, above what mathematical libraries start on as many cores."""
SHARE_OF_THE_HOST: Final = 0.9
ADDRESS_SPACE: Final = 2
"""Writable address space, in multiples of the memory bound: a mapped file and its copy both count."""

SYSTEM: Final = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/etc/group",
    "/etc/nsswitch.conf", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version",
    "/proc/filesystems", "/proc/devices", "/proc/modules", "/proc/driver", "/proc/sys/kernel", "/proc/sys/vm",
    "/sys/devices", "/sys/bus", "/sys/class", "/sys/module", "/sys/kernel/mm", "/sys/fs/cgroup",
    "/dev/zero", "/dev/random", "/dev/urandom",
)
DEVICES: Final = ("null", "nvidia*")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker may use. Processes are those beside itself."""

    memory_gib: float
    scratch_gib: float
    processes: int = 0
    required: bool = False
    user: str = ""

    @classmethod
    def of(cls, bounds: Bounds) -> Limits:
        """As the bounds say; memory at most nine tenths of the host's."""
        resources, host = bounds.resources, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        return cls(
            min(resources.worker_memory_gib, SHARE_OF_THE_HOST * host), resources.scratch_gib,
            resources.worker_processes, bounds.sandbox.required, bounds.sandbox.user,
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """The sandbox of one worker. `read` and `write` are all it reaches beside the system and the program.

    `temporary` is the one of the folders it writes in which temporary files go. `limit_data` also limits its writable
    address space, which a GPU's driver uses freely.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]
    limits: Limits
    temporary: str = ""
    limit_data: bool = True

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, body: JsonObject) -> Rules:
        lists = {name: tuple(body[name]) for name in ("read", "write")}
        return cls(**{**body, **lists, "limits": Limits(**body["limits"])})


@dataclass(frozen=True, slots=True)
class Holds:
    """Which parts are in force in a process. `missing` says in words what is not."""

    landlock: int = 0                       # ABI
    namespace: bool = False                 # a network namespace of its own
    filtered: bool = False                  # system calls
    user: str = ""                          # the separate user, "" where there is none
    missing: tuple[str, ...] = field(default=())

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, body: JsonObject) -> Holds:
        return cls(**{**body, "missing": tuple(body["missing"])})


def confine(rules: Rules, *, level: int | None = None) -> Holds:
    """Put this process, which must have one thread, into its sandbox for good. Returns what holds.

    A part that the host lacks is left out and named. Raises ConfigurationError where the bounds require every part, or
    name a user that this process cannot become.
    `level` stands for an older kernel's Landlock in tests.
    """
    missing: list[str] = []

    def attempt(what: str, act: Callable[[], None]) -> bool:
        try:
            act()
        except OSError as error:
            missing.append(f"{what} ({error.strerror or error})")
            return False
        return True

    rights = rights_of(rules)                       # while everything can be looked up
    user = rules.limits.user if rules.limits.user and os.geteuid() == 0 else ""
    if user:
        try:
            become(user)
        except OSError as error:
            raise ConfigurationError(f"sandbox.user: no worker can be {user!r}: {error}") from error
    namespace = attempt_quietly(own_network)
    attempt("limits", lambda: limit_resources(rules, counted_alone=namespace and os.geteuid() != 0))
    attempt("no capabilities", drop_capabilities)
    if prctl(PR_SET_NO_NEW_PRIVS, 1) != 0:
        missing.append("no new privileges")
    abi = landlock.abi() if level is None else min(level, landlock.abi())
    if not abi or not attempt("Landlock", lambda: landlock.restrict(rights, abi)):
        abi = 0
        missing.append("Landlock: files are not confined")
    policy = syscalls.Policy(os.getpid(), rules.limits.processes > 0, abi)
    filtered = syscalls.known_machine() and attempt("system call filter", lambda: syscalls.install(policy))
    if not filtered:
        missing.append("system call filter: signals and processes are not confined")
        if not namespace:
            missing.append("network: not isolated")
    holds = Holds(abi, namespace, filtered, user, tuple(missing))
    if rules.limits.required and missing:
        raise ConfigurationError(f"sandbox.required: this host has not {'; '.join(missing)}")
    return holds


def rights_of(rules: Rules) -> landlock.Rights:
    """Everything a worker may open: the system's and the program's own files, and what its rules name."""
    home = Path(__file__).resolve().parent.parent
    program = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__)}
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    read = (*SYSTEM, *sorted(program), *libraries, *(str(home / name) for name in PACKAGES), *rules.read)
    devices = tuple(str(path) for pattern in DEVICES for path in sorted(Path("/dev").glob(pattern)))
    return landlock.Rights(read, rules.write, devices, read if rules.limits.processes else ())


def become(user: str) -> None:
    """Run as another user from now on. Raises OSError where there is no such user, or it cannot read the program."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise OSError("there is no such user") from None
    os.setgroups([])
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    unreadable = [file for file in (os.__file__, __file__) if not os.access(file, os.R_OK, effective_ids=True)]
    os.seteuid(0)
    os.setegid(0)
    if unreadable:
        raise OSError(f"it cannot read {unreadable[0]}")
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    prctl(PR_SET_DUMPABLE, 1)                       # its own /proc files belong to it again
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)         # and the change has made the kernel forget this


def own_network() -> None:
    """A network namespace with nothing in it, in a user namespace where only that is permitted. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
    except OSError:
        unshare(CLONE_NEWNET)
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)


def attempt_quietly(act: Callable[[], None]) -> bool:
    """For a part that another one stands in for."""
    try:
        act()
    except OSError:
        return False
    return True


def limit_resources(rules: Rules, *, counted_alone: bool) -> None:
    """rlimits, or OSError: no core file, no file beyond the scratch bound, writable address space, and tasks.

    Tasks are counted by user, so a limit means the worker's own only in a user namespace; root's are never counted.
    """
    wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: int(rules.limits.scratch_gib * GIB)}
    if rules.limit_data:
        wanted[resource.RLIMIT_DATA] = int(ADDRESS_SPACE * rules.limits.memory_gib * GIB)
    if counted_alone:
        wanted[resource.RLIMIT_NPROC] = MOST_THREADS + rules.limits.processes
    for kind, most in wanted.items():
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except ValueError as error:
            raise OSError(str(error)) from None


def words_for(error: BaseException) -> str:
    """Where the sandbox stopped a job, in words; "" where an error is not its doing."""
    if not isinstance(error, PermissionError) or error.__traceback__ is None:
        return ""
    frames = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
    standard = os.path.dirname(os.__file__)
    ours = [frame for frame in frames if os.path.dirname(frame[0].co_filename) != standard]
    code, line = (ours or frames)[-1]
    return f"denied inside the sandbox, in {code.co_name} ({Path(code.co_filename).name}, line {line})"


# --- what holds here ----------------------------------------------------------------------------------------------


def probe(limits: Limits) -> tuple[Holds, frozenset[str]]:
    """What holds in a process that is confined for the purpose, and what it managed all the same: which of ESCAPES, and
    HIDE."""
    with tempfile.TemporaryDirectory(prefix="kaizend-sandbox-") as folder:
        secret, room = Path(folder, "vault"), Path(folder, "room")
        for place in (secret, room):
            place.mkdir()
        secret.joinpath("item").write_text("sealed")
        if limits.user:
            Path(folder).chmod(0o755)
            room.chmod(0o777)
        reading, writing = os.pipe()
        looked, looking = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            os.close(looking)
            try:
                holds = tried(Rules((), (str(room),), replace(limits, required=False)))
                escaped = [name for name, escape in ESCAPES.items() if escapes(escape, secret)]
                hold_nameless(room)
                os.write(writing, json.dumps([holds.to_json(), escaped]).encode() + b"\n")
                os.read(looked, 1)                              # until the other side has looked
            finally:
                os._exit(0)
        for end in (writing, looked):
            os.close(end)
        with os.fdopen(reading, "rb") as told:
            text = told.readline()
            hidden = not nameless([pid])
        os.close(looking)
        os.waitpid(pid, 0)
    if not text:
        return Holds(missing=("the sandbox could not be tried",)), frozenset({*ESCAPES, HIDE})
    body, escaped = json.loads(text)
    return Holds.from_json(body), frozenset({*escaped, HIDE} if hidden else escaped)


def tried(rules: Rules) -> Holds:
    """`confine`, without the user where it is he who cannot be."""
    try:
        return confine(rules)
    except ConfigurationError as error:
        return replace(confine(replace(rules, limits=replace(rules.limits, user=""))), missing=(str(error),))


def hold_nameless(room: Path) -> None:
    """Hold a file open that has no name, to the end of the process."""
    with suppress(OSError):
        held = os.open(room / "nameless", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(held, bytes(1 << 16))
        os.unlink(room / "nameless")


def escapes(escape: Callable[[Path], Any], secret: Path) -> bool:
    try:
        escape(secret)
    except OSError:
        return False
    return True


ESCAPES: Final[dict[str, Callable[[Path], Any]]] = {
    "read": lambda secret: secret.joinpath("item").read_text(),
    "write": lambda secret: secret.joinpath("item").write_text("changed"),
    "network": lambda secret: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9)),
    "signal": lambda secret: os.kill(os.getppid(), 0),
    "process": lambda secret: os._exit(0) if os.fork() == 0 else None,
}
"""What a job must not be able to do, tried in earnest on things made for it."""
HIDE: Final = "hide"
"""To hold a file without a name that whoever forked it does not see."""


def statements(limits: Limits, state: Path) -> list[tuple[str, bool, str]]:
    """(part, whether it holds, in words) of the sandbox on this host, for a state folder at `state`."""
    holds, escaped = probe(limits)
    inside = exposed(state)
    network = [words for words, well in (
        ("a namespace of its own", holds.namespace), ("no sockets (system call filter)", holds.filtered)) if well]
    signals = "by the system call filter" if holds.filtered else "NOT confined"
    processes = f"at most {limits.processes} beside itself" if limits.processes else "none beside itself"
    denied = "process" not in escaped or limits.processes > 0
    return [
        ("files", holds.landlock > 0 and not {"read", "write"} & escaped,
         f"Landlock ABI {holds.landlock}: its own room only" if holds.landlock else "Landlock is absent: NOT confined"),
        ("network", "network" not in escaped, " and ".join(network) if network else "NOT isolated"),
        ("signals", "signal" not in escaped,
         "by Landlock" if holds.landlock >= 6 and limits.processes else signals),
        ("processes", denied, f"{processes}, {MOST_THREADS} threads" if denied else "NOT limited by the kernel"),
        ("user", not limits.user or bool(holds.user), _user_in_words(limits, holds)),
        ("memory", True, f"{limits.memory_gib:.3g} GiB a worker, watched by the runner"),
        ("disk", True, f"{limits.scratch_gib:g} GiB a job, watched by the runner, "
         + ("but NOT files without a name: /proc hides them" if HIDE in escaped else "files without a name included")),
        ("vault out of reach", "read" not in escaped and not inside,
         f"no: {state} lies below {inside}, which workers read" if inside else "no" if "read" in escaped else "yes"),
    ]


def exposed(path: Path) -> str:
    """The folder that every worker reads and in which a file or folder lies; "" where there is none."""
    shown = rights_of(Rules((), (), Limits(1.0, 1.0))).read
    resolved = path.resolve()
    return next((path for path in shown if resolved.is_relative_to(Path(path).resolve())), "")


def require(limits: Limits, state: Path) -> None:
    """Raises ConfigurationError where the bounds require a sandbox that this host does not give."""
    if not limits.required:
        return
    if lacking := [f"{what} ({words})" for what, well, words in statements(limits, state) if not well]:
        raise ConfigurationError(f"sandbox.required: this host does not hold {', '.join(lacking)}")


def _user_in_words(limits: Limits, holds: Holds) -> str:
    if holds.user:
        return f"{holds.user}, a user of its own"
    if limits.user:
        return f"NOT {limits.user}: {'; '.join(holds.missing) or 'only root can become another user'}"
    return "the daemon's own (sandbox.user is not set)"
