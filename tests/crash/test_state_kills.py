"""A real process is killed at every failpoint of `state`, its folder is opened again, and the promise holds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mishaps import memory_folder, shim_in
from signatures import check_heads

from state.database import Database
from state.failpoints import Fault
from state.jobbook import JobBook
from state.reading import Reading
from state.records import Channel
from state.registry import Registry
from state.signed import signed_ledger

STATE = Path(__file__).resolve().parent.parent.parent / "state"
POINTS = sorted(
    name for source in STATE.glob("*.py") for name in re.findall(r"failpoint\(\"([a-z.]+)\"\)", source.read_text())
)
PASSAGES = {"database": (1,), "ledger": (1, 3), "registry": (1, 3), "jobbook": (2,), "signer": (1, 3), "signing": (1,)}
NEVER_PASSED = {
    "database.backup.begun", "database.backup.before",       # have a test of their own
    "registry.finish.before", "registry.finish.after",       # only a start after a kill passes them: test_daemon_killed
}

LIFE = '''
import sys
from pathlib import Path
from state.database import Database
from state.jobbook import JobBook
from state.jobs import JobResult, JobSpec
from state.records import Budget, Candidate, Channel, Cost, Entry, Event, LoopName, Outcome, Verdict
from state.registry import Registry
from state.signed import signed_ledger

root = Path(sys.argv[1])
database = Database(root / "kaizend.db")
database.migrate()
registry = Registry(root, database)
registry.reconcile()
ledger = signed_ledger(database, registry, root / "signing.key", root / "signing.pub", root / "heads.jsonl")
jobs = JobBook(database)


def made(text):
    folder = root / "jobs" / text
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    return registry.adopt(folder, "model")


def job(text):
    spec = JobSpec("build", params={"text": text})
    done = jobs.result(spec.digest)
    if done is None:
        jobs.started(spec, 1)
        done = JobResult({}, {"model": made(text)}, Cost(seconds=1.0))
        jobs.finished(spec, done)
    return done.outputs["model"]


def cycle(parent, ordinal, loop, base):
    found = ledger.find_cycle(parent, ordinal)
    if found is None:
        state = ledger.loop_state(loop) or {"seen": 0}
        found = ledger.open_cycle(parent, ordinal, Candidate(loop, {"n": ordinal}, base, base), state, Budget(1, 1, 1))
    if found.outcome is not None:
        return found.outcome
    ledger.begin_attempt(found)
    if parent is None:
        ledger.sign_last()                                   # as a stop that parks would
        result = cycle(found.id, 0, LoopName.PIPELINE, base).result
    else:
        result = job(f"result {parent}")
    state = dict(ledger.loop_state(loop) or found.state)
    return ledger.close_cycle(found, Outcome(Verdict.PROMOTED, "better", result), {"seen": state["seen"] + 1})


if ledger.latest(Event.GENESIS) is None:
    source = root / "given"
    source.mkdir(exist_ok=True)
    (source / "model.safetensors").write_text("given")
    first = registry.add_copy(source, "model")
    ledger.append(Entry(Event.GENESIS, "began", result=first), move={channel: first for channel in Channel})
while ledger.root_count() < 3 or ledger.open_cycles():
    still = ledger.open_cycles()
    ordinal = still[0].ordinal if still else ledger.root_count()
    cycle(None, ordinal, LoopName.ARCHITECTURE, ledger.channel(Channel.WORKING))
if ledger.latest(Event.RELEASE) is None:
    working = ledger.channel(Channel.WORKING)
    ledger.append(Entry(Event.RELEASE, "passed", result=working, verdict=Verdict.PROMOTED),
                  move=(Channel.STABLE, working))
if ledger.latest(Event.OPERATOR) is None:
    spare = made("spare")
    if registry.holds(spare):
        registry.remove(spare)
    ledger.append(Entry(Event.OPERATOR, "tidied"))
'''


NURSERY = """
import json, os, sys, traceback
import alembic.command, alembic.config, alembic.script, state.jobbook, state.ledger
program = compile(sys.argv[1], "life", "exec")
for line in sys.stdin:
    root, os.environ["KAIZEND_FAILPOINT"], os.environ["KAIZEND_FAILPOINT_ONCE"] = json.loads(line)
    os.environ["KAIZEND_MISHAP_ROOT"] = root
    child = os.fork()
    if child == 0:
        sys.argv[1:] = [root]
        try:
            exec(program, {"__name__": "life"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Live = Callable[..., int]
Story = list[tuple[object, ...]]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The library that lets disk and clock go wrong, where it can be made."""
    return shim_in(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def live(shim: Path | None) -> Iterator[Live]:
    """Lives one life in a process of its own and gives its exit status. A nursery saves each the imports."""
    preloaded = {"LD_PRELOAD": str(shim)} if shim else {}
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, LIFE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(STATE.parent), **preloaded}, stderr=subprocess.DEVNULL,
    )
    assert nursery.stdin is not None and nursery.stdout is not None
    asked, answers = nursery.stdin, nursery.stdout

    def one_life(root: Path, failpoint: str = "", mark: str = "") -> int:
        print(json.dumps([str(root), failpoint, mark]), file=asked, flush=True)
        return int(answers.readline())

    yield one_life
    asked.close()
    assert nursery.wait(10) == 0


def story(root: Path) -> Story:
    """What the ledger says, without times, hashes and the key."""
    with Reading(root / "kaizend.db") as reading:
        rows = list(reading.every_row())
    return [
        (r.id, r.event, r.cycle, r.parent, r.verdict, r.base, r.result, r.evidence | {"signing_key": ""}) for r in rows
    ]


@pytest.fixture(scope="module")
def undisturbed(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("undisturbed")
    assert live(root) == 0
    return story(root)


@pytest.mark.parametrize("point", [
    f"{name}:{n}" for name in POINTS if name not in NEVER_PASSED for n in PASSAGES[name.split(".")[0]]
])
def test_a_kill_loses_nothing_and_the_next_life_ends_as_if_it_had_not_happened(
    point: str, tmp_path: Path, live: Live, undisturbed: Story
) -> None:
    status = live(tmp_path, point)
    if status == 0 and point.endswith(":3"):
        pytest.skip("this moment does not come that often in this life")
    assert status == -signal.SIGKILL
    check_invariants(tmp_path)
    assert live(tmp_path) == 0
    check_invariants(tmp_path)
    assert story(tmp_path) == undisturbed
    with Reading(tmp_path / "kaizend.db") as reading:
        assert reading.open_cycles() == [] and reading.counts()["jobs"] == 3


@pytest.mark.parametrize(("fault", "passages"), [
    (Fault.EIO, (1,)), (Fault.SHORT, (1,)), (Fault.ENOSPC, (1,)), (Fault.RAISE, (1,)),
    *(pytest.param(fault, (1, 2, 4), marks=pytest.mark.long) for fault in Fault if fault is not Fault.KILL),
])
def test_any_other_fault_loses_nothing_either(
    fault: Fault, passages: tuple[int, ...], live: Live, shim: Path | None, undisturbed: Story,
    record_property: Callable[[str, object], None],
) -> None:
    """Each at every moment, at passages of those that come so often."""
    if shim is None and fault not in (Fault.RAISE, Fault.ENOSPC, Fault.EIO):
        pytest.skip("there is no C compiler here to make the library that does this")
    struck = 0
    for point in POINTS:
        for passage in passages if point not in NEVER_PASSED else ():
            with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
                root, mark = Path(folder) / "state", Path(folder) / "struck"
                root.mkdir()
                assert live(root, f"{point}:{passage}={fault}", str(mark)) in (0, 1), (point, passage)
                if not mark.exists():
                    continue                                        # this moment does not come that often in this life
                struck += 1
                check_invariants(root)
                assert live(root) == 0, (point, passage)
                check_invariants(root)
                assert story(root) == undisturbed, (point, passage)
    assert struck >= len(POINTS) - len(NEVER_PASSED)
    record_property("figures", {"faults": struck, "kind": str(fault)})


def check_invariants(root: Path) -> None:
    """What holds at every instant, once the start has reconciled disk and tables."""
    database = Database(root / "kaizend.db")
    database.migrate()
    registry = Registry(root, database)
    registry.reconcile()
    assert registry.reconcile() == []
    ledger = signed_ledger(database, registry, root / "signing.key", root / "signing.pub", root / "heads.jsonl")
    jobs = JobBook(database)
    check_heads(root)
    for digest in registry.digests():
        assert registry.verify(digest) == []
    on_disk = {path.name for shelf in registry.artifacts.iterdir() for path in shelf.iterdir()}
    assert on_disk == set(registry.digests()) and not list(registry.incoming.iterdir())
    for channel in Channel:
        in_force = ledger.channel(channel)
        assert (in_force is None) == (not (root / channel).is_symlink())
        assert in_force is None or (root / channel).readlink().name == in_force
    for job in finished_jobs(database):
        result = jobs.result(job)
        assert result is not None and all(registry.holds(digest) for digest in result.outputs.values())
    database.close()
    with Reading(root / "kaizend.db") as reading:
        assert reading.problems() == []
        still_open = reading.open_cycles()
        opened = [row.cycle for row in reading.every_row() if row.event == "opened"]
        closed = [row.cycle for row in reading.every_row() if row.event == "closed"]
        assert {*closed, *(cycle.id for cycle in still_open)} == set(opened)
        assert len(closed) + len(still_open) == len(opened)
        for cycle in still_open:
            assert cycle.state == {"seen": cycle.state["seen"]}


def finished_jobs(database: Database) -> list[str]:
    with database.snapshot() as connection:
        return list(connection.exec_driver_sql("SELECT digest FROM jobs WHERE result IS NOT NULL").scalars())


def test_every_commit_of_the_ledger_has_a_moment_before_and_after_it() -> None:
    for file in ("ledger", "jobbook", "signer"):
        source = (STATE / f"{file}.py").read_text()
        for name in {name.rsplit(".", 1)[0] for name in POINTS if name.startswith(file)}:
            assert f'"{name}.before"' in source and f'"{name}.after"' in source


def test_a_kill_while_a_backup_is_written_leaves_the_old_file_to_be_migrated_again(tmp_path: Path) -> None:
    database = Database(tmp_path / "kaizend.db")
    database.migrate()
    database.close()
    code = (
        "import sys; from pathlib import Path; from state.database import Database\n"
        "Database(Path(sys.argv[1])).backup(Path(sys.argv[2]))"
    )
    target = tmp_path / "copy.db"
    killed = -signal.SIGKILL
    for failpoint, status in (("database.backup.begun", killed), ("database.backup.before", killed), ("", 0)):
        environment = os.environ | {"KAIZEND_FAILPOINT": failpoint, "PYTHONPATH": str(STATE.parent)}
        command = [sys.executable, "-c", code, str(tmp_path / "kaizend.db"), str(target)]
        assert subprocess.run(command, env=environment, check=False).returncode == status
        assert target.exists() == (status == 0)
    with Reading(target) as reading:
        assert reading.problems() == []
