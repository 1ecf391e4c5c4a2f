"""What a confined process can still do, on this kernel and on older ones, and what is said about it."""

import errno
import json
import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safety import landlock, sandbox, syscalls
from safety.bounds import Bounds
from safety.sandbox import ESCAPES, Holds, Limits, Rules, confine, exposed, probe, require, statements
from state.errors import ConfigurationError

LIMITS = Limits(memory_gib=4.0, scratch_gib=0.001)
ABI = landlock.abi()
needs_landlock = pytest.mark.skipif(ABI == 0, reason="this kernel has no Landlock")
needs_filter = pytest.mark.skipif(not syscalls.known_machine(), reason="no system call filter for this machine")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def apart(act: Callable[[], Any]) -> Any:
    """What `act` gives in a process of its own, as JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            told = act()
        except Exception as error:                                              # noqa: BLE001
            told = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(told).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def tried(act: Callable[[], Any]) -> str:
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A room and, beside it, what is not to be touched."""
    for name in ("in", "out", "beside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("as it was")
    return tmp_path


def rules(place: Path, **limits: Any) -> Rules:
    return Rules((str(place / "in"),), (str(place / "out"),), replace(LIMITS, **limits), str(place / "out"))


@needs_landlock
@needs_filter
@pytest.mark.parametrize("level", range(1, ABI + 1))
def test_under_every_version_of_landlock_only_the_room_can_be_reached(place, level):
    def act() -> dict[str, str]:
        confine(rules(place), level=level)
        beside, given, out = (place / name / "file" for name in ("beside", "in", "out"))
        return {
            "read beside": tried(beside.read_bytes), "write beside": tried(lambda: beside.write_text("changed")),
            "cut beside": tried(lambda: os.close(os.open(beside, os.O_RDONLY | os.O_TRUNC))),
            "shorten beside": tried(lambda: os.truncate(beside, 0)), "unlink beside": tried(beside.unlink),
            "list beside": tried(lambda: os.listdir(place / "beside")), "list above": tried(lambda: os.listdir(place)),
            "signal": tried(lambda: os.kill(os.getppid(), 0)),
            "socket": tried(lambda: socket.socket(socket.AF_UNIX)),
            "read given": tried(given.read_bytes), "write given": tried(lambda: given.write_text("changed")),
            "write own": tried(lambda: out.write_text("new")), "make": tried((place / "out" / "more").mkdir),
            "rename": tried(lambda: out.rename(place / "out" / "renamed")),
            "own status": tried(Path("/proc/self/status").read_bytes),
            "program": tried(Path(sandbox.__file__).read_bytes),
            "null": tried(lambda: Path("/dev/null").write_text("x")),
        }

    told = apart(act)
    allowed = {"read given", "write own", "make", "rename", "own status", "program", "null"}
    assert {what for what, result in told.items() if result == "done"} == allowed
    assert {told[what] for what in told.keys() - allowed} <= {"EACCES", "EPERM"}
    assert (place / "beside" / "file").read_text() == "as it was" == (place / "in" / "file").read_text()


def test_a_host_without_landlock_says_so_and_keeps_the_rest(place):
    holds = Holds.from_json(apart(lambda: confine(rules(place), level=0).to_json()))
    assert holds.landlock == 0
    assert "Landlock: files are not confined" in holds.missing
    assert holds.filtered == syscalls.known_machine()


def test_a_required_sandbox_that_is_not_whole_is_refused(place):
    told = apart(lambda: confine(rules(place, required=True), level=0).to_json())
    assert told == "ConfigurationError: sandbox.required: this host has not Landlock: files are not confined"


@needs_filter
def test_without_any_namespace_there_is_still_no_network(place, monkeypatch):
    def none() -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(sandbox, "own_network", none)
    holds, escaped = probe(LIMITS)
    assert (holds.namespace, holds.filtered) == (False, True)
    assert "network" not in escaped
    words = {part: text for part, _, text in statements(LIMITS, Path("/nowhere"))}
    assert words["network"] == "no sockets (system call filter)"


def test_what_a_worker_may_use_is_limited_by_the_kernel_too(place):
    def act() -> list[Any]:
        confine(rules(place))
        big = tried(lambda: (place / "out" / "big").write_bytes(b"x" * (1 << 21)))
        return [big, *(resource.getrlimit(kind) for kind in (resource.RLIMIT_CORE, resource.RLIMIT_DATA))]

    big, core, data = apart(act)
    assert big == "EFBIG"
    assert core == [0, 0]
    assert data == [8 << 30, 8 << 30]


@needs_root
def test_a_separate_user_is_become_where_there_is_one(place):
    def act() -> list[Any]:
        holds = confine(rules(place, user="nobody"))
        return [holds.user, os.getuid() != 0, os.getgroups(), holds.missing]

    told = apart(act)
    if isinstance(told, list):
        assert told == ["nobody", True, [], []]
        holds, escaped = probe(replace(LIMITS, user="nobody"))
        assert (holds.user, escaped) == ("nobody", frozenset())
    else:                                                           # this Python lies in root's own home
        assert told.startswith("ConfigurationError: sandbox.user: no worker can be 'nobody': it cannot read ")
    missing = probe(replace(LIMITS, user="no such user"))[0]
    assert missing.missing == ("sandbox.user: no worker can be 'no such user': there is no such user",)


@needs_landlock
@needs_filter
def test_the_statements_say_what_was_tried_on_this_host(tmp_path):
    found = statements(LIMITS, tmp_path)
    assert [part for part, _, _ in found] == [
        "files", "network", "signals", "processes", "user", "memory", "disk", "vault out of reach",
    ]
    assert all(holds for _, holds, _ in found)
    assert (f"Landlock ABI {ABI}: its own room only", "yes") == (found[0][2], found[-1][2])
    assert found[6][2] == "0.001 GiB a job, watched by the runner, files without a name included"


def test_files_without_a_name_that_proc_hides_are_said_not_to_be_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "nameless", lambda pids: None)
    words = {part: text for part, _, text in statements(LIMITS, tmp_path)}
    assert words["disk"].endswith("but NOT files without a name: /proc hides them")


