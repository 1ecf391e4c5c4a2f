"""What an operator does: pause, resume, drain, roll back, loosen bounds.

A command goes to the running daemon by its socket; where none is running, what can be done without it is done here,
under the same lock. No torch, no network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.control import NotRunning, ask
from daemon.places import Places
from daemon.reports import out, places_of
from safety.bounds import load_bounds, loosened
from state.errors import UserError
from state.records import Actor, JsonObject, Row, Verdict

if TYPE_CHECKING:                                   # SQLAlchemy is for those commands that need it
    from state.ledger import Ledger
    from state.registry import Registry


def ask_daemon(config: Path | None, request: JsonObject) -> str:
    """Send one request to the running daemon; its state in words. Raises UserError when none is running."""
    return str(_answer(places_of(config), request)["state"])


def _answer(places: Places, request: JsonObject) -> JsonObject:
    answer = ask(places.socket, request)
    if "error" in answer:
        raise UserError(str(answer["error"]))
    return answer


def roll_back(config: Path | None, reason: str, to: int | None, working: bool, as_json: bool) -> None:
    """Move stable back, through the daemon or, where none is running, directly."""
    places = places_of(config)
    request = {"command": "rollback", "reason": reason, "to": to, "working": working}
    try:
        row = _answer(places, request)
    except NotRunning:
        row = _roll_back_alone(places, reason, to, working)
    if as_json:
        out(row)
        return
    again, latched = row["result"][:12], row["base"][:12]
    print_line(f"stable is {again} again; {latched} is latched and cannot return (row {row['id']})")


def _roll_back_alone(places: Places, reason: str, to: int | None, working: bool) -> JsonObject:
    from safety.rollback import rollback

    return _alone(places, "nothing to roll back", lambda ledger, registry: rollback(
        ledger, registry, to, reason, Actor.OPERATOR, also_working=working
    ))


def _alone(places: Places, nothing: str, act: Callable[[Ledger, Registry], Row]) -> JsonObject:
    """An act on the ledger where no daemon runs, under the daemon's lock. Returns its row."""
    from daemon.lock import Lock
    from state.database import Database
    from state.registry import Registry
    from state.signed import signed_ledger

    if not places.database.is_file():
        raise UserError(f"there is no ledger at {places.database}: {nothing}")
    with Lock(places.state / "lock"):
        database = Database(places.database)
        try:
            database.migrate()
            registry = Registry(places.state, database)
            registry.reconcile()
            ledger = signed_ledger(database, registry, places.signing_key, places.public_key, places.heads_file)
            row = act(ledger, registry)
        finally:
            database.close()
    return row.to_json()


def settle_nomination(config: Path | None, number: int, reason: str, approved: bool, as_json: bool) -> int:
    """Answer the nomination that waits, through the daemon or directly. Returns 1 where it was approved too late."""
    places = places_of(config)
    request = {"command": "approve" if approved else "reject", "id": number, "reason": reason}
    try:
        row = _answer(places, request)
    except NotRunning:
        row = _settle_alone(places, number, reason, approved)
    if as_json:
        out(row)
    else:
        model = row["result"][:12]
        print_line({
            Verdict.PROMOTED: f"{model} is stable now (row {row['id']})",
            Verdict.REJECTED: f"{model} is rejected (row {row['id']})",
        }.get(row["verdict"], f"{model} is not released (row {row['id']}): {row['reason']}"))
    return 1 if row["verdict"] == Verdict.REFUSED else 0


def _settle_alone(places: Places, number: int, reason: str, approved: bool) -> JsonObject:
    from daemon.bounds_in_force import BoundsInForce
    from safety.approval import settle

    return _alone(places, "nothing waits for approval", lambda ledger, registry: settle(
        ledger, registry, BoundsInForce(places.bounds, ledger)(), number, reason, approved=approved
    ))


def loosen_bounds(config: Path | None, reason: str) -> None:
    """Record the bounds of the file as the ones in force, with what became looser and why."""
    from daemon.bounds_in_force import record_bounds, recorded_bounds
    from daemon.lock import Lock
    from state.database import Database
    from state.registry import Registry
    from state.signed import signed_ledger

    if not reason.strip():
        raise UserError("loosening bounds needs a reason")
    places = places_of(config)
    fresh = load_bounds(places.bounds)
    if not places.database.is_file():
        raise UserError(f"there is no ledger at {places.database}: the first start takes the bounds as they are")
    with Lock(places.state / "lock"):
        database = Database(places.database)
        try:
            database.migrate()
            ledger = signed_ledger(
                database, Registry(places.state, database), places.signing_key, places.public_key, places.heads_file
            )
            recorded = recorded_bounds(ledger)
            if recorded == fresh:
                print_line("the bounds are the ones in the ledger: nothing to record")
                return
            looser = loosened(recorded, fresh) if recorded else []
            record_bounds(ledger, fresh, reason, Actor.OPERATOR)
        finally:
            database.close()
    for line in looser or ["nothing became looser; recorded all the same"]:
        print_line(line)


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
