"""Whether every release of a life follows from its evidence: what `kaizend verify` asks about the gate and the watch.

Standard library only and pure: rows come in as JSON objects in ledger order, scores through a function. The chain and
the bytes of artefacts are `state`'s to verify. Invariant: a promoted release without a matching nomination, with
another number than its place in the life gives, or whose scores do not give its decision is always reported; so is a
rollback by the watch that its scores do not ask for, and a release without the approval that the nomination needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from safety import watch
from safety.gate import Decision, commitment_of, disagreements, items_digest
from state.records import Actor, Event, JsonObject, Verdict

FIXED = (
    "k", "alpha", "alpha_k", "threshold", "d0", "futility", "margins", "procedure", "releases", "items", "commitment",
    "vault", "guard",
)
AUDITED = (Event.NOMINATED, Event.PASSED, Event.RELEASE, Event.ROLLBACK, Event.WATCHED)
"""The rows that are looked at; others are passed over."""

ScoresOf = Callable[[str], JsonObject | None]


@dataclass(slots=True)
class Seen:
    """What of the life was read so far, by row id."""

    nominations: dict[int, JsonObject] = field(default_factory=dict)
    passed: dict[int, JsonObject] = field(default_factory=dict)
    released: dict[int, JsonObject] = field(default_factory=dict)       # the promoted ones
    watched: set[int] = field(default_factory=set)


def audit_releases(rows: Iterable[JsonObject], scores_of: ScoresOf) -> list[str]:
    """Problems, one line each, naming the row; empty when every decision recomputes.

    `rows` are ledger rows as JSON; `scores_of` gives the per-item scores of an artefact digest, or None where the
    artefact is gone.
    """
    seen, problems = Seen(), list[str]()
    for row in rows:
        try:
            found = _checked(row, seen, scores_of)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            found = [f"its evidence is not that of a {row['event']} row: {type(error).__name__}: {error}"]
        problems += [f"row {row['id']}: {problem}" for problem in found]
    return problems


def _checked(row: JsonObject, seen: Seen, scores_of: ScoresOf) -> list[str]:
    """Problems of one row, which is noted for those after it."""
    if row["event"] == Event.NOMINATED:
        seen.nominations[row["id"]] = row
        return _nomination(row, seen)
    if row["event"] == Event.PASSED:
        seen.passed[row["id"]] = row
    elif row["event"] == Event.RELEASE:
        problems = _release(row, seen, scores_of)
        if row["verdict"] == Verdict.PROMOTED:
            seen.released[row["id"]] = row
        return problems
    elif row["event"] in (Event.ROLLBACK, Event.WATCHED) and row["evidence"].get("watch"):
        return _watch(row, seen, scores_of)
    return []


def _nomination(row: JsonObject, seen: Seen) -> list[str]:
    k, releases = row["evidence"].get("k"), row["evidence"].get("releases", len(seen.released))
    problems = []
    if k != len(seen.nominations):
        problems.append(f"nomination {len(seen.nominations)} of the life calls itself {k}")
    if releases != len(seen.released):
        problems.append(f"it counts {releases} releases before it, there were {len(seen.released)}")
    return problems


def _release(row: JsonObject, seen: Seen, scores_of: ScoresOf) -> list[str]:
    evidence = row["evidence"]
    asked = seen.nominations.get(evidence.get("nomination", 0))
    if asked is None:
        return ["answers a nomination that the ledger does not hold"]
    problems = [
        f"{name} is {evidence.get(name)}, the nomination fixed {asked['evidence'].get(name)}"
        for name in FIXED if evidence.get(name) != asked["evidence"].get(name)
    ]
    if (row["base"], row["result"]) != (asked["base"], asked["result"]):
        problems.append("is about other models than its nomination")
    if "seed" in evidence and commitment_of(evidence["seed"]) != evidence.get("commitment"):
        problems.append("its items were dealt with another seed than the nomination was committed to")
    promoted = row["verdict"] == Verdict.PROMOTED
    if promoted:
        problems += _approval(row, asked, seen)
    if promoted and evidence.get("decision") != Decision.RELEASE:
        problems.append(f"became stable although the gate's decision was {evidence.get('decision')}")
    if "scores" in evidence:
        scores = scores_of(evidence["scores"])
        problems += disagreements(evidence, scores) if scores is not None else ["its per-item scores are gone"]
    elif promoted:
        problems.append("became stable without per-item scores")
    return problems


def _approval(row: JsonObject, asked: JsonObject, seen: Seen) -> list[str]:
    """Whether a release that needed the operator had him."""
    held = seen.passed.get(row["evidence"].get("passed", 0))
    waited = held is not None and held["evidence"].get("nomination") == asked["id"]
    if asked["evidence"].get("approval") == "required" and not (waited and row["actor"] == Actor.OPERATOR):
        return ["became stable without the operator's approval"]
    return []


def _watch(row: JsonObject, seen: Seen, scores_of: ScoresOf) -> list[str]:
    """Whether the end of a watch follows from what was fixed at the release and from its scores."""
    found = row["evidence"]["watch"]
    release = seen.released.get(found.get("release", 0))
    if release is None:
        return ["ends the watch of a release that the ledger does not hold"]
    problems = []
    if release["id"] in seen.watched:
        problems.append(f"the watch of row {release['id']} had ended before")
    if not found.get("again"):
        seen.watched.add(release["id"])
    terms = watch.Terms.from_json(release["evidence"]["watch"]).to_json()
    problems += [
        f"{name} of the watch is {found.get(name)}, the release fixed {value}"
        for name, value in terms.items() if found.get(name) != value
    ]
    if commitment_of(found["seed"]) != found["commitment"]:
        problems.append("its items were dealt with another seed than the release was committed to")
    looks = [scores_of(look["scores"]) for look in found["looks"]]
    kept = [scores for scores in looks if scores is not None]
    if len(kept) < len(looks):
        return [*problems, "its per-item scores are gone"]
    for look, scores in zip(found["looks"], kept, strict=True):
        if look["items_digest"] != items_digest(scores):
            problems.append(f"its scores {look['scores'][:12]} are of other items")
    if row["event"] == Event.ROLLBACK and found.get("worse") is None:
        problems.append("rolled back although the watch had found nothing")
    return problems + watch.disagreements(found, kept)
