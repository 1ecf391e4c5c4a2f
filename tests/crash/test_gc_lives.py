"""gc in the middle of lives: what stays is enough for everything that comes after, and nothing is done twice.

The daemon is the real one on make-believe models. A life is stopped somewhere (killed inside a cycle, a nomination or
a watch, waiting for the operator, or over), `gc --apply` runs, and then: verify holds, every rollback that was allowed
still is, lineage and export of what is in force work, how its ancestors were made is known, and the life goes on as if
nobody had tidied.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mishaps import Plant, Victim, memory_folder

from safety.history import were_stable
from state.database import Database
from state.jobbook import JobBook
from state.reading import Reading
from state.records import Event, Row

TOTAL = 4                       # cycles of a life: a merge, a training with all three loops, a release, and again


@pytest.fixture(scope="module")
def plant() -> Iterator[Plant]:
    folder = Path(tempfile.mkdtemp(prefix="kaizend-gc-", dir=memory_folder()))
    try:
        with Plant(folder) as plant:
            yield plant
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def over(plant: Plant) -> Victim:
    """A life that is over, undisturbed. Do not change it."""
    victim = Victim.new(plant, plant.folder / "over", TOTAL)
    assert victim.live().status == 0
    return victim


@pytest.fixture
def victim(plant: Plant, request: pytest.FixtureRequest) -> Iterator[Victim]:
    folder = plant.folder / re.sub(r"\W+", "-", request.node.name)
    yield Victim.new(plant, folder, TOTAL)
    shutil.rmtree(folder)


def targets(folder: Path) -> list[int]:
    """Rows that `kaizend rollback --to` accepts."""
    with Reading(folder / "var" / "kaizend.db") as reading:
        latched, stable = reading.latches(), reading.channels()["stable"]["digest"]
        rows = [row for row in reading.every_row() if row.event in (Event.GENESIS, Event.RELEASE, Event.ROLLBACK)]
    return [model.row for model in were_stable(rows) if model.digest not in latched and model.digest != stable]


def made_of(folder: Path, model: str) -> list[str]:
    """The jobs that made a model and its ancestors."""
    database = Database(folder / "var" / "kaizend.db")
    try:
        jobs, found, queue = JobBook(database), list[str](), [model]
        for digest in queue:
            spec = jobs.maker(digest)
            if spec is not None and spec.digest not in found:
                found.append(spec.digest)
                queue += spec.inputs.values()
        return found
    finally:
        database.close()


def ancestry(folder: Path) -> list[str]:
    with Reading(folder / "var" / "kaizend.db") as reading:
        stable = reading.channels()["stable"]["digest"]
    return made_of(folder, stable)


def held(folder: Path) -> set[str]:
    """Artefacts that are there."""
    return {place.name for root in ("artifacts", "vault") for place in (folder / "var" / root).glob("*/*")}


def remembered_by_loops(victim: Victim) -> set[str]:
    """Digests in the states of the loops, and in the candidates of cycles that are open."""
    bodies = victim.life.query(
        "SELECT body FROM loop_states WHERE row IN (SELECT max(row) FROM loop_states GROUP BY loop)"
    )
    bodies += victim.life.query("SELECT candidate FROM cycles WHERE outcome IS NULL")
    return {digest for body, in bodies for digest in re.findall(r"[0-9a-f]{64}", body)}


def tidied(victim: Victim, record: Callable[[str, object], None]) -> int:
    """gc --apply, and everything that must hold right after it. Returns how many artefacts went."""
    folder = victim.folder
    allowed, made, lineage = targets(folder), ancestry(folder), victim.command("lineage").out
    remembered = held(folder) & remembered_by_loops(victim)
    said = victim.command("gc").out
    done = victim.command("gc", "--apply")
    assert done.status == 0, done.err
    again = victim.command("gc").out
    assert again.splitlines()[-1] == "0 artefacts, 0 bytes can go"
    stays = [line for line in said.splitlines() if line.startswith("stays")]
    assert set(stays) <= set(again.splitlines())               # a start or gc may finish keeping one more
    assert remembered <= held(folder)
    verified = victim.command("verify")
    assert verified.status == 0, verified.out
    assert victim.command("lineage").out == lineage and ancestry(folder) == made
    for number, row in enumerate(allowed):
        other = victim.copied(folder.with_name(f"{folder.name}-to-{number}"))
        back = other.command("rollback", "--to", str(row), "--reason", "still there")
        assert back.status == 0, back.err
        assert other.command("verify").status == 0
        assert other.command("export", "stable", "out").status == 0
        shutil.rmtree(other.folder)
    assert victim.command("export", "stable", "out").status == 0
    assert (folder / "out" / "config.json").is_file()
    shutil.rmtree(folder / "out")
    went = [int(line.split()[3].replace(",", "")) for line in said.splitlines() if line.startswith("goes")]
    record("figures", {"went": len(went), "bytes": sum(went), "stays": len(stays), "targets": len(allowed)})
    return len(went)


def row_of(victim: Victim, event: str) -> list[Row]:
    with Reading(victim.folder / "var" / "kaizend.db") as reading:
        return [row for row in reading.every_row() if row.event == event]


def test_after_a_life_that_is_over(over: Victim, record_property: Callable[[str, object], None]) -> None:
    victim = over.copied(over.folder.with_name("over-tidied"))
    assert tidied(victim, record_property) > 0
    longer = Victim(victim.plant, victim.folder, TOTAL + 3)
    undisturbed = over.copied(over.folder.with_name("over-longer"))
    undisturbed.total = TOTAL + 3
    longer.note_jobs()
    assert undisturbed.live().status == 0
    assert longer.ended(undisturbed.life.story()) == []


@pytest.mark.parametrize("moment", [
    *(f"jobbook.finished.after:{n}" for n in (6, 9, 13, 22, 27, 30, 32, 35)), "ledger.open.after:3",
    "ledger.close.before:2", "registry.adopt.renamed:9", "ledger.append.after:3", "watch.dealt:1", "watch.looked:2",
    "watch.looked:4",
])
def test_a_life_that_was_killed_goes_on_as_if_nobody_had_tidied(
    moment: str, over: Victim, victim: Victim, record_property: Callable[[str, object], None]
) -> None:
    found = victim.struck(f"{moment}=kill")
    assert found == []
    tidied(victim, record_property)
    assert victim.ended(over.life.story()) == []          # row by row, and no job that was finished is run again


def test_while_a_nomination_waits_for_the_operator(
    victim: Victim, record_property: Callable[[str, object], None]
) -> None:
    bounds = victim.folder / "bounds.toml"
    bounds.write_text(bounds.read_text().replace("[gate]", '[gate]\napproval = "required"'))
    assert victim.live().status == 0
    waits = row_of(victim, "passed")[-1]
    tidied(victim, record_property)
    assert victim.command("approve", str(waits.id), "--reason", "read it").status == 0
    assert victim.command("verify").status == 0
    assert victim.command("rollback", "--reason", "back").status == 0


def test_a_latched_model_is_kept_for_no_rollback_and_its_evidence_stays(victim: Victim) -> None:
    victim.total = 2
    assert victim.live().status == 0
    bad = next(row for row in row_of(victim, "release") if row.verdict == "PROMOTED")
    model, scores = str(bad.result)[:12], bad.evidence["scores"][:12]

    def said_of(digest: str) -> str:
        return next(line for line in victim.command("gc").out.splitlines() if digest in line)

    assert "in force: stable" in said_of(model)
    assert victim.command("rollback", "--working", "--reason", "worse in use").status == 0
    assert "stable" not in said_of(model) and "in force" not in said_of(model)
    assert victim.command("gc", "--apply").status == 0
    assert said_of(scores).startswith("stays")
    assert victim.command("verify").status == 0
    assert victim.command("rollback", "--to", str(bad.id), "--reason", "bring it back").status == 2
    assert victim.command("lineage", str(bad.id)).status == 0
    victim.total = TOTAL
    assert victim.ended(None) == []
