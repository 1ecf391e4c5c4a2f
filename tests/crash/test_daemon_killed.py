"""The real daemon on the miniature, killed for real: it resumes by itself and ends as if nothing had happened.

Every daemon is a process of its own, started each time with the same command. Several kills share one life, because
progress is kept; after every one the folder is looked at as the kill left it, and a life that is over is compared with
one that nobody disturbed, row by row and field by field.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from lives import PACKAGES, ROOT, Life, Row, Unit, alive, children_of, differences, frozen_house, kill, until
from miniature import copy_of

CYCLES = 6                      # merges, two releases' worth of nominations, and one training with all three loops
SPAN_SECONDS = 4.0              # random moments lie so long after the start of the process: a third in the start-up
BOOT_SECONDS = 20.0             # the same where the workers' imports come in between
FIFTY, TEN = 50, 10
PATIENCE = 2                    # attempts in vain, of the three there are; then the next kill waits for progress

POINTS = sorted({
    name for package in PACKAGES for source in sorted((ROOT / package).rglob("*.py"))
    for name in re.findall(r"failpoint\(\"([a-z.]+)\"\)", source.read_text())
})
IN_WORKERS = {"checkpoint.before", "checkpoint.unsealed", "checkpoint.unnamed", "checkpoint.after"}
AFTER_A_KILL = {"registry.finish.before", "registry.finish.after"}
AT_THE_FIRST_START = {
    "database.migrate.before", "database.migrate.after", "registry.copy.before", "registry.copy.after",
    "signing.made.before", "signing.made.after", "signing.public.before", "signing.public.after",
}
NOT_IN_A_CYCLE = {
    "database.backup.before": "only `kaizend backup` and a migration of an old file pass it: test_state_kills kills it",
    "database.backup.begun": "as database.backup.before",
    "registry.remove.before": "only `kaizend gc` passes it, while no daemon runs: test_state_kills kills it",
    "registry.remove.between": "as registry.remove.before",
    "registry.remove.after": "as registry.remove.before",
    "signer.last.before": "only a stop that parks passes it: test_state_kills kills it",
    "signer.last.after": "as signer.last.before",
    "release.passed": "only where the operator has to approve: test_release_killed kills it",
    "watch.found": "only before a rollback by itself: test_release_killed kills it",
} | {
    point: "only `kaizend backup` and `kaizend restore` pass it: test_faults strikes it"
    for point in POINTS if point.startswith(("backup.", "restore."))
}
IN_CYCLES = [
    point for point in POINTS if point not in {*IN_WORKERS, *AT_THE_FIRST_START, *AFTER_A_KILL, *NOT_IN_A_CYCLE}
]
RECOVERIES = [                  # a kill, and a second one in the start that brings disk and tables together after it
    ("ledger.append.after", "registry.link.replaced"),                 # the links are made with the row of the genesis
    ("registry.link.between", "registry.link.between"),
    ("registry.adopt.renamed", "registry.finish.before"),
    ("registry.adopt.intended", "registry.finish.before"),
    ("registry.adopt.synced", "registry.finish.after"),
    ("jobbook.finished.before", "jobbook.started.after"),
    ("ledger.close.before", "ledger.attempt.after"),
]
A_FEW = [
    "signer.copied.before", "ledger.append.before:2", "registry.adopt.renamed:2", "jobbook.finished.before:2",
    "ledger.close.after",
]
NewLife = Callable[..., Life]


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    base = tmp_path_factory.mktemp("killed")
    with Unit(frozen_house(base / "house"), base / "unit.sock") as unit:
        yield unit


@pytest.fixture
def new_life(trained: Path, unit: Unit, tmp_path: Path) -> Iterator[NewLife]:
    lives: list[Life] = []

    def one(total: int = CYCLES) -> Life:
        folder = copy_of(trained, tmp_path / f"life-{len(lives)}")
        lives.append(Life(unit.house, folder, unit, total))
        return lives[-1]

    yield one
    unit.tell_workers()
    for life in lives:
        life.end()


@pytest.fixture(scope="module")
def undisturbed(trained: Path, unit: Unit, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The story of a life in which nobody was killed."""
    life = Life(unit.house, copy_of(trained, tmp_path_factory.mktemp("undisturbed") / "life"), unit, CYCLES)
    life.finish()
    assert life.jobs() and all(starts == 1 for starts, _ in life.jobs().values())
    return life.story()


# ------------------------------------------------------------------------------------------------- what must hold


