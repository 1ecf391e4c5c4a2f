"""What a release must not find changed: the protected modules, the sealed splits and the bounds in force.

A NOMINATED row keeps their digests, taken from the bytes on disk; before the RELEASE row is written they are taken
again. A difference refuses the release by the name of what changed, and nothing is nominated until the operator has
resumed. Standard library only. Not here: the ledger's own proof (`state.chain`), the code version of a job.
"""

from __future__ import annotations

from safety.bounds import Bounds, Refusal
from state.code import ROOT, digests_of
from state.errors import StateError
from state.ledger import Ledger
from state.records import Event, JsonObject, digest_of
from state.registry import Registry

FAMILY = "code."
RESUMED = "resume"


def digests(bounds: Bounds, registry: Registry, sealed: dict[str, str]) -> JsonObject:
    """What is protected, as it is now: {"modules": {name: digest}, "vault": {split: digest}, "bounds": digest}.

    `sealed` has the digests of vault, guard and seal. What is missing has the digest "missing".
    """
    return {
        "modules": digests_of(ROOT, bounds.code.modules),
        "vault": {name: _bytes_of(registry, digest) for name, digest in sealed.items()},
        "bounds": bounds.digest,
    }


def change(before: JsonObject, now: JsonObject) -> Refusal | None:
    """What is not as it was, or None. `before` may name modules that the bounds do not protect any more: they count
    as changed.
    """
    for key in ("modules", "vault"):
        for name, digest in before[key].items():
            if now[key].get(name) != digest:
                return Refusal(f"{FAMILY}{key}", f"{name} has changed", f"as it was nominated ({digest[:12]})")
    if now["bounds"] != before["bounds"]:
        return Refusal(f"{FAMILY}bounds", now["bounds"][:12], before["bounds"][:12])
    return None


def stopped(ledger: Ledger) -> str | None:
    """Why releases have stopped, in words, or None: the last one was refused for a change, and nobody has resumed."""
    last = ledger.latest(Event.RELEASE)
    refusal = last.evidence.get("refusal") if last is not None else None
    if last is None or not isinstance(refusal, dict) or not str(refusal.get("bound")).startswith(FAMILY):
        return None
    if any(row.change.get("act") == RESUMED for row in ledger.rows(after=last.id, event=Event.OPERATOR)):
        return None
    return f"{last.reason} (row {last.id})"


def _bytes_of(registry: Registry, digest: str) -> str:
    """The digest of an artefact's bytes as they are on disk now."""
    try:
        wrong = registry.verify(digest)
        return digest if not wrong else digest_of(wrong)
    except (OSError, StateError):
        return "missing"
