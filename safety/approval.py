"""The operator's approval: what passed the gate, where the bounds ask for it, waits until a person has answered.

No torch, no jobs: approving takes as long as writing a row. Invariants: the operator can hold back what passed the
gate and can never release what did not; what moved, was latched or was tightened while it waited is honoured. That a
nomination waits changes nothing about which models are nominated when (`safety.release`).
"""

from __future__ import annotations

from dataclasses import replace

from safety import conditions, gate, protected
from safety.bounds import Bounds, Refusal
from safety.closing import Answer, close
from safety.history import Nominations
from safety.noise import too_noisy
from safety.pending import nomination_of
from state.errors import UserError
from state.ledger import Ledger
from state.records import Actor, Channel, JsonObject, Row, Verdict
from state.registry import Registry


class ApprovalError(UserError):
    """Nothing waits, or not what was named; one line in words."""


def settle(
    ledger: Ledger, registry: Registry, bounds: Bounds, number: int, reason: str, *, approved: bool
) -> Row:
    """The operator's answer to the nomination that waits. Returns the RELEASE row: PROMOTED, REJECTED, or REFUSED
    where it was approved too late.

    `number` is the id of the PASSED row, or of the nomination. Raises ApprovalError.
    """
    if not reason.strip():
        raise ApprovalError("an approval needs a reason" if approved else "a rejection needs a reason")
    with ledger.deciding:
        nominations = Nominations.of(ledger)
        passed = nominations.waiting
        if passed is None:
            raise ApprovalError("no nomination waits for approval")
        if number not in (passed.id, nomination_of(passed)):
            raise ApprovalError(f"row {number} does not wait for approval: row {passed.id} does")
        asked = _asked(nominations, passed)
        objects = objection(ledger, registry, asked, passed, bounds) if approved else None
        verdict = Verdict.REFUSED if objects else Verdict.PROMOTED if approved else Verdict.REJECTED
        answer = Answer(
            verdict, f"{reason} (approved too late: {objects})" if objects else reason,
            {**passed.evidence, "passed": passed.id},
        )
        return close(
            ledger, registry, asked, answer, bounds, actor=Actor.OPERATOR,
            change={"act": "approve" if approved else "reject", "passed": passed.id},
        )


def _asked(nominations: Nominations, passed: Row) -> Row:
    return next(row for row in nominations.asked if row.id == nomination_of(passed))


def objection(ledger: Ledger, registry: Registry, asked: Row, passed: Row, bounds: Bounds) -> str | None:
    """Why what passed the gate must not be released any more: what moved, was latched, tightened or changed since."""
    refusal = outgrown(passed.evidence, bounds) or _tampered(asked, registry, bounds)
    return stale(ledger, passed) or (str(refusal) if refusal else None)


def stale(ledger: Ledger, row: Row) -> str | None:
    """What an operator's act or another release has changed since a nomination was asked, in words."""
    if ledger.channel(Channel.STABLE) != row.base:
        return "stable has moved since the nomination"
    if row.result in ledger.latched():
        return "the nominated model was latched since"
    return None


def outgrown(evidence: JsonObject, bounds: Bounds) -> Refusal | None:
    """The first bound, as it is now, that the evidence of a passed nomination does not meet."""
    for name, limits in (("reference", bounds.drift.reference), ("stable", bounds.drift.stable)):
        refusal = bounds.accept(evidence["model"], evidence[f"drift_{name}"], limits, f"drift.{name}")
        if refusal:
            return refusal
    if refusal := too_noisy(evidence["aa"], bounds) or next(conditions.outgrown(evidence, bounds), None):
        return refusal
    rules, now = gate.Rules.from_json(evidence), bounds.gate
    lifetime = gate.Procedure.LIFETIME in (rules.procedure, gate.Procedure(now.procedure))
    strict = replace(
        rules, alpha=min(rules.alpha, now.alpha),
        procedure=gate.Procedure.LIFETIME if lifetime else gate.Procedure.E_LOND,
    )
    if evidence["e"] < strict.threshold and strict.threshold > rules.threshold:
        return Refusal("gate.alpha", f"evidence {evidence['e']:.3g}", f"{strict.threshold:.3g} and more")
    if now.d0 > rules.d0:
        return Refusal("gate.d0", rules.d0, now.d0)
    tighter = [name for name, margin in rules.margins.items() if bounds.guards.of(name) < margin]
    return Refusal(f"guards.margin of {tighter[0]}", rules.margins[tighter[0]], bounds.guards.of(tighter[0])) \
        if tighter else None


def _tampered(asked: Row, registry: Registry, bounds: Bounds) -> Refusal | None:
    """What is protected and has changed since the nomination. Bounds may have been tightened: each was asked above."""
    before = asked.evidence.get("protected")
    if before is None:
        return None
    now = protected.digests(bounds, registry, {name: asked.evidence[name] for name in ("vault", "guard", "seal")})
    return protected.change({**before, "bounds": now["bounds"]}, now)


def withdraw(ledger: Ledger, registry: Registry, bounds: Bounds) -> Row | None:
    """Close the nomination that waits for the operator, where nothing the operator says could release it any more."""
    nominations = Nominations.of(ledger)
    passed = nominations.waiting
    if passed is None:
        return None
    asked = _asked(nominations, passed)
    objects = objection(ledger, registry, asked, passed, bounds)
    if not objects:
        return None
    answer = Answer(Verdict.REFUSED, f"it waited for approval, and {objects}", {**passed.evidence, "passed": passed.id})
    return close(ledger, registry, asked, answer, bounds)