def test_what_escaped_is_said_and_refused_where_the_sandbox_is_required(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "probe", lambda limits: (Holds(), frozenset(ESCAPES)))
    words = {part: (holds, text) for part, holds, text in statements(LIMITS, tmp_path)}
    assert words["files"] == (False, "Landlock is absent: NOT confined")
    assert words["network"] == (False, "NOT isolated")
    assert words["vault out of reach"] == (False, "no")
    require(LIMITS, tmp_path)
    words = r"sandbox\.required: this host does not hold files .*network"
    with pytest.raises(ConfigurationError, match=words) as raised:
        require(replace(LIMITS, required=True), tmp_path)
    assert raised.value.exit_code == 78


def test_a_state_folder_that_lies_where_every_worker_reads_is_named():
    assert exposed(Path(sys.prefix) / "var") == sys.prefix
    assert exposed(Path("/var/lib/kaizend")) == ""
    found = statements(LIMITS, Path(sys.prefix) / "var")
    assert found[-1][:2] == ("vault out of reach", False)


def test_limits_are_the_bounds_and_never_the_whole_host():
    bounds = Bounds()
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    huge = replace(bounds, resources=replace(bounds.resources, worker_memory_gib=1e5))
    assert Limits.of(huge).memory_gib == pytest.approx(0.9 * host)
    small = replace(bounds, resources=replace(bounds.resources, worker_memory_gib=0.5))
    assert Limits.of(small) == Limits(0.5, bounds.resources.scratch_gib, 0, False, "")


def test_rules_survive_the_wire(place):
    given = rules(place, processes=3, user="nobody")
    assert Rules.from_json(json.loads(json.dumps(given.to_json()))) == given


def test_the_sandbox_needs_nothing_but_the_standard_library():
    heavy = ("torch", "numpy", "pydantic", "sqlalchemy")
    code = f"import sys, safety.sandbox; print([m for m in sys.modules if m.split('.')[0] in {heavy}])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


# --- the filter, computed -------------------------------------------------------------------------------------------

PID = 4711
ALLOWED = 0


def answer(machine: str, number: int, *arguments: int, architecture: int | None = None, **policy: Any) -> int:
    """The errno that the filter gives a call, 0 where it lets it through."""
    program = syscalls.filter_for(syscalls.Policy(PID, **policy), machine)
    words = {0: number, 4: architecture or syscalls.MACHINES[machine][1]}
    words |= {16 + 8 * place: value % 2**32 for place, value in enumerate(arguments)}
    place, held = 0, 0
    while True:
        code, yes, no, operand = program[place]
        place += 1
        if code == syscalls.LOAD:
            held = words.get(operand, 0)
        elif code == syscalls.AND:
            held &= operand
        elif code == syscalls.RETURN:
            return ALLOWED if operand == syscalls.ALLOW else operand & 0xFFFF
        else:
            true = {
                syscalls.EQUAL: held == operand, syscalls.AT_LEAST: held >= operand,
                syscalls.ANY_BIT: bool(held & operand),
            }[code]
            place += yes if true else no


