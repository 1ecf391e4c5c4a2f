"""Faults at every named moment of the program: killed, an exception, a full disk, a failing one, a torn write, a clock
set back; and again in the start that repairs what the first one left.

The moments are found in the source, so a new one is struck here or named below with a reason. The daemon is the real
one, on models that are make-believe (`make_believe`), because hundreds of lives have to fit into a minute; kills of
lives with really trained models are in `test_daemon_killed`. After every fault the folder is looked at as it was left;
a life that is over must be that of an undisturbed run, row by row, unless the fault was an exception, which may have
become a verdict.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lives import PACKAGES, ROOT, Row, until
from mishaps import Plant, Victim, memory_folder
from watching import kaizend

from state.failpoints import Fault

TOTAL = 4                       # cycles of a life: a merge, a training with all three loops, a release, and again
POINTS = sorted({
    name for package in PACKAGES for source in sorted((ROOT / package).rglob("*.py"))
    for name in re.findall(r"failpoint\(\"([a-z.]+)\"\)", source.read_text())
})
IN_WORKERS = [point for point in POINTS if point.startswith("checkpoint.")]
IN_A_REPAIR = [point for point in POINTS if point.startswith("registry.finish.")]
OF_A_COMMAND = {
    ("gc", "--apply"): ["registry.remove.before", "registry.remove.between", "registry.remove.after"],
    ("backup", "kaizend.tar"): ["backup.copied", "backup.written", "backup.renamed"],
    ("restore", "../kaizend.tar", "--drill"): ["restore.unpacked", "restore.drilled"],
    ("restore", "../kaizend.tar"): ["restore.unpacked", "restore.verified", "restore.emptied", "registry.link.between"],
    ("rollback", "--reason", "bad"): [
        "ledger.append.before", "ledger.append.after", "registry.link.before", "registry.link.between",
        "registry.link.replaced", "registry.link.after",
    ],
    ("bounds", "loosen", "--reason", "more"): ["ledger.append.before", "ledger.append.after"],
}
ONLY_OF_A_COMMAND = {
    point for points in OF_A_COMMAND.values() for point in points
    if point.startswith(("registry.remove", "backup", "restore"))
}
EXCUSED = {
    "database.backup.before": "only the migration of an older file passes it: test_state_kills strikes it",
    "database.backup.begun": "as database.backup.before, and test_upgrades",
    "signer.copied.before": "only with a file elsewhere: test_state_kills strikes it",
    "signer.copied.after": "as signer.copied.before",
    "signer.last.before": "only a stop that parks passes it: test_state_kills strikes it",
    "signer.last.after": "as signer.last.before",
    "release.passed": "only where the operator has to approve: test_release_killed kills it",
    "watch.found": "only before a rollback by itself: test_release_killed kills it",
}
IN_A_LIFE = [
    point for point in POINTS if point not in {*IN_WORKERS, *IN_A_REPAIR, *ONLY_OF_A_COMMAND, *EXCUSED}
]
REPAIRS = [                     # a kill, and the moments that the start passes which repairs what it left
    ("registry.adopt.renamed:3", "registry.finish.before"), ("registry.adopt.intended:2", "registry.finish.after"),
    ("registry.adopt.synced:4", "registry.finish.before"), ("ledger.append.after:1", "registry.link.between"),
    ("ledger.append.after:1", "registry.link.replaced"), ("jobbook.finished.before:9", "jobbook.started.after"),
    ("ledger.close.before:2", "ledger.attempt.after"),
]
OF_THE_DISK = [Fault.ENOSPC, Fault.SHORT, Fault.EIO, Fault.SICK]
MANY = int(os.environ.get("FAULTS", "2000"))


@dataclass
class Toll:
    """What was struck, and what did not hold."""

    struck: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    lives: int = 0

    def count(self, victim: Victim) -> None:
        self.struck.update(fault.partition("=")[2] or "kill" for fault in victim.faults)
        victim.faults.clear()

    def told(self) -> dict[str, object]:
        return {"faults": self.struck.total(), "by kind": dict(self.struck), "lives": self.lives,
                "violations": len(self.violations)}


@dataclass
class Ward:
    """A plant and a folder for victims. `undisturbed` is the story of a life that nothing befell."""

    plant: Plant
    folder: Path
    first: Victim
    undisturbed: list[Row]
    toll: Toll = field(default_factory=Toll)
    made: int = 0

    def victim(self) -> Victim:
        self.made += 1
        return Victim.new(self.plant, self.folder / f"victim-{self.made}", TOTAL)

    def copy(self) -> Victim:
        """A life that is over."""
        self.made += 1
        return self.first.copied(self.folder / f"victim-{self.made}")

    def bury(self, victim: Victim, *, as_undisturbed: bool | None = True) -> None:
        """Live to the end, look at everything, and count."""
        found = victim.ended(self.undisturbed if as_undisturbed else None)
        self.toll.violations += [f"{' then '.join(victim.faults)}: {what}" for what in found]
        self.toll.count(victim)
        self.toll.lives += 1
        shutil.rmtree(victim.folder)


@pytest.fixture(scope="module")
def ward() -> Iterator[Ward]:
    folder = Path(tempfile.mkdtemp(prefix="kaizend-faults-", dir=memory_folder()))
    try:
        with Plant(folder) as plant:
            first = Victim.new(plant, folder / "first", TOTAL)
            assert first.live().status == 0
            yield Ward(plant, folder, first, first.life.story())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def toll(ward: Ward, record_property: Callable[[str, object], None]) -> Iterator[Toll]:
    """The toll of one test: without violations, and reported."""
    ward.toll = Toll()
    yield ward.toll
    record_property("figures", ward.toll.told())
    assert ward.toll.violations == []


def faults_of(ward: Ward) -> list[Fault]:
    """Those that can be made here: without the preloaded library an error of the disk is raised where it is named."""
    return list(Fault) if ward.plant.shim else [Fault.KILL, Fault.RAISE, Fault.ENOSPC, Fault.EIO]


def strike(ward: Ward, cases: Iterable[tuple[str, int, Fault]], *, as_undisturbed: bool = True) -> None:
    """Put the faults into one life after another, many into each. A passage that a whole life does not have is struck
    at the first one instead."""
    victim = ward.victim()
    for point, passage, fault in cases:
        for attempt in (f"{point}:{passage}={fault}", f"{point}={fault}"):
            ward.toll.violations += victim.breathe()
            found = victim.struck(attempt)
            if found is None:
                ward.bury(victim, as_undisturbed=as_undisturbed)
                victim = ward.victim()
                found = victim.struck(attempt)
            if found is not None:
                ward.toll.violations += found
                break
        else:
            ward.toll.violations.append(f"{point} is never passed")
    ward.bury(victim, as_undisturbed=as_undisturbed)


def strike_command(ward: Ward, words: tuple[str, ...], point: str, fault: Fault) -> None:
    """A command with a fault, the same one again, and a start."""
    victim = ward.copy()
    prepare(victim, words)
    found = victim.struck(f"{point}={fault}", *words)
    ward.toll.violations += [f"{words[0]}: {point} is never passed"] if found is None else found
    again = victim.command(*words)
    if again.status not in (0, 2) or len(again.complaint) != (again.status == 2):
        ward.toll.violations.append(f"{words[0]} after {point}={fault}: {again}")
    for left in [*victim.folder.parent.glob(".*.kaizend-*"), *victim.folder.glob(".*.kaizend-*")]:
        ward.toll.violations.append(f"{words[0]} after {point}={fault}: {left} was left")
    if words[0] != "backup":
        ward.bury(victim, as_undisturbed=None)
        return
    assert (victim.folder / "kaizend.tar").is_file()
    shutil.rmtree(victim.life.state)
    assert victim.command("restore", "kaizend.tar").status == 0
    ward.bury(victim)


def prepare(victim: Victim, words: tuple[str, ...]) -> None:
    """What the command needs to find."""
    if words[0] == "restore":
        if not (victim.folder.parent / "kaizend.tar").exists():
            assert victim.command("backup", "../kaizend.tar").status == 0
        shutil.rmtree(victim.life.state)
    if words[0] == "bounds":
        bounds = victim.folder / "bounds.toml"
        bounds.write_text(bounds.read_text().replace("margin = 0.2", "margin = 0.21"))


def strike_worker(ward: Ward, point: str, fault: Fault) -> None:
    victim = ward.victim()
    found = victim.struck_in_a_worker(f"{point}={fault}")
    ward.toll.violations += [f"{point} is never passed"] if found is None else found
    ward.bury(victim, as_undisturbed=fault is not Fault.RAISE)


def strike_twice(ward: Ward, first: str, again: str, fault: Fault) -> None:
    """A kill, and a fault in the start after it."""
    victim = ward.victim()
    for blow in (f"{first}=kill", f"{again}={fault}"):
        found = victim.struck(blow)
        ward.toll.violations += [f"{first}, {again}: never passed"] if found is None else found
    ward.bury(victim, as_undisturbed=fault is not Fault.RAISE)


# ------------------------------------------------------------------------------------------------- the default tests


def test_every_moment_in_the_source_is_struck_or_excused() -> None:
    of_commands = {point for points in OF_A_COMMAND.values() for point in points}
    assert of_commands <= set(POINTS)
    assert set(EXCUSED) <= set(POINTS)
    assert {again.partition(":")[0] for _, again in REPAIRS} >= set(IN_A_REPAIR)
    assert {*IN_A_LIFE, *IN_WORKERS, *IN_A_REPAIR, *of_commands, *EXCUSED} == set(POINTS)
    calls = [call for package in PACKAGES for source in (ROOT / package).rglob("*.py")
             for call in re.findall(r"failpoint\((?!name: str)[^)]*\)", source.read_text())]
    assert sorted(calls) == [f'failpoint("{point}")' for point in POINTS]                  # literals, each once


def test_a_fault_at_every_moment_of_a_life_leaves_it_as_if_nothing_had_happened(ward: Ward, toll: Toll) -> None:
    """Every moment once, the faults dealt out among them."""
    chance = random.Random("faults")
    dealt = [fault for fault in faults_of(ward) if fault not in (Fault.RAISE, Fault.CLOCK)]
    points = IN_A_LIFE[:]
    chance.shuffle(points)
    strike(ward, [(point, chance.randint(1, 4), dealt[i % len(dealt)]) for i, point in enumerate(points)])


def test_an_exception_becomes_a_verdict_or_one_clear_line(ward: Ward, toll: Toll) -> None:
    chance = random.Random("exceptions")
    points = chance.sample(IN_A_LIFE, 12)
    strike(ward, [(point, chance.randint(1, 5), Fault.RAISE) for point in points], as_undisturbed=False)


def test_a_clock_set_back_changes_nothing(ward: Ward, toll: Toll) -> None:
    if ward.plant.shim is None:
        pytest.skip("there is no C compiler here to make the library that sets the clock back")
    for point in ("jobbook.started.after", "ledger.append.after"):
        strike(ward, [(point, 3, Fault.CLOCK)])


def test_a_fault_in_any_command_leaves_a_folder_that_holds(ward: Ward, toll: Toll) -> None:
    chance, faults = random.Random("commands"), [fault for fault in faults_of(ward) if fault is not Fault.CLOCK]
    for words, points in OF_A_COMMAND.items():
        for point in points:
            strike_command(ward, words, point, chance.choice(faults))


def test_a_fault_in_a_worker_costs_no_verdict_unless_the_job_broke(ward: Ward, toll: Toll) -> None:
    for point, fault in zip(IN_WORKERS, (Fault.EIO, Fault.ENOSPC, Fault.KILL, Fault.ENOSPC), strict=True):
        strike_worker(ward, point, fault)


def test_a_second_fault_in_the_start_that_repairs(ward: Ward, toll: Toll) -> None:
    for (first, again), fault in zip(REPAIRS, (Fault.KILL, Fault.EIO, Fault.ENOSPC, Fault.EIO, *[Fault.KILL] * 3),
                                     strict=True):
        strike_twice(ward, first, again, fault)


# ------------------------------------------------------------------------------------------------- the long tests


@pytest.mark.long
@pytest.mark.parametrize("fault", list(Fault))
def test_the_fault_at_every_moment_at_many_passages(fault: Fault, ward: Ward, toll: Toll) -> None:
    """Passages spread over a life: start-up, each kind of cycle, the release."""
    if fault not in faults_of(ward):
        pytest.skip("there is no C compiler here")
    cases = [(point, passage, fault) for point in IN_A_LIFE for passage in (1, 2, 4, 7, 11, 16, 22)]
    random.Random(f"every {fault}").shuffle(cases)
    strike(ward, cases if fault is not Fault.CLOCK else cases[::3], as_undisturbed=fault is not Fault.RAISE)


@pytest.mark.long
def test_random_pairs_of_faults(ward: Ward, toll: Toll) -> None:
    """Two faults and more without a rest: the second often falls into the start that repairs what the first left."""
    chance = random.Random("pairs")
    faults = [fault for fault in faults_of(ward) if fault not in (Fault.RAISE, Fault.CLOCK)]
    moments = [*IN_A_LIFE, *IN_A_REPAIR]
    while toll.struck.total() < MANY // 2:
        victim = ward.victim()
        for _ in range(30):
            ward.toll.violations += victim.breathe()
            found = victim.struck(f"{chance.choice(moments)}:{chance.choice((1, 1, 1, 2, 3))}={chance.choice(faults)}")
            if found is None:
                break
            ward.toll.violations += found
        ward.bury(victim)


@pytest.mark.long
def test_every_fault_in_every_command_repair_and_worker(ward: Ward, toll: Toll) -> None:
    for fault in faults_of(ward):
        for words, points in OF_A_COMMAND.items():
            for point in points:
                strike_command(ward, words, point, fault)
        for point in IN_WORKERS:
            strike_worker(ward, point, fault)
        for first, again in REPAIRS:
            strike_twice(ward, first, again, fault)


def test_a_unit_that_is_stopped_and_started_again_disturbs_no_life(ward: Ward, toll: Toll) -> None:
    victim = ward.victim()
    life = victim.life
    process = life.start()
    try:
        until(lambda: life.finished_jobs() > 6)
        ward.plant.stop_unit()
        told = until(lambda: (said := kaizend(victim.folder, "status", "--json")).returncode == 1 and said)
        assert "the worker unit at" in json.loads(told.stdout)["state"]
        ward.plant.start_unit()
        assert life.ended(process) == 0, life.last_words()
    finally:
        life.end()
    ward.bury(victim)