def check(life: Life, undisturbed: list[Row], *, exact: bool = True) -> None:
    """All that must hold once a disturbed life is over. `exact`: every kill was aimed, so starts can be counted."""
    assert life.verify()["problems"] == []
    assert life.problems() == []
    (stable,) = life.query("SELECT digest FROM channels WHERE name = 'stable'")
    assert (life.state / "stable").resolve().name == stable[0]
    assert life.query("SELECT id FROM cycles WHERE outcome IS NULL") == []
    assert life.query("SELECT id FROM intents WHERE settled IS NULL") == []
    assert not list((life.state / "incoming").iterdir())
    assert not [path for path in (life.state / "jobs").iterdir() if len(path.name) == 64]
    assert life.wasted() == []
    jobs = life.jobs()
    assert all(done for _, done in jobs.values())
    if exact:
        assert {job: starts for job, (starts, _) in jobs.items()} == {job: 1 + life.hits.get(job, 0) for job in jobs}
    else:
        assert sum(starts - 1 for starts, _ in jobs.values()) <= life.kills           # parking counts as one
    assert differences(undisturbed, life.story()) == []


def check_overlapping(life: Life, left: Sequence[list[int]]) -> None:
    """What holds with several workers: `left` are the outermost cycles that each kill met."""
    assert life.verify()["problems"] == []
    assert life.problems() == []
    assert life.wasted() == []
    assert life.query("SELECT id FROM cycles WHERE outcome IS NULL") == []
    rows = life.rows()
    opened = [row for row in rows if row["event"] == "opened" and row["parent"] is None]
    closed = {row["cycle"]: row for row in rows if row["event"] == "closed"}
    assert sorted(row["evidence"]["ordinal"] for row in opened) == list(range(life.total))
    assert all(row["verdict"] in ("PROMOTED", "REJECTED", "REFUSED") for row in closed.values())
    merges = [json.dumps(row["change"], sort_keys=True) for row in opened if row["change"]["kind"] != "keep"]
    assert len(set(merges)) == len(merges)                        # to train what there is may be proposed again
    assert len(merges) >= life.total // 2
    for cycles in left:                                            # nothing was begun before they had ended
        after = [row["id"] for row in opened if row["id"] > max(cycles)]
        assert all(closed[cycle]["id"] < min(after) for cycle in cycles)


def roots_open(life: Life) -> list[int]:
    """The outermost cycles that are open now."""
    if not (life.state / "kaizend.db").exists():
        return []
    return [id for id, in life.query("SELECT id FROM cycles WHERE parent = 0 AND outcome IS NULL ORDER BY id")]


# ------------------------------------------------------------------------------------------------- ways to be killed


def breathe(life: Life, most: int = PATIENCE) -> None:
    """Where the cycle at hand was killed in vain too often, let it finish one job, and kill the daemon there."""
    if life.attempts_in_vain() < most:
        return
    done, process = life.finished_jobs(), life.start()
    until(lambda: life.finished_jobs() > done or process.poll() is not None)
    life.kill(process)


def killed_at(life: Life, point: str, *, gently: bool = True) -> bool:
    """Live until a named moment kills the daemon. False when the life is over without having passed it.

    Three kills of one cycle without any progress close it, which has a test of its own: `gently` stops before that.
    """
    if gently:
        breathe(life)
    process = life.start(KAIZEND_FAILPOINT=point)
    if life.ended(process) == 0:
        return False
    life.buried(process)
    assert life.problems() == []
    return True


def killed_twice(life: Life, first: str, again: str) -> None:
    """Be killed at a named moment, and at another by the very next start."""
    breathe(life, 1)
    assert killed_at(life, first, gently=False), first
    assert killed_at(life, again, gently=False), again


def worker_killed_at(life: Life, point: str, mark: Path) -> bool:
    """Live until a named moment kills a worker, once; then kill the daemon, when it has gone on for a moment."""
    assert life.unit is not None
    breathe(life)
    life.unit.tell_workers(KAIZEND_FAILPOINT=point, KAIZEND_FAILPOINT_ONCE=str(mark))
    life.renew_nursery()
    process = life.start()
    until(lambda: mark.exists() or process.poll() is not None)
    if not mark.exists():
        return False
    life.note_worker()
    life.kill(process)
    life.unit.tell_workers()
    life.renew_nursery()
    assert life.problems() == []
    return True


def killed_at_random(
    life: Life, chance: random.Random, *, workers: bool = False, span_seconds: float = SPAN_SECONDS
) -> bool:
    """Live for a random time, then be killed. False when the life was over before."""
    in_vain, done = life.attempts_in_vain(), life.finished_jobs()
    process = life.start()
    if in_vain >= PATIENCE:
        until(lambda: life.finished_jobs() > done or process.poll() is not None)
    deadline = time.monotonic() + chance.uniform(0, span_seconds)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if not life.kill(process, workers=workers):
        return False
    assert life.problems() == []
    return True


