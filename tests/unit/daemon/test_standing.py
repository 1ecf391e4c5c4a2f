"""Where bounds stand is read from the nomination that says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.places import Places
from daemon.standing import readings_now
from safety.bounds import Bounds
from state.database import Database
from state.ledger import Ledger
from state.records import Entry, Event, Verdict
from state.registry import Registry


@pytest.mark.parametrize("refused", [{}, {"model": {"parameters": 7}}])
def test_a_nomination_that_was_refused_unmeasured_hides_no_reading_of_the_one_before(
    tmp_path: Path, refused: dict[str, Any]
) -> None:
    database = Database(tmp_path / "kaizend.db")
    database.migrate()
    ledger = Ledger(database, Registry(tmp_path, database))
    measured = {"drift_stable": {"kl_mean": 0.25}, "aa": {"noise": 0.125}}
    for verdict, evidence in ((Verdict.REJECTED, measured), (Verdict.REFUSED, refused)):
        ledger.append(Entry(Event.RELEASE, "answered", verdict=verdict, evidence=evidence))
    found = readings_now(Places(tmp_path / "kaizend.toml", tmp_path / "bounds.toml", tmp_path), Bounds())
    assert (found["drift.stable.kl_mean"], found["gate.max_noise"]) == (0.25, 0.125)
    assert found["rate.dwell_seconds"] >= 0
