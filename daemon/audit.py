"""`kaizend verify`: the chain, the links, the bytes of every artefact, and every decision of the gate, recomputed.

Reads only, and trusts nothing but bytes: no torch, no network, no daemon. Every problem is a line that names the row
or the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from daemon.deals import check_deals
from daemon.places import Places
from daemon.reports import artefact_path, out, places_of
from safety.audit import AUDITED, audit_releases
from state.code import code_version
from state.errors import StateError
from state.files import manifest_of
from state.reading import Reading
from state.records import Event, JsonObject, digest_of

VAULT = "vault"


def run_audit(config: Path | None, as_json: bool) -> int:
    """Verify everything. Returns 0 when it all holds and 1 when something does not."""
    return audit(places_of(config), as_json)


def audit(places: Places, as_json: bool) -> int:
    """The same for a state folder wherever it lies."""
    with Reading(places.database) as reading:
        chain = reading.problems()
        artefacts, checked = _artefacts(places, reading)
        decisions, recomputed = ([], 0) if chain else _decisions(places, reading)
        body: JsonObject = {
            "holds": not (chain or artefacts or decisions),
            "rows": reading.head()[0], "head": reading.head()[1], "artefacts": checked, "decisions": recomputed,
            "problems": [*chain, *artefacts, *decisions],
        }
    words = sys.stderr if as_json else sys.stdout
    for problem in body["problems"]:
        words.write(f"PROBLEM  {problem}\n")
    words.write(
        f"{'everything holds' if body['holds'] else 'it does not hold'}: {body['rows']} rows, {checked} artefacts, "
        f"{'no' if chain else recomputed} decisions of the gate recomputed"
        f"{', because rows that were changed prove nothing' if chain else ''}\n"
    )
    if as_json:
        out(body)
    return 0 if body["holds"] else 1


def _artefacts(places: Places, reading: Reading) -> tuple[list[str], int]:
    """Problems with artefact bytes and channel links, and how many artefacts were looked at."""
    problems: list[str] = []
    known = reading.artefacts()
    for artefact in known:
        digest, root = artefact["digest"], "vault" if artefact["kind"] == VAULT else "artifacts"
        place = places.state / root / digest[:2] / digest
        record = reading.artefact(digest)
        expected = record["files"] if record else {}
        if digest_of(expected) != digest:
            problems.append(f"artefact {digest[:12]}: its list of files was changed")
        problems += _bytes(place, expected, digest)
    for channel, pointer in reading.channels().items():
        link, target = places.state / channel, f"artifacts/{pointer['digest'][:2]}/{pointer['digest']}"
        if not link.is_symlink() or str(link.readlink()) != target:
            problems.append(f"the link {link} does not point at {pointer['digest'][:12]}, as the ledger says")
    return problems, len(known)


def _bytes(place: Path, expected: dict[str, str], digest: str) -> Iterator[str]:
    try:
        found = manifest_of(place)
    except (StateError, OSError) as error:
        yield f"artefact {digest[:12]}: {error}"
        return
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            word = "is missing" if name not in found else "was changed" if name in expected else "was added"
            yield f"artefact {digest[:12]}: {place / name} {word}"


def _place_of(places: Places, reading: Reading, digest: str) -> Path:
    """Where the bytes of an artefact lie: a folder, or the one file in it."""
    record = reading.artefact(digest) or {}
    root = "vault" if record.get("kind") == VAULT else "artifacts"
    folder = places.state / root / digest[:2] / digest
    return folder / next(iter(record["files"])) if record.get("single") else folder


def _decisions(places: Places, reading: Reading) -> tuple[list[str], int]:
    """Problems with the gate's decisions, and how many there are to recompute from their per-item scores."""
    rows = [row.to_json() for row in reading.every_row() if row.event in AUDITED]

    def scores_of(digest: str) -> JsonObject | None:
        folder = artefact_path(places, digest)
        for file in folder.glob("*.json"):
            with suppress(ValueError, OSError):
                scores: JsonObject = json.loads(file.read_text())
                return scores
        return None

    genesis = next((row for row in reading.every_row() if row.event == Event.GENESIS), None)
    data = genesis.change.get("data", {}) if genesis else {}
    deals = check_deals(rows, lambda digest: _place_of(places, reading, digest), data, code_version())
    return [*audit_releases(rows, scores_of), *deals], sum(
        (row["event"] == Event.RELEASE and "scores" in row["evidence"])
        or bool(row["evidence"].get("watch", {}).get("looks")) for row in rows
    )
