"""Through the real program: what passed waits for approve or reject, and a worse release is rolled back by itself."""

import json
import shutil
from pathlib import Path

import miniature
import pytest
from watching import asked, channels, complaint, kaizend, links_agree, rows, serving, stop, until

from safety.bounds import load_bounds
from safety.closing import Answer, close
from state.database import Database
from state.records import Entry, Event, Row, Verdict
from state.registry import Registry
from state.signed import signed_ledger


@pytest.fixture(scope="module")
def held(finished: Path, begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like the finished one up to its first release, which here waits for the operator. Do not change it."""
    story = rows(finished)
    first = next(row for row in story if row.event == "release" and row.verdict == "PROMOTED")
    cycles = sum(row.event == "opened" and row.parent is None for row in story if row.id < first.id)
    folder = tmp_path_factory.mktemp("held") / "mini"
    shutil.copytree(begun, folder)
    bounds = folder / "bounds.toml"
    bounds.write_text(bounds.read_text().replace("[gate]", '[gate]\napproval = "required"'))
    done = miniature.kaizend(folder, "run", "--cycles", str(cycles))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def waits(held: Path, tmp_path: Path) -> tuple[Path, Row]:
    """A copy for this test alone, and the row that waits."""
    folder = Path(shutil.copytree(held, tmp_path / "waits", symlinks=True))
    return folder, rows(folder)[-1]


def test_what_passed_is_shown_and_stable_stays(waits: tuple[Path, Row]) -> None:
    folder, row = waits
    assert row.event == "passed"
    body = asked(folder, "status")
    assert body["waiting"] == {"row": row.id, "k": 1, "model": row.result, "reason": row.reason}
    assert f"kaizend approve {row.id}" in kaizend(folder, "status").stdout
    assert "waits for approval" in kaizend(folder, "log", "-n", "1").stdout
    assert channels(folder)["stable"] == rows(folder)[0].result
    assert asked(folder, "verify")["holds"]


def test_approve_without_a_daemon_releases_and_the_next_start_watches(waits: tuple[Path, Row]) -> None:
    folder, row = waits
    assert f"row {row.id} does" in complaint(kaizend(folder, "approve", "1", "--reason", "x"))
    assert "needs a reason" in complaint(kaizend(folder, "approve", str(row.id), "--reason", " "))
    done = kaizend(folder, "approve", str(row.id), "--reason", "read it", "--json")
    release = json.loads(done.stdout)
    assert (done.returncode, release["verdict"], release["actor"]) == (0, "PROMOTED", "operator")
    assert channels(folder)["stable"] == row.result
    assert links_agree(folder)
    body = asked(folder, "status")
    assert (body["waiting"], body["watch"]["row"]) == (None, release["id"])
    assert "no nomination waits" in complaint(kaizend(folder, "approve", str(row.id), "--reason", "again"))
    assert miniature.kaizend(folder, "run", "--cycles", "1").returncode == 0
    ended = next(each for each in rows(folder) if each.event in ("watched", "rollback"))
    assert ended.evidence["watch"]["release"] == release["id"]
    assert asked(folder, "status")["watch"] is None
    assert asked(folder, "verify")["problems"] == []


def test_reject_through_the_running_daemon(waits: tuple[Path, Row]) -> None:
    folder, row = waits
    (folder / "var" / "STOP").touch()
    with serving(folder) as process:
        done = kaizend(folder, "reject", str(row.id), "--reason", "too terse")
        assert (done.returncode, done.stdout) == (0, f"{str(row.result)[:12]} is rejected (row {row.id + 1})\n")
        assert stop(process, 10) == 0
    last = rows(folder)[-1]
    assert (last.event, last.verdict, last.reason, last.actor) == ("release", "REJECTED", "too terse", "operator")
    assert channels(folder)["stable"] == rows(folder)[0].result
    assert asked(folder, "verify")["holds"]


def test_an_approval_after_the_bounds_were_tightened_comes_too_late(waits: tuple[Path, Row]) -> None:
    folder, row = waits
    bounds = folder / "bounds.toml"
    bounds.write_text(bounds.read_text().replace("margin = 0.2", "margin = 0.1"))
    said = f"would refuse now: the nomination that waits (row {row.id}): guards.margin of maths1: 0.2 is outside 0.1"
    assert said in kaizend(folder, "bounds", "check").stdout
    done = kaizend(folder, "approve", str(row.id), "--reason", "fine")
    assert done.returncode == 1
    assert "approved too late: guards.margin" in done.stdout
    assert channels(folder)["stable"] == rows(folder)[0].result


def plant_a_worse_release(folder: Path) -> Row:
    """Make the base model stable by rows that no gate wrote: as good as a gate that was wrong."""
    story = rows(folder)
    real = next(row for row in story if row.event == "release" and row.verdict == "PROMOTED")
    asked_for = next(row for row in story if row.id == real.evidence["nomination"])
    database = Database(folder / "var" / "kaizend.db")
    registry = Registry(folder / "var", database)
    var = folder / "var"
    ledger = signed_ledger(database, registry, var / "signing.key", var / "signing.pub", None)
    nomination = ledger.append(Entry(
        Event.NOMINATED, "planted", base=channels(folder)["stable"], result=story[0].change["base"],
        evidence={
            **asked_for.evidence, "k": 1 + sum(row.event == "nominated" for row in story),
            "releases": sum(row.event == "release" and row.verdict == "PROMOTED" for row in story),
        },
    ))
    answer = Answer(Verdict.PROMOTED, "planted", {"decision": "release"})
    row = close(ledger, registry, nomination, answer, load_bounds(folder / "bounds.toml"))
    database.close()
    return row


def test_a_release_that_is_worse_on_new_items_is_rolled_back_by_itself(life: Path) -> None:
    before = channels(life)["stable"]
    planted = plant_a_worse_release(life)
    assert channels(life)["stable"] == planted.result
    assert asked(life, "status")["watch"]["row"] == planted.id
    with serving(life) as process:
        until(lambda: any(row.event == "rollback" for row in rows(life)), 120)
        assert stop(process, 20) == 0
    row = next(row for row in rows(life) if row.event == "rollback")
    assert (row.verdict, row.actor, row.base, row.result) == ("ROLLED_BACK", "loop", planted.result, before)
    assert "worse than the model it replaced on new items" in row.reason
    found = row.evidence["watch"]
    assert (found["release"], found["worse"]) == (planted.id, "targets")
    assert found["n"]["targets"] <= 2000
    assert channels(life)["stable"] == before
    assert links_agree(life)
    complaints = asked(life, "verify")["problems"]
    assert complaints == [f"row {planted.id}: became stable without per-item scores"]       # and nothing else
    assert "is latched" in complaint(kaizend(life, "rollback", "--to", str(planted.id), "--reason", "bring it back"))
