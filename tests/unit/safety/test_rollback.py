"""Rolling back: where to, what is latched, and when there is nowhere to go."""

import subprocess
import sys
from pathlib import Path

import pytest
from court import Court, canned_court

from safety.history import reference, stable_history
from safety.rollback import RollbackError, rollback
from state.records import Actor, Channel, Entry, Event, Verdict


def released(tmp_path: Path, *names: str) -> tuple[Court, list[str]]:
    court = canned_court(tmp_path / "state")
    models = [str(court.ledger.channel(Channel.STABLE))]
    for name in names:
        models.append(court.text_model(name))
        court.ledger.append(Entry(Event.RELEASE, "better", verdict=Verdict.PROMOTED, base=models[-2], result=models[-1],
                                  evidence={"nomination": 0}), move=(Channel.STABLE, models[-1]))
    return court, models


def test_the_previous_stable_model_comes_back_and_the_bad_one_is_latched(tmp_path: Path) -> None:
    court, models = released(tmp_path, "a", "b")
    row = rollback(court.ledger, court.registry, None, "worse in use")
    assert (row.verdict, row.base, row.result, row.actor) == (
        Verdict.ROLLED_BACK, models[2], models[1], Actor.OPERATOR)
    assert court.ledger.channel(Channel.STABLE) == models[1]
    assert court.ledger.latched() == {models[2]}
    assert (court.root / "stable" / "name.txt").read_text() == "a"


def test_working_stays_unless_it_is_told_to_come_along(tmp_path: Path) -> None:
    court, models = released(tmp_path, "a", "b")
    court.move_working(models[2])
    rollback(court.ledger, court.registry, None, "bad")
    assert court.ledger.channel(Channel.WORKING) == models[2]
    rollback(court.ledger, court.registry, None, "bad too", also_working=True)
    assert court.ledger.channel(Channel.WORKING) == court.ledger.channel(Channel.STABLE) == models[0]


def test_a_second_rollback_goes_further_back_and_never_to_a_latched_model(tmp_path: Path) -> None:
    court, models = released(tmp_path, "a", "b")
    assert rollback(court.ledger, court.registry, None, "1").result == models[1]
    assert rollback(court.ledger, court.registry, None, "2").result == models[0]
    with pytest.raises(RollbackError, match="no earlier"):
        rollback(court.ledger, court.registry, None, "3")


def test_after_a_rollback_and_a_new_release_the_previous_one_is_where_the_rollback_led(tmp_path: Path) -> None:
    court, models = released(tmp_path, "a", "b")
    rollback(court.ledger, court.registry, None, "bad")
    new = court.text_model("c")
    court.ledger.append(Entry(Event.RELEASE, "better", verdict=Verdict.PROMOTED, base=models[1], result=new,
                              evidence={"nomination": 0}), move=(Channel.STABLE, new))
    assert rollback(court.ledger, court.registry, None, "bad again").result == models[1]


def test_a_row_that_made_a_model_stable_can_be_named(tmp_path: Path) -> None:
    court, models = released(tmp_path, "a", "b", "c")
    wanted = stable_history(court.ledger)[-3]
    assert rollback(court.ledger, court.registry, wanted.row, "to a").result == models[1] == wanted.digest


def test_what_cannot_be_gone_back_to_is_one_line_in_words(tmp_path: Path) -> None:
    court, models = released(tmp_path, "a", "b")
    ledger, registry = court.ledger, court.registry
    rows = {model.digest: model.row for model in stable_history(ledger)}
    for to, words in ((999, "did not make"), (rows[models[2]], "already")):
        with pytest.raises(RollbackError, match=words):
            rollback(ledger, registry, to, "why")
    with pytest.raises(RollbackError, match="reason"):
        rollback(ledger, registry, None, " ")
    rollback(ledger, registry, None, "bad")
    with pytest.raises(RollbackError, match="latched"):
        rollback(ledger, registry, rows[models[2]], "why")
    court.move_working(models[1])
    registry.remove(models[0])
    with pytest.raises(RollbackError, match="no longer holds"):
        rollback(ledger, registry, None, "why")
    assert ledger.channel(Channel.STABLE) == models[1]


def test_rejected_releases_were_never_stable(tmp_path: Path) -> None:
    court, models = released(tmp_path, "a")
    court.ledger.append(Entry(Event.RELEASE, "no", verdict=Verdict.REJECTED, result=court.text_model("x"),
                              evidence={"nomination": 0}))
    assert {model.digest for model in stable_history(court.ledger)} == set(models)
    assert reference(court.ledger) == models[0]


def test_neither_rolling_back_nor_deciding_a_release_imports_torch() -> None:
    modules = "safety.rollback, safety.release, safety.preflight, safety.breaker, safety.audit"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "False"