def workers_killed_at_random(life: Life, chance: random.Random, most: int) -> int:
    """One life of the daemon in which a busy worker is killed every second or so. Returns how many were."""
    assert life.unit is not None
    process, killed, done = life.start(), 0, 0
    while process.poll() is None and killed < most:
        time.sleep(chance.uniform(0.2, 1.2))
        until(lambda done=done: process.poll() is not None or life.finished_jobs() > done)
        done = life.finished_jobs()                                # a job is killed once: never three times in a row
        killed += sum(kill(pid) for pid in life.unit.workers()[:1])
    assert life.ended(process) == 0, life.last_words()
    life.kills += killed
    return killed


def parked(life: Life, after_seconds: float | None = None) -> bool:
    """Live for a while (None: until a training is at work), then be stopped in an orderly way. Whether it parked."""
    log = life.folder / "daemon.log"
    before = log.read_text().count("parked") if log.exists() else 0
    started = "SELECT count(*) FROM job_starts JOIN jobs USING (digest) WHERE kind IN ('train', 'segment')"
    known, process = life.query(started), life.start()
    if after_seconds is None:
        until(lambda: process.poll() is not None or life.query(started) != known)
    else:
        time.sleep(after_seconds)
    process.send_signal(signal.SIGTERM)
    status = life.ended(process)
    assert status in (0, -signal.SIGTERM), life.last_words()       # before it serves, the kernel's own answer
    life.note()
    life.kills += 1
    return log.read_text().count("parked") > before


# ------------------------------------------------------------------------------------------------- the default tests


def test_every_failpoint_in_the_source_is_exercised_or_excused() -> None:
    groups = [IN_WORKERS, AT_THE_FIRST_START, AFTER_A_KILL, set(NOT_IN_A_CYCLE), set(IN_CYCLES)]
    assert sorted(point for group in groups for point in group) == POINTS
    assert {point.partition(":")[0] for point in A_FEW} <= set(IN_CYCLES)
    assert {again for _, again in RECOVERIES} >= AFTER_A_KILL
    calls = [call for package in PACKAGES for source in (ROOT / package).rglob("*.py")
             for call in re.findall(r"failpoint\((?!name: str)[^)]*\)", source.read_text())]
    assert sorted(calls) == [f'failpoint("{point}")' for point in POINTS]                  # literals, each once


def test_killed_and_parked_at_random_moments_it_ends_as_if_nothing_had_happened(
    new_life: NewLife, undisturbed: list[Row]
) -> None:
    """The daemon, then daemon and workers at once, then SIGTERM, then workers alone until the life is over."""
    life, chance = new_life(), random.Random(11)
    for workers in (False, True, True):
        assert killed_at_random(life, chance, workers=workers)
    while not life.query("SELECT 1 FROM ledger WHERE event = 'genesis'"):
        breathe(life, 0)                                           # before that no daemon serves, and none parks
    life.change("stop_seconds = 5", "stop_seconds = 0")            # what is in flight is put aside, not waited for
    parked(life, 0.2)
    assert any(parked(life) for _ in range(6))
    assert workers_killed_at_random(life, chance, 5) >= 1
    check(life, undisturbed, exact=False)


def test_killed_at_named_moments_and_while_it_recovers_it_ends_as_if_nothing_had_happened(
    new_life: NewLife, undisturbed: list[Row], tmp_path: Path
) -> None:
    life = new_life()
    assert killed_at(life, "registry.copy.after")
    for first, again in RECOVERIES[1:3]:
        killed_twice(life, first, again)
    for point in A_FEW:
        assert killed_at(life, point), point
    assert worker_killed_at(life, "checkpoint.unnamed", tmp_path / "once")
    life.finish()
    check(life, undisturbed)


def test_a_cycle_that_takes_the_daemon_down_three_times_is_crashed_and_the_next_one_runs(new_life: NewLife) -> None:
    life = new_life(total=2)
    assert killed_at(life, "ledger.attempt.before:2")              # a first start, A/A, up to the first cycle
    for _ in range(4):                                             # the fourth time it is the second cycle that dies
        assert killed_at(life, "runner.started", gently=False)
    life.finish()
    first, second = [row for row in life.rows() if row["event"] == "closed"]
    assert first["verdict"] == "CRASHED"
    assert "took the daemon down 3 times" in first["reason"]
    assert second["verdict"] in ("PROMOTED", "REJECTED")
    assert life.verify()["problems"] == []


