"""Whether every release of a life follows from its evidence: what `kaizend verify` asks about the gate.

Standard library only and pure: rows come in as JSON objects in ledger order, scores through a function. The chain and
the bytes of artefacts are `state`'s to verify. Invariant: a promoted release without a matching nomination, with
another number than its place in the life gives, or whose scores do not give its decision is always reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from safety.gate import Decision, disagreements
from state.records import Event, JsonObject, Verdict

FIXED = ("k", "alpha", "alpha_k", "threshold", "d0", "futility", "margins", "vault", "guard")


def audit_releases(rows: Iterable[JsonObject], scores_of: Callable[[str], JsonObject | None]) -> list[str]:
    """Problems, one line each, naming the row; empty when every decision recomputes.

    `rows` are ledger rows as JSON (others than NOMINATED and RELEASE are passed over); `scores_of` gives the per-item
    scores of an artefact digest, or None where the artefact is gone.
    """
    problems: list[str] = []
    nominations: dict[int, JsonObject] = {}
    for row in rows:
        if row["event"] == Event.NOMINATED:
            nominations[row["id"]] = row
        if row["event"] not in (Event.NOMINATED, Event.RELEASE):
            continue
        try:
            found = _nomination(row, len(nominations)) if row["event"] == Event.NOMINATED else _release(
                row, nominations.get(row["evidence"].get("nomination", 0)), scores_of
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            found = [f"its evidence is not that of a {row['event']} row: {type(error).__name__}: {error}"]
        problems += [f"row {row['id']}: {problem}" for problem in found]
    return problems


def _nomination(row: JsonObject, number: int) -> list[str]:
    k = row["evidence"].get("k")
    return [] if k == number else [f"nomination {number} of the life calls itself {k}"]


def _release(
    row: JsonObject, asked: JsonObject | None, scores_of: Callable[[str], JsonObject | None]
) -> list[str]:
    evidence = row["evidence"]
    if asked is None:
        return ["answers a nomination that the ledger does not hold"]
    problems = [
        f"{name} is {evidence.get(name)}, the nomination fixed {asked['evidence'].get(name)}"
        for name in FIXED if evidence.get(name) != asked["evidence"].get(name)
    ]
    if (row["base"], row["result"]) != (asked["base"], asked["result"]):
        problems.append("is about other models than its nomination")
    promoted = row["verdict"] == Verdict.PROMOTED
    if promoted and evidence.get("decision") != Decision.RELEASE:
        problems.append(f"became stable although the gate's decision was {evidence.get('decision')}")
    if "scores" in evidence:
        scores = scores_of(evidence["scores"])
        problems += disagreements(evidence, scores) if scores is not None else ["its per-item scores are gone"]
    elif promoted:
        problems.append("became stable without per-item scores")
    return problems