@pytest.mark.parametrize("machine", sorted(syscalls.MACHINES))
class TestFilter:
    def number(self, machine: str, name: str) -> int:
        tables = {**syscalls.NETWORK, **syscalls.PROCESSES, **syscalls.FORBIDDEN, **syscalls.GUARDED}
        number = tables[name][syscalls.MACHINES[machine][0]]
        if number is None:
            pytest.skip(f"{machine} has no {name}")
        return number

    def test_what_no_job_needs_is_refused_and_the_rest_is_not(self, machine):
        column = syscalls.MACHINES[machine][0]
        for names, error in ((syscalls.NETWORK, errno.EACCES), (syscalls.FORBIDDEN, errno.EPERM)):
            for numbers in names.values():
                if numbers[column] is not None:
                    assert answer(machine, numbers[column]) == error
        known = {
            numbers[column] for table in (syscalls.NETWORK, syscalls.PROCESSES, syscalls.FORBIDDEN, syscalls.GUARDED)
            for numbers in table.values()
        }
        for number in set(range(450)) - known:
            assert answer(machine, number) == ALLOWED

    def test_another_architectures_calls_are_refused(self, machine):
        assert answer(machine, 1, architecture=0x40000003) == errno.ENOSYS
        if machine == "x86_64":
            assert answer(machine, 0x40000000 + 41) == errno.ENOSYS

    @pytest.mark.parametrize("name", [*syscalls.SIGNALS, *syscalls.OF_ONESELF])
    def test_a_process_reaches_itself_alone(self, machine, name):
        number = self.number(machine, name)
        assert answer(machine, number, PID) == ALLOWED
        for other in (1, PID + 1, -1, -PID):
            assert answer(machine, number, other) == errno.EPERM

    def test_signals_among_its_own_processes_are_landlocks_business_where_it_knows_them(self, machine):
        number = self.number(machine, "kill")
        assert answer(machine, number, PID + 1, processes=True, landlock=6) == ALLOWED
        assert answer(machine, number, PID + 1, processes=True, landlock=5) == errno.EPERM

    def test_threads_are_made_and_processes_only_where_they_are_allowed(self, machine):
        number = self.number(machine, "clone")
        thread, process = 0x3D0F00, 0x1200011
        assert answer(machine, number, thread) == ALLOWED
        assert answer(machine, number, process) == errno.EPERM
        assert answer(machine, number, process, processes=True) == ALLOWED
        for flag in (0x10000000, 0x40000000, 0x20000, 0x80):
            assert answer(machine, number, process | flag, processes=True) == errno.EPERM
        assert answer(machine, self.number(machine, "clone3"), processes=True) == errno.ENOSYS
        assert answer(machine, self.number(machine, "execve")) == errno.EPERM
        assert answer(machine, self.number(machine, "execve"), processes=True) == ALLOWED

    def test_pairs_of_sockets_cannot_name_a_third(self, machine):
        number = self.number(machine, "socketpair")
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC):
            assert answer(machine, number, socket.AF_UNIX, kind) == ALLOWED
        assert answer(machine, number, socket.AF_UNIX, socket.SOCK_DGRAM) == errno.EACCES
        assert answer(machine, number, socket.AF_INET, socket.SOCK_STREAM) == errno.EACCES

    def test_some_arguments_of_common_calls_are_refused(self, machine):
        for name, arguments in (
            ("prctl", (1,)), ("prctl", (4,)), ("fcntl", (3, 8)), ("fcntl", (3, 15)), ("ioctl", (3, 0x8901)),
            ("ioctl", (3, 0x5412)),
        ):
            assert answer(machine, self.number(machine, name), *arguments) == errno.EPERM
        for name, arguments in (("prctl", (15,)), ("fcntl", (3, 2)), ("ioctl", (3, 0x5401))):
            assert answer(machine, self.number(machine, name), *arguments) == ALLOWED

    def test_an_old_landlock_is_helped_with_what_cuts_a_file_short(self, machine):
        number, cut = self.number(machine, "openat"), os.O_RDONLY | os.O_TRUNC
        assert answer(machine, number, 0, 0, cut, landlock=2) == errno.EPERM
        assert answer(machine, number, 0, 0, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, landlock=2) == ALLOWED
        assert answer(machine, number, 0, 0, cut, landlock=3) == ALLOWED
        assert answer(machine, self.number(machine, "truncate"), landlock=2) == errno.EPERM


@needs_filter
def test_the_numbers_are_those_of_this_machines_own_headers():
    header = {
        "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        "aarch64": Path("/usr/include/asm-generic/unistd.h"),
    }[platform.machine()]
    if not header.exists():
        pytest.skip("the kernel's headers are not here")
    lines = [line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR")]
    numbers = {line[1].removeprefix("__NR_").removeprefix("__NR3264_"): int(line[2]) for line in lines
               if len(line) > 2 and line[2].isdigit()}
    column = syscalls.MACHINES[platform.machine()][0]
    for table in (syscalls.NETWORK, syscalls.PROCESSES, syscalls.FORBIDDEN, syscalls.GUARDED):
        for name, given in table.items():
            if name in numbers:
                assert given[column] == numbers[name], name
