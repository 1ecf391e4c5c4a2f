"""A nomination and a rollback killed at every named moment of the ledger, the registry and the job book."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from court import canned_court
from signatures import check_heads

from safety.history import Nominations
from safety.release import nominate
from state.chain import check_rows
from state.reading import Reading
from state.records import Channel, Verdict

ROOT = Path(__file__).parents[2]
NOMINATE = """
import sys; from pathlib import Path; from court import canned_court
from safety.release import nominate
nominate(canned_court(Path(sys.argv[1])).desk)
"""
ROLLBACK = """
import sys; from pathlib import Path; from court import canned_court
from safety.rollback import rollback
court = canned_court(Path(sys.argv[1])); rollback(court.ledger, court.registry, None, "bad", also_working=True)
"""


def process(code: str, state: Path, failpoint: str = "") -> int:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "KAIZEND_FAILPOINT": failpoint}
    return subprocess.run([sys.executable, "-c", code, str(state)], env=environment, cwd=ROOT).returncode


@pytest.mark.parametrize("failpoint", [
    "ledger.append.before:1", "ledger.append.after:1", "jobbook.started.after:3", "jobbook.finished.before:1",
    "jobbook.finished.after:2", "jobbook.finished.after:3", "ledger.append.before:2", "ledger.append.after:2",
    "signer.copied.before:1", "signer.copied.after:1", "signer.copied.before:2", "signer.copied.after:2",
])
def test_a_killed_nomination_ends_in_one_release_with_the_first_number(tmp_path: Path, failpoint: str) -> None:
    state = tmp_path / "state"
    court = canned_court(state)
    model = court.text_model("second")
    court.move_working(model)
    court.ledger.database.close()
    assert process(NOMINATE, state, failpoint) == -signal.SIGKILL
    again = canned_court(state)
    nominate(again.desk)
    nominations = Nominations.of(again.ledger)
    assert len(nominations.asked) == len(nominations.answered) == 1
    assert nominations.open is None
    row = nominations.answered[nominations.asked[0].id]
    assert (row.verdict, row.evidence["k"]) == (Verdict.PROMOTED, 1)
    assert again.ledger.channel(Channel.STABLE) == model
    assert (state / "stable" / "name.txt").read_text() == "second"
    assert check_rows(row.to_json() for row in again.ledger.rows()) == []
    check_heads(state)
    json.dumps(row.evidence, allow_nan=False)


@pytest.mark.parametrize("failpoint", [
    "ledger.append.before:1", "ledger.append.after:1", "signer.copied.before:1", "signer.copied.after:1",
])
def test_a_killed_rollback_happened_whole_or_not_at_all(tmp_path: Path, failpoint: str) -> None:
    state = tmp_path / "state"
    court = canned_court(state)
    first, second = court.ledger.channel(Channel.STABLE), court.text_model("second")
    court.move_working(second)
    nominate(court.desk)
    court.ledger.database.close()
    assert process(ROLLBACK, state, failpoint) == -signal.SIGKILL
    again = canned_court(state)
    stable, working = (again.ledger.channel(channel) for channel in (Channel.STABLE, Channel.WORKING))
    assert (stable, working, again.ledger.latched()) in ((second, second, set()), (first, first, {second}))
    assert again.registry.path(str(stable)) == (state / "stable").resolve()
    check_heads(state)


FIRST_SIGNED_START = """
import sys; from pathlib import Path; from court import canned_court
canned_court(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("failpoint", [
    "signing.made.before", "signing.made.after", "ledger.append.before", "ledger.append.after", "signer.copied.before",
    "signer.copied.after", "signing.public.before", "signing.public.after", "database.migrate.before",
])
def test_an_older_ledger_killed_while_its_key_is_made_names_one_key_once(tmp_path: Path, failpoint: str) -> None:
    state = tmp_path / "var"
    with tarfile.open(ROOT / "tests" / "old" / "state-0001.tar.gz") as tar:
        tar.extractall(tmp_path, filter="tar")
    assert process(FIRST_SIGNED_START, state, failpoint) == -signal.SIGKILL
    assert process(FIRST_SIGNED_START, state) == 0
    with Reading(state / "kaizend.db") as reading:
        assert reading.problems() == []
        assert [row.event for row in reading.every_row()].count("key") == 1
    check_heads(state)
