"""gc: which artefacts stay and why, and giving up the others.

What stays is read off the ledger, the loop states and the job book; every artefact that stays has a reason in words,
and whatever has none goes. Invariants: nothing in force, nothing that a rollback may go back to, nothing that an open
cycle, nomination or watch works with, and nothing that `kaizend verify` recomputes a decision from is ever given up.
Recipes cannot go: they are rows of the ledger and specs of jobs, which are never removed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from daemon.lock import Lock, at_rest
from daemon.places import Places
from daemon.reports import MOST_ENDS, places_of
from safety.pending import nomination_of, under_watch
from state.reading import Reading
from state.records import Event, JsonObject, LoopName, Row

OF_A_KIND = {
    "data": "what models are trained on",
    "guard": "a sealed split",
    "seal": "a sealed split",
    "vault": "a sealed split, or items dealt from its seed",
    "scores": "evidence that verify recomputes a decision from",
}
Reasons = dict[str, str]


def collect_garbage(config: Path | None, apply: bool) -> None:
    """Say of each artefact whether it stays and why, or with `apply` give up those that nothing needs."""
    places = places_of(config)
    gone = _give_up(places) if apply else _tell(places)
    total = sum(int(artefact["bytes"]) for artefact in gone)
    if apply and gone:
        sys.stdout.write(f"removed {len(gone)} artefacts, {total:,} bytes\n")
    else:
        sys.stdout.write(f"{len(gone)} artefacts, {total:,} bytes can go" + (": add --apply\n" if gone else "\n"))


def _tell(places: Places) -> list[JsonObject]:
    """What can go. A line for each artefact, those that stay first."""
    with Reading(places.database) as reading, reading.standing_still():
        artefacts, reasons = reading.artefacts(), why_kept(reading)
    stay = [artefact for artefact in artefacts if artefact["digest"] in reasons]
    for artefact in stay:
        sys.stdout.write(_line("stays", artefact, reasons[artefact["digest"]]))
    gone = [artefact for artefact in artefacts if artefact["digest"] not in reasons]
    for artefact in gone:
        sys.stdout.write(_line("goes", artefact, "nothing needs it"))
    sys.stdout.write(f"{len(stay)} artefacts, {sum(int(a['bytes']) for a in stay):,} bytes stay\n")
    return gone


def _line(word: str, artefact: JsonObject, why: str) -> str:
    return f"{word:<6} {artefact['digest'][:12]}  {artefact['kind']:<10} {artefact['bytes']:>14,} bytes  {why}\n"


def _give_up(places: Places) -> list[JsonObject]:
    """Remove what nothing needs, looked for under the lock: no daemon runs, and nobody copies artefacts away."""
    from state.database import Database
    from state.registry import Registry

    with (
        Lock(places.state / "lock"), at_rest(places.state / "artifacts", alone=True),
        closing(Database(places.database)) as database,
    ):
        database.migrate()
        registry = Registry(places.state, database)
        registry.reconcile()
        with Reading(places.database) as reading:
            reasons = why_kept(reading)
            gone = [artefact for artefact in reading.artefacts() if artefact["digest"] not in reasons]
        for artefact in gone:
            registry.remove(artefact["digest"])
            sys.stdout.write(_line("gone", artefact, "nothing needs it"))
    return gone


def why_kept(reading: Reading) -> Reasons:
    """{digest: why it stays}, the first reason that holds. It may name digests that are no artefacts."""
    found: Reasons = {}
    for digests, why in _rules(reading):
        for digest in digests:
            found.setdefault(digest, why)
    return found


def _rules(reading: Reading) -> Iterator[tuple[Iterable[str], str]]:
    """Digests and why they stay, the weightiest reason first."""
    for channel, pointer in reading.channels().items():
        yield [pointer["digest"]], f"in force: {channel}"
    for row in _rows(reading, Event.GENESIS):
        yield _digests_in([row.result, row.change]), "what this life began with"
    yield from _rollback_targets(reading)
    yield from _under_judgement(reading)
    yield from _in_flight(reading)
    for loop in LoopName:
        yield _digests_in(reading.loop_state(loop)), f"the {loop} loop goes on from it"
    for artefact in reading.artefacts():
        if artefact["kind"] in OF_A_KIND:
            yield [artefact["digest"]], OF_A_KIND[artefact["kind"]]


def _rollback_targets(reading: Reading) -> Iterator[tuple[Iterable[str], str]]:
    """Every model that was stable and is not latched."""
    from safety.history import were_stable

    latched = reading.latches()
    for model in were_stable(_rows(reading, Event.GENESIS, Event.RELEASE, Event.ROLLBACK)):
        if model.digest not in latched:
            yield [model.digest], f"a rollback may go back to it: stable since row {model.row}"


def _under_judgement(reading: Reading) -> Iterator[tuple[Iterable[str], str]]:
    """What a nomination without an answer and a release under watch are about."""
    releases = _rows(reading, Event.RELEASE)
    answered = {nomination_of(row) for row in releases}
    for row in _rows(reading, Event.NOMINATED):
        if row.id not in answered:
            yield _digests_in([row.base, row.result, row.evidence]), f"the nomination of row {row.id} has no answer yet"
    watched = under_watch(releases, _rows(reading, Event.WATCHED, Event.ROLLBACK))
    if watched is not None:
        about = [watched.base, watched.result, watched.evidence]
        yield _digests_in(about), f"the release of row {watched.id} is under watch"


def _in_flight(reading: Reading) -> Iterator[tuple[Iterable[str], str]]:
    """What the open cycles know, and everything that was made or used since the oldest of them was opened: they will
    ask for their finished jobs again."""
    cycles = reading.open_cycles()
    for cycle in cycles:
        inside = [
            [child.candidate.to_json(), child.outcome.to_json() if child.outcome else None]
            for child in reading.children(cycle.id)
        ]
        yield _digests_in([cycle.candidate.to_json(), cycle.state, inside]), f"cycle {cycle.id} is open"
    if cycles:
        oldest = min(cycle.id for cycle in cycles)
        since = reading.earliest_since(oldest)
        made = [artefact["digest"] for artefact in reading.artefacts() if artefact["created"] >= since]
        yield [*made, *_digests_in(reading.jobs_since(since))], f"made or used since cycle {oldest} was opened"


def _rows(reading: Reading, *events: Event) -> list[Row]:
    return reading.rows(limit=MOST_ENDS, events=[str(event) for event in events])


def _digests_in(value: object) -> set[str]:
    """Every digest that a JSON tree names."""
    return set(re.findall(r"[0-9a-f]{64}", json.dumps(value)))
