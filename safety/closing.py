"""The rows with which a nomination ends: PASSED, where it has to wait for the operator, and RELEASE.

What is decided is `safety.release`'s and the operator's business (`safety.approval`). Invariant: the row that moves
stable is the one that says why, repeats what the nomination fixed, and fixes how the release will be watched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from safety.audit import FIXED
from safety.bounds import Bounds
from safety.gate import commitment_of
from safety.watch import Terms
from safety.yardstick.fresh import can_deal, sealed_seed
from safety.yardstick.items import TaskSpec
from state.failpoints import failpoint
from state.ledger import Ledger
from state.records import Actor, Channel, Cost, Entry, Event, JsonObject, Row, Verdict
from state.registry import Registry


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict on a nomination, before it is a row."""

    verdict: Verdict
    reason: str
    evidence: JsonObject


def needs_approval(row: Row, bounds: Bounds) -> bool:
    """Whether the bounds asked for the operator's approval when the model was nominated, or ask for it now."""
    return "required" in (row.evidence.get("approval"), bounds.gate.approval)


def hold(ledger: Ledger, row: Row, answer: Answer, bounds: Bounds, cost: Cost) -> Row:
    """The PASSED row: everything the gate found, and no channel moved."""
    held = ledger.append(Entry(
        Event.PASSED, f"waits for approval: {answer.reason}", base=row.base, result=row.result, cost=cost.to_json(),
        evidence=_all_evidence(row, answer, bounds),
    ))
    failpoint("release.passed")
    return held


def _all_evidence(row: Row, answer: Answer, bounds: Bounds) -> JsonObject:
    """What the nomination fixed and what was found out since."""
    fixed = {name: row.evidence[name] for name in FIXED if name in row.evidence}
    return {**fixed, **answer.evidence, "nomination": row.id, "bounds": bounds.digest}


def close(
    ledger: Ledger, registry: Registry, row: Row, answer: Answer, bounds: Bounds, *, actor: Actor = Actor.LOOP,
    change: JsonObject | None = None, cost: Cost | None = None,
) -> Row:
    """The RELEASE row of a nomination; a promotion moves stable with it and says how it will be watched."""
    evidence, move = _all_evidence(row, answer, bounds), None
    if answer.verdict is Verdict.PROMOTED:
        move = (Channel.STABLE, str(row.result))
        evidence["watch"] = _watch_plan(row, bounds, registry)
    return ledger.append(Entry(
        Event.RELEASE, answer.reason, verdict=answer.verdict, base=row.base, result=row.result, evidence=evidence,
        change=change or {}, actor=actor, cost=cost.to_json() if cost else {},
    ), move=move)


def _watch_plan(row: Row, bounds: Bounds, registry: Registry) -> JsonObject:
    """How the release will be watched: terms, and the tasks for which no watch is possible."""
    tasks = [TaskSpec.from_json(body) for body in row.evidence["tasks"]]
    margins: Mapping[str, float] = row.evidence["margins"]
    judged = [task for task in tasks if task.name in margins or (task.role == "target" and task.vault_items)]
    dealing = [task for task in judged if can_deal(task)]
    seed = sealed_seed(registry.path(str(row.evidence["vault"])), "watch", int(row.evidence["k"]))
    terms = Terms(
        bounds.gate.watch_alpha, bounds.gate.watch_items,
        tuple(task.name for task in dealing if task.role == "target"),
        {task.name: margins[task.name] for task in dealing if task.role == "guard"}, commitment_of(seed),
    )
    return {
        **terms.to_json(), "possible": terms.possible, "not_watched": [t.name for t in judged if not can_deal(t)],
    }
