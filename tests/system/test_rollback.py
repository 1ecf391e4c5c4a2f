"""The previous stable model is one command away: in seconds, without torch, recorded, and whole after any kill."""

import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import miniature
import pytest
from court import canned_court
from watching import asked, channels, complaint, kaizend, links_agree, previous, rows

from safety.release import nominate
from safety.rollback import rollback
from state.database import Database
from state.reading import Reading
from state.records import Channel, Verdict
from state.registry import Registry

LIMIT_SECONDS = 5.0
HEAVY = {"torch", "transformers", "numpy", "optuna", "alembic", "apscheduler", "structlog"}


def roll_back(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return kaizend(folder, "rollback", "--reason", "answers got longer", *words, **environment)


def test_a_rollback_takes_under_five_seconds_and_is_recorded(life: Path) -> None:
    before, earlier = channels(life), previous(life)
    began = time.monotonic()
    done = miniature.kaizend(life, "rollback", "--reason", "answers got longer", "--json")
    assert time.monotonic() - began < LIMIT_SECONDS
    row = rows(life)[-1]
    assert json.loads(done.stdout) == row.to_json()
    assert (row.event, row.verdict, row.reason, row.actor) == (
        "rollback", "ROLLED_BACK", "answers got longer", "operator")
    assert (row.base, row.result) == (before["stable"], earlier)
    assert channels(life) == {**before, "stable": earlier}
    assert links_agree(life)
    with Reading(life / "var" / "kaizend.db") as reading:
        assert reading.latches() == {before["stable"]: {"row": row.id, "reason": "answers got longer"}}
    assert kaizend(life, "verify").returncode == 0
    assert "ROLLED_BACK" in kaizend(life, "log", "-n", "1").stdout


def test_a_rollback_imports_nothing_heavy(life: Path) -> None:
    done = miniature.kaizend(life, "rollback", "--reason", "x", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "sqlalchemy" in imported
    assert not imported & HEAVY


def test_what_was_rolled_back_cannot_come_back(life: Path) -> None:
    released = [row for row in rows(life) if row.event == "release" and row.verdict == "PROMOTED"]
    for release in reversed(released):
        assert roll_back(life, "--working").returncode == 0
        assert channels(life)["working"] == channels(life)["stable"] == release.base
        assert "latched" in complaint(roll_back(life, "--to", str(release.id)))
    assert channels(life)["stable"] == rows(life)[0].result
    assert "no earlier stable model" in complaint(roll_back(life))
    assert "did not make a model stable" in complaint(roll_back(life, "--to", "5"))
    assert "needs a reason" in complaint(kaizend(life, "rollback", "--reason", " "))
    assert asked(life, "verify")["holds"]


@pytest.mark.parametrize("moment", [
    "ledger.append.before", "ledger.append.after", "registry.link.before", "registry.link.between",
    "registry.link.replaced", "registry.link.after",
])
def test_a_rollback_killed_at_any_moment_happened_whole_or_not_at_all(life: Path, moment: str) -> None:
    before, count, earlier = channels(life), len(rows(life)), previous(life)
    assert roll_back(life, KAIZEND_FAILPOINT=moment).returncode == -signal.SIGKILL
    after = channels(life)
    if moment == "ledger.append.before":
        assert (after, len(rows(life))) == (before, count)
    else:
        assert (after["stable"], rows(life)[-1].verdict) == (earlier, "ROLLED_BACK")
    database = Database(life / "var" / "kaizend.db")                  # as every start does
    Registry(life / "var", database).reconcile()
    database.close()
    assert channels(life) == after
    assert links_agree(life)
    assert asked(life, "verify")["holds"]


def test_a_rollback_and_a_release_take_turns(tmp_path: Path) -> None:
    """Between the gate's last look at what is in force and the row that moves it, no rollback comes in."""
    court = canned_court(tmp_path / "state")
    first = str(court.ledger.channel(Channel.STABLE))
    court.move_working(court.text_model("second"))
    assert nominate(court.desk) is not None
    court.move_working(court.text_model("third"))
    court.later(days=1)
    append, waiting, rolled_back = court.ledger.append, [], threading.Event()

    def at_leisure(entry, **more):
        if entry.verdict is Verdict.PROMOTED and not waiting:
            thread = threading.Thread(
                target=lambda: (rollback(court.ledger, court.registry, None, "bad"), rolled_back.set()))
            thread.start()
            waiting.append(thread)
            assert not rolled_back.wait(0.3)
        return append(entry, **more)

    court.ledger.append = at_leisure
    third = nominate(court.desk)
    waiting[0].join(LIMIT_SECONDS)
    assert third is not None
    last = list(court.ledger.rows())[-1]
    assert (last.verdict, last.base) == (Verdict.ROLLED_BACK, third.result)
    assert court.ledger.channel(Channel.STABLE) == last.result != first
    assert court.ledger.latched() == {third.result}