def test_killed_while_its_own_workers_boot_it_leaves_nobody_behind_and_no_attempt_counts(new_life: NewLife) -> None:
    life = new_life(total=1)
    assert killed_at(life, "ledger.attempt.after")
    life.on_its_own()
    for delay in (0.2, 2.5):                                       # the imports take longer than that
        process = life.start()
        time.sleep(delay)
        family = [*(found := children_of(process.pid)), *(pid for child in found for pid in children_of(child))]
        life.kill(process)
        until(lambda family=family: not any(alive(pid) for pid in family), 2)
    assert life.query("SELECT max(count) FROM attempts") == [(1,)]
    assert life.problems() == []


def test_with_two_workers_cycles_overlap_and_kills_lose_nothing(new_life: NewLife) -> None:
    """No disturbed life equals another one here; all else holds. After a kill, what was in flight ends one by one."""
    life, left = new_life(total=16), list[list[int]]()
    life.change("workers = 1", "workers = 2")
    for workers in (False, True):
        process = life.start()
        until(lambda process=process: process.poll() is not None or len(roots_open(life)) == 2)
        assert life.kill(process, workers=workers)
        assert life.problems() == []
        left.append(roots_open(life))
    life.finish()
    assert [len(cycles) for cycles in left] == [2, 2]
    check_overlapping(life, left)


# ------------------------------------------------------------------------------------------------- the long tests


@pytest.mark.long
@pytest.mark.parametrize("whom", ["daemon", "both"])
def test_fifty_random_kills_of(
    whom: str, new_life: NewLife, undisturbed: list[Row], record_property: Callable[[str, object], None]
) -> None:
    kills, lives, met, chance = 0, 0, 0, random.Random(f"fifty {whom}")
    while kills < FIFTY:
        life = new_life()
        while kills < FIFTY and killed_at_random(life, chance, workers=whom == "both"):
            kills += 1
        life.finish()
        check(life, undisturbed)
        lives, met = lives + 1, met + sum(life.hits.values())
    record_property("figures", {"kills": kills, "lives": lives, "jobs met": met, "seed": f"fifty {whom}"})


@pytest.mark.long
def test_fifty_random_kills_of_workers(
    new_life: NewLife, undisturbed: list[Row], record_property: Callable[[str, object], None]
) -> None:
    kills, lives, chance = 0, 0, random.Random("fifty workers")
    while kills < FIFTY:
        life = new_life()
        kills += workers_killed_at_random(life, chance, FIFTY - kills)
        check(life, undisturbed, exact=False)
        lives += 1
    record_property("figures", {"kills": kills, "lives": lives, "seed": "fifty workers"})


@pytest.mark.long
def test_a_kill_at_every_failpoint(
    new_life: NewLife, undisturbed: list[Row], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each at a passage drawn from the first three; where a life is over before, again at the first of a new life."""
    chance, lives = random.Random("failpoints"), 0
    left = [*sorted(AT_THE_FIRST_START), *IN_CYCLES, *sorted(IN_WORKERS)]
    passages = {point: chance.randint(1, 3) if point in IN_CYCLES else 1 for point in left}
    while left:
        life, before = new_life(), len(left)
        for point in list(left):
            worker = point in IN_WORKERS
            named = f"{point}:{passages[point]}"
            if not (worker_killed_at(life, point, tmp_path / point) if worker else killed_at(life, named)):
                assert passages[point] > 1 or len(left) < before, f"{point} is never passed"
                passages[point] = 1
                break
            left.remove(point)
        life.finish()
        check(life, undisturbed)
        lives += 1
    record_property("figures", {"points": len(passages), "lives": lives, "seed": "failpoints"})


@pytest.mark.long
def test_a_second_kill_in_every_recovery(
    new_life: NewLife, undisturbed: list[Row], record_property: Callable[[str, object], None]
) -> None:
    life = new_life()
    for first, again in RECOVERIES:
        killed_twice(life, first, again)
    life.finish()
    check(life, undisturbed)
    record_property("figures", {"kills": life.kills, "lives": 1})


@pytest.mark.long
def test_random_kills_of_a_daemon_that_boots_its_own_workers(
    new_life: NewLife, undisturbed: list[Row], record_property: Callable[[str, object], None]
) -> None:
    kills, lives, chance = 0, 0, random.Random("own workers")
    while kills < TEN:
        life = new_life()
        life.on_its_own()
        while kills < TEN and killed_at_random(life, chance, span_seconds=BOOT_SECONDS):
            kills += 1
        life.finish()
        check(life, undisturbed)
        lives += 1
    record_property("figures", {"kills": kills, "lives": lives, "seed": "own workers"})
