"""Jobs that try to get out of their sandbox, in real workers: each is denied, and why is what the job failed of."""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_house import House, alive, until

from loops.cycle import House as Cycles
from loops.cycle import run_cycle
from loops.loop import Bench, Trial
from safety import landlock, syscalls
from safety.bounds import Bounds
from state.jobs import JobFailed, JobSpec
from state.ledger import Ledger
from state.records import Budget, Candidate, Event, JsonObject, LoopName, Outcome, Verdict

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "escape_jobs.py"
BOUNDS = Bounds(resources=replace(
    Bounds().resources, worker_memory_gib=1.0, scratch_gib=0.05, min_disk_free_gib=0.1, worker_processes=0,
))
needs_landlock = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
needs_filter = pytest.mark.skipif(not syscalls.known_machine(), reason="no system call filter for this machine")
DENIED = r"PermissionError|Permission denied|Operation not permitted|Invalid cross-device link"


def allowing(**resources: Any) -> Callable[[], Bounds]:
    return lambda: replace(BOUNDS, resources=replace(BOUNDS.resources, **resources))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A state folder with a vault, an artefact, another job's scratch and a bounds.toml beside it."""
    root = tmp_path_factory.mktemp("escapes")
    (root / "bounds.toml").write_text("[gate]\nalpha = 0.05\n")
    with House(root / "var", table=TABLE, bounds=allowing()) as house:
        yield house


