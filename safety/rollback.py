"""Moving stable back: the previous stable model is one row away, and the one left behind is latched for ever.

No torch, no jobs, no bytes copied: one ledger row moves the channel and latches the digest in one transaction, and the
registry replaces the link. Invariant: stable only ever goes back to a model that was stable before and is not latched.
"""

from __future__ import annotations

from safety.history import StableModel, stable_history
from state.errors import UserError
from state.ledger import Ledger
from state.records import Actor, Channel, Entry, Event, JsonObject, Row, Verdict
from state.registry import Registry


class RollbackError(UserError):
    """There is nothing to go back to, or not to where was asked; one line in words."""


def rollback(
    ledger: Ledger, registry: Registry, to: int | None, reason: str, actor: Actor = Actor.OPERATOR,
    *, also_working: bool = False, evidence: JsonObject | None = None, cost: JsonObject | None = None,
) -> Row:
    """Make an earlier stable model stable again and latch the present one. Returns the ROLLBACK row.

    `to` is the id of the row with which the wanted model became stable (None: the previous one). With `also_working`
    the working channel goes there too; `evidence` and `cost` go into the row. Raises RollbackError.
    """
    if not reason.strip():
        raise RollbackError("a rollback needs a reason")
    with ledger.deciding:
        return _roll_back(ledger, registry, to, reason, actor, also_working, evidence or {}, cost or {})


def _roll_back(
    ledger: Ledger, registry: Registry, to: int | None, reason: str, actor: Actor, also_working: bool,
    evidence: JsonObject, cost: JsonObject,
) -> Row:
    bad = ledger.channel(Channel.STABLE)
    if bad is None:
        raise RollbackError("there is no stable model yet")
    target = _target(stable_history(ledger), ledger.latched(), bad, to)
    if not registry.holds(target.digest):
        raise RollbackError(f"the registry no longer holds {target.digest[:12]}, stable since row {target.row}")
    moves = {Channel.STABLE: target.digest, **({Channel.WORKING: target.digest} if also_working else {})}
    return ledger.append(
        Entry(
            Event.ROLLBACK, reason, verdict=Verdict.ROLLED_BACK, base=bad, result=target.digest,
            change={"act": "rollback", "to_row": target.row, "latched": bad}, actor=actor,
            evidence=evidence, cost=cost,
        ),
        move=moves, latch=bad,
    )


def _target(history: list[StableModel], latched: set[str], bad: str, to: int | None) -> StableModel:
    if to is not None:
        found = next((model for model in history if model.row == to), None)
        if found is None:
            raise RollbackError(f"row {to} did not make a model stable; `kaizend log` shows those that did")
        if found.digest == bad:
            raise RollbackError(f"the model of row {to} is the stable one already")
        if found.digest in latched:
            raise RollbackError(f"the model of row {to} was rolled back before and is latched")
        return found
    for model in reversed(_line(history)):
        if model.digest != bad and model.digest not in latched:
            return model
    raise RollbackError("there is no earlier stable model to go back to")


def _line(history: list[StableModel]) -> list[StableModel]:
    """The line of models that leads to the present one: a rollback cuts off what came after its target."""
    line: list[StableModel] = []
    for model in history:
        places = [place for place, earlier in enumerate(line) if earlier.digest == model.digest]
        line = line[: places[0]] if places else line
        line.append(model)
    return line