@pytest.fixture(scope="module")
def kept(house: House, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what the registry holds."""
    kept = {}
    for kind in ("vault", "data", "model"):
        folder = tmp_path_factory.mktemp(kind)
        (folder / "item.txt").write_text(kind)
        kept[kind] = house.registry.add_copy(folder, kind)
    return kept


@pytest.fixture(scope="module")
def places(house: House, kept: dict[str, str]) -> dict[str, Path]:
    """What is not a worker's to touch, by name."""
    other = house.folder / "jobs" / ("f" * 64)
    other.mkdir()
    (other / "saved").write_text("1")
    room = house.folder / "jobs" / "room-other" / "out" / ("e" * 64)
    room.mkdir(parents=True)
    (room / "saved").write_text("1")
    return {
        "the vault": house.registry.path(kept["vault"]) / "item.txt",
        "the ledger": house.folder / "kaizend.db",
        "the bounds": house.folder.parent / "bounds.toml",
        "another job's folder": other / "saved",
        "another worker's room": room / "saved",
        "another artefact": house.registry.path(kept["model"]) / "item.txt",
    }


def ask(way: str, kind: str = "escape", inputs: dict[str, str] | None = None, **params: Any) -> JobSpec:
    return JobSpec(kind, inputs or {}, {"way": way, "daemon": os.getpid(), **params})


def denied(house: House, asked: JobSpec, words: str = DENIED, seconds: float | None = 20.0) -> JobFailed:
    with pytest.raises(JobFailed, match=words) as failed:
        house.runner.run(asked, timeout_seconds=seconds)
    assert str(failed.value).startswith(asked.kind)
    return failed.value


def state_of(path: Path) -> tuple[bytes, int, float]:
    found = path.stat()
    return path.read_bytes(), found.st_mode, found.st_mtime


@needs_landlock
@pytest.mark.parametrize("kind", ["escape", "train"])
@pytest.mark.parametrize("place", [
    "the vault", "the ledger", "the bounds", "another job's folder", "another worker's room", "another artefact",
])
def test_what_is_not_the_jobs_own_can_neither_be_read_nor_written(house, places, place, kind):
    path = places[place]
    for way in ("read", "append", "cut", "remove", "second_name"):
        before = state_of(path) if way != "read" or place != "the ledger" else None
        failure = denied(house, ask(way, kind, at=str(path)))
        assert failure.verdict is Verdict.CRASHED
        if way in ("read", "append", "cut"):
            assert path.name in str(failure)                     # the reason names what was denied
            assert "denied inside the sandbox" in str(failure)
        if place != "the ledger":                                # the runner itself writes there
            assert before == state_of(path)
    denied(house, ask("make", kind, at=str(path.parent)))
    denied(house, ask("list", kind, at=str(path.parent)))
    assert not (path.parent / "planted").exists()


@needs_filter
@pytest.mark.parametrize("way", ["shorten", "lock_out", "touch", "tag", "rename"])
@pytest.mark.parametrize("place", ["the vault", "the bounds", "another job's folder"])
def test_a_file_cannot_be_changed_without_being_opened_either(house, places, place, way):
    before = state_of(places[place])
    denied(house, ask(way, at=str(places[place])))
    assert state_of(places[place]) == before


@needs_landlock
@pytest.mark.parametrize("way", ["change_input", "unlock_input"])
def test_what_a_job_was_given_stays_as_it_is(house, kept, way):
    denied(house, ask(way, inputs={"data:given": kept["data"]}))
    assert house.registry.verify(kept["data"]) == []
    assert (house.registry.path(kept["data"]) / "item.txt").stat().st_mode & 0o777 == 0o444


@needs_landlock
def test_no_link_is_laid_for_the_daemon_to_follow(house, places):
    denied(house, ask("link_out", at=str(places["the vault"].parent)))


def test_the_gate_reads_the_vault_that_it_was_given_and_its_process_does_nothing_else(house, kept):
    told = [
        house.runner.run(JobSpec("gate", {"vault": kept["vault"]}, {"number": number})).values for number in range(2)
    ]
    assert [each["given"] for each in told] == [{"vault": "vault"}] * 2
    assert told[0]["pid"] != told[1]["pid"]
    assert not list((house.folder / "jobs").glob("room-*/in/*"))


@pytest.fixture
def port() -> Iterator[tuple[int, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1], server


@needs_filter
@pytest.mark.parametrize("way", ["connect_tcp", "listen_tcp", "send_udp"])
@pytest.mark.parametrize("kind", ["escape", "train"])
def test_there_is_no_network(house, port, kind, way):
    number, server = port
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as udp:
        udp.bind(("127.0.0.1", number))
        udp.setblocking(False)
        assert "denied inside the sandbox" in str(denied(house, ask(way, kind, port=number)))
        with pytest.raises(BlockingIOError):
            udp.recv(10)
    with pytest.raises(BlockingIOError):
        server.accept()


@needs_filter
@pytest.mark.parametrize(("way", "type_"), [
    ("connect_unix", socket.SOCK_STREAM), ("send_unix", socket.SOCK_DGRAM),
])
def test_the_daemons_own_sockets_are_out_of_reach(house, tmp_path, monkeypatch, way, type_):
    monkeypatch.chdir(tmp_path)
    with closing(socket.socket(socket.AF_UNIX, type_)) as server:
        server.bind("door")
        server.settimeout(0.2)
        if type_ is socket.SOCK_STREAM:
            server.listen()
        denied(house, ask(way, at=str(tmp_path / "door")))
        with pytest.raises(TimeoutError):
            server.accept() if type_ is socket.SOCK_STREAM else server.recv(10)


@needs_filter
@pytest.mark.parametrize("way", [
    "kill_parent", "kill_daemon", "kill_everybody", "kill_thread", "limit_daemon", "slow_daemon", "read_daemon",
    "trace_daemon",
])
def test_other_processes_cannot_be_reached(house, way):
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        house.runner.run(JobSpec("look", {}, {"before": way}))
        nursery = house.runner.pids()[0]
        denied(house, ask(way))
        assert house.runner.pids()[0] == nursery
        assert nursery is not None
        assert alive(nursery)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == []
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) < 19


@needs_filter
@pytest.mark.parametrize("way", [
    "start_process", "fork_without_end", "exec", "setsid", "live_on", "hide", "new_namespace", "mount", "ring",
    "memory_file", "leave_a_grandchild",
])
def test_nothing_is_started_and_no_privilege_is_won(house, way):
    denied(house, ask(way))


def test_a_worker_has_no_privileges_and_no_network_interface_but_its_own(house):
    told = house.runner.run(JobSpec("look")).values
    assert (told["capabilities"], told["no_new_privs"]) == (0, "1")
    assert house.runner.sandbox is not None
    if house.runner.sandbox.namespace:
        assert told["interfaces"] in ([], ["lo"])
        assert told["bounding"] == 0


@pytest.mark.parametrize(("way", "words"), [
    ("fill", r"File too large|resources.scratch_gib: .* is outside 0.05"),
    ("fill_with_many", r"killed, resources.scratch_gib: .* is outside 0.05"),
    ("fill_namelessly", r"killed, resources.scratch_gib: .* is outside 0.05"),
    ("eat_memory", r"killed, resources.worker_memory_gib: .* is outside 1"),
    ("eat_shared_memory", r"killed, resources.worker_memory_gib: .* is outside 1"),
    ("thread_without_end", r"killed, threads of a worker: .* is outside 512|can't start new thread"),
])
def test_a_job_that_takes_too_much_is_ended_and_the_bound_is_named(house, way, words):
    asked = ask(way)
    failure = denied(house, asked, words)
    assert failure.verdict is (Verdict.REFUSED if "killed" in str(failure) else Verdict.CRASHED)
    assert not house.scratch(asked).exists()
    assert not list((house.folder / "jobs").glob(f"room-*/out/{asked.digest}"))
    assert house.runner.run(JobSpec("look", {}, {"after": way})).values["no_new_privs"] == "1"


OWN_NAMESPACE = ["unshare", "--user", "--map-root-user", sys.executable]
IN_A_NAMESPACE = """
import os, sys
from pathlib import Path
from toy_house import House
from test_escapes import allowing, ask
from safety.nameless import nameless
from state.jobs import JobFailed

folder, nursery = Path(sys.argv[1]), int(sys.argv[2])
print(nameless([nursery]))
with House(folder / "var", unit=folder / "sock", bounds=allowing()) as house:
    try:
        house.runner.run(ask("fill_namelessly"), timeout_seconds=20.0)
    except JobFailed as failure:
        print(failure)
"""


def test_files_without_a_name_count_where_daemon_and_worker_unit_have_user_namespaces_of_their_own(tmp_path):
    """As systemd gives them: the daemon is not shown what the unit's workers hold open, and the nursery tells."""
    if not shutil.which("unshare") or subprocess.run([*OWN_NAMESPACE, "-c", ""], check=False).returncode:
        pytest.skip("no user namespaces for this user")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/crash")))}
    listening = ["-m", "daemon.nursery", "--listen", str(tmp_path / "sock"), "--table", str(TABLE)]
    with subprocess.Popen([*OWN_NAMESPACE, *listening], env=environment, cwd=ROOT) as nursery:
        try:
            done = subprocess.run(
                [*OWN_NAMESPACE, "-c", IN_A_NAMESPACE, str(tmp_path), str(nursery.pid)], env=environment, cwd=ROOT,
                capture_output=True, text=True, timeout=60, check=False,
            )
        finally:
            nursery.kill()
    hidden, said = done.stdout.splitlines()
    assert hidden == "None", done.stderr
    assert re.fullmatch(r"escape: killed, resources.scratch_gib: .* is outside 0.05", said)


@needs_filter
def test_forking_without_end_ends_at_the_bound_where_processes_are_allowed(house, monkeypatch):
    monkeypatch.setattr(house.runner, "bounds", allowing(worker_processes=8))
    failure = denied(house, ask("fork_without_end", allowed=8), r"killed, resources.worker_processes: .* is outside 8")
    assert failure.verdict is Verdict.REFUSED
    until(lambda: not [pid for pid in os.listdir("/proc") if pid.isdigit() and is_worker(int(pid), house)], 5.0)


MERGE = {
    "kind": "merge", "operator": "task_arithmetic", "base": "b", "parents": ["p", "q"], "groups": 1,
    "modules": ["attention"], "weights": [[[0.5]], [[1.0]]], "seed": 1,
}


class OneJob:
    """A loop whose only candidate is one job."""

    name = LoopName.ARCHITECTURE

    def __init__(self, asked: JobSpec) -> None:
        self.asked = asked

    def start(self) -> JsonObject:
        return {}

    def propose(self, state: JsonObject, base: str, incumbent: str, seed: int, in_flight: Any = ()) -> Candidate:
        return Candidate(self.name, MERGE, base, incumbent)

    def run(self, candidate: Candidate, bench: Bench) -> Trial:
        bench.job(self.asked.kind, self.asked.inputs, self.asked.params)
        raise AssertionError("the job got out")

    def judge(self, candidate: Candidate, trial: Trial) -> Outcome:
        raise NotImplementedError

    def learn(self, state: JsonObject, candidate: Candidate, outcome: Outcome) -> JsonObject:
        return state


@needs_landlock
@needs_filter
@pytest.mark.parametrize(("way", "verdict", "words"), [
    ("read", Verdict.CRASHED, "item.txt' (denied inside the sandbox, in <lambda> (escape_jobs.py"),
    ("send_udp", Verdict.CRASHED, "Permission denied (denied inside the sandbox, in send_udp"),
    ("kill_daemon", Verdict.CRASHED, "denied inside the sandbox, in kill_daemon"),
    ("fill_with_many", Verdict.REFUSED, "killed, resources.scratch_gib: "),
])
def test_an_escape_is_a_verdict_in_the_ledger_with_its_reason(house, kept, places, way, verdict, words):
    ledger = Ledger(house.database, house.registry)
    cycles = Cycles(ledger, house.runner, lambda: BOUNDS, "", 0)
    loop = OneJob(ask(way, at=str(places["the vault"]), port=9, recorded=True))
    outcome = run_cycle(cycles, loop, None, ledger.root_count(), kept["model"], kept["model"], Budget(60.0, 10, 1))
    *_, row = ledger.rows(event=Event.CLOSED)
    assert (outcome.verdict, row.verdict) == (verdict, verdict)
    assert words in row.reason


def is_worker(pid: int, house: House) -> bool:
    """Whether a process is a worker that is neither idle nor busy by the runner's own count."""
    nursery, known = house.runner.pids()
    try:
        command, environment = (Path(f"/proc/{pid}/{what}").read_bytes() for what in ("cmdline", "environ"))
    except OSError:
        return False
    ours = str(TABLE).encode() in command and str(house.folder).encode() in environment
    return ours and alive(pid) and pid not in (nursery, *known)


def test_a_job_does_not_outlive_its_deadline(house):
    told: list[str] = []
    house.runner.on_progress = lambda kind, done, note: told.append(note)
    began = time.monotonic()
    failure = denied(house, ask("stay"), "not done when its . seconds were up", 1.0)
    assert failure.verdict is Verdict.TIMED_OUT
    assert time.monotonic() - began < 5
    assert not alive(int(told[0]))


@pytest.mark.parametrize(("stays", "kind"), [(True, "escape"), (False, "escape"), (False, "train")])
def test_a_grandchild_dies_with_its_worker(house, monkeypatch, stays, kind):
    """One in a session of its own, if it could have one: after the deadline, and after a job that was done."""
    monkeypatch.setattr(house.runner, "bounds", allowing(worker_processes=8))
    told: list[str] = []
    house.runner.on_progress = lambda _, done, note: told.append(note)
    asked = ask("leave_a_grandchild", kind, stays=stays)
    if stays:
        denied(house, asked, "seconds were up", 1.0)
    else:
        house.runner.run(asked, timeout_seconds=20.0)
    worker, grandchild = map(int, told[0].split())
    until(lambda: not alive(worker) and not alive(grandchild), 2.0)


def test_a_grandchild_dies_with_a_killed_nursery(house, monkeypatch):
    monkeypatch.setattr(house.runner, "bounds", allowing(worker_processes=8))
    told: list[str] = []

    def on_progress(kind: str, done: float, note: str) -> None:
        if not told:
            told.append(note)
            os.kill(house.runner.pids()[0] or 0, signal.SIGKILL)

    house.runner.on_progress = on_progress
    denied(house, ask("leave_a_grandchild", stays=True, once=True), "seconds were up", 2.0)
    worker, grandchild = map(int, told[0].split())
    until(lambda: not alive(worker) and not alive(grandchild), 2.0)


@pytest.mark.parametrize("place", ["the vault", "the bounds", "another artefact"])
def test_a_worker_that_lies_about_its_outputs_is_not_believed(house, places, place):
    before = state_of(places[place])
    denied(house, ask("lie", at=str(places[place]), name="model"), "lies outside the job's folder")
    assert state_of(places[place]) == before


def test_sealed_items_come_from_the_job_that_makes_them_alone(house):
    denied(house, ask("lie", at="", name="vault:planted"), "lies outside|sealed items come from the jobs ")


def test_a_line_without_end_does_not_fill_the_daemons_memory(house):
    denied(house, ask("chatter"), "in 3 attempts|not done when")


@pytest.mark.parametrize("size", [10, (1 << 20) + 1])
def test_an_output_that_the_worker_holds_open_is_not_changed_after_it_was_taken(house, monkeypatch, size):
    """Small ones are copied; for large ones the worker is ended, and the next job has nothing left to write to."""
    monkeypatch.setattr("daemon.handover.MOST_COPIED_BYTES", 1 << 20)
    result = house.runner.run(JobSpec("keep_open", {}, {"bytes": size}))
    _, idle = house.runner.pids()
    assert bool(idle) is (size == 10)
    if size == 10:
        assert house.runner.run(JobSpec("keep_open", {}, {"again": size})).values == {"wrote": True}
    assert house.registry.verify(result.outputs["model"]) == []


@needs_landlock
def test_a_warm_worker_cannot_reach_back_into_an_earlier_jobs_folder(house, monkeypatch):
    earlier = JobSpec("reach_back", {}, {"number": 1})
    monkeypatch.setattr("daemon.runner.discard", lambda scratch: None)                      # it is there still
    assert house.runner.run(earlier).values == {"handle": True}
    denied(house, JobSpec("reach_back", {}, {"number": 2}))
    assert not (house.scratch(earlier) / "planted").exists()


def python_of(user: str) -> str:
    """A Python that a user can run and that can run the nursery; the tests' own may lie in somebody's home."""
    code = "import daemon.nursery"
    for python in (sys.executable, "/usr/bin/python3"):
        with suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(
                [python, "-c", code], user=user, group=pwd.getpwnam(user).pw_gid, cwd="/", capture_output=True,
                check=True, env={"PYTHONPATH": str(TABLE.parents[1])},
            )
            return python
    pytest.skip(f"there is no Python that {user} can run the nursery with")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@needs_landlock
def test_workers_of_a_separate_user_do_the_same_and_leave_nothing_of_theirs(monkeypatch):
    """The folder of the test lies where that user may walk, and the Python is one that it may run."""
    monkeypatch.setattr(sys, "executable", python_of("nobody"))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        bounds = replace(allowing()(), sandbox=replace(BOUNDS.sandbox, user="nobody"))
        sealed = Path(folder, "sealed")
        sealed.mkdir()
        (sealed / "item.txt").write_text("sealed")
        with House(Path(folder, "var"), table=TABLE, bounds=lambda: bounds) as house:
            vault = house.registry.add_copy(sealed, "vault")
            told = house.runner.run(JobSpec("gate", {"vault": vault})).values
            assert (told["uid"], told["groups"]) == (pwd.getpwnam("nobody").pw_uid, [])
            assert told["given"] == {"vault": "sealed"}
            result = house.runner.run(JobSpec("keep_open", {}, {"bytes": 10}))
            assert house.registry.verify(vault) == house.registry.verify(result.outputs["model"]) == []
            for place in (house.registry.path(vault) / "item.txt", house.registry.path(result.outputs["model"])):
                assert place.stat().st_uid == 0
            denied(house, ask("read", at=str(house.registry.path(vault) / "item.txt")))
            denied(house, ask("append", at=str(house.folder / "kaizend.db")))
            denied(house, ask("kill_parent"))
