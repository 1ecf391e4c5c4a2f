"""`kaizend verify`: the chain, the signatures, the links, the bytes of every artefact, and every decision of the gate,
recomputed. Of a state folder, or of a ledger that `kaizend export --ledger` has written.

Reads only, and trusts nothing but bytes and the public key: no torch, no network, no daemon. Every problem is a line
that names the row or the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from daemon.ledger_file import LedgerFile
from daemon.places import Places
from daemon.reports import artefact_path, out, places_of
from daemon.trust import Trust, check_signatures, key_of, named_key, other_key, own_heads
from safety.audit import audit_releases
from state.chain import check_rows
from state.errors import StateError
from state.files import manifest_of
from state.heads import short
from state.reading import Reading
from state.records import Event, JsonObject, digest_of

VAULT = "vault"


def run_audit(config: Path | None, as_json: bool, file: Path | None, key: Path | None, heads: Path | None) -> int:
    """Verify everything. Returns 0 when it all holds and 1 when something does not."""
    if file is not None:
        return audit_file(file, key, heads, as_json)
    places = places_of(config)
    return audit(places, Trust.of(key_of(places, key), heads or own_heads(places)), as_json)


def audit(places: Places, trust: Trust, as_json: bool) -> int:
    """The same for a state folder wherever it lies."""
    with Reading(places.database) as reading:
        with reading.standing_still():
            chain, (rows, head) = reading.problems(), reading.head()
            check, signatures = check_signatures(reading.links(), reading.heads(), trust)
            signatures += other_key(places, trust)
            decisions, recomputed = ([], 0) if chain else _decisions(places, reading)
        artefacts, checked = _artefacts(places, reading)
    body: JsonObject = {
        "rows": rows, "head": head, "artefacts": checked, "decisions": recomputed, "heads": len(check.heads),
        "signed": check.signed, "key": check.key,
    }
    return _said(body, [*chain, *signatures, *artefacts, *decisions], bool(chain), as_json)


def audit_file(file: Path, key: Path | None, heads: Path | None, as_json: bool) -> int:
    """The same for an exported ledger, without a state folder: chain, signatures and decisions."""
    exported = LedgerFile(file)
    trust = Trust.of((named_key(key), str(key)) if key else (exported.key, "the export itself"), heads)
    chain = check_rows(exported.rows())
    check, signatures = check_signatures(exported.rows(), exported.heads, trust)
    deciding = [row for row in exported.rows() if row["event"] in (Event.NOMINATED, Event.RELEASE)]
    decisions = [] if chain else audit_releases(deciding, exported.scores_of)
    body: JsonObject = {
        "rows": exported.head[0], "head": exported.head[1], "decisions": 0 if chain else _recomputable(deciding),
        "heads": len(check.heads), "signed": check.signed, "key": check.key,
    }
    return _said(body, [*exported.problems, *chain, *signatures, *decisions], bool(chain), as_json)


def _said(body: JsonObject, problems: list[str], broken: bool, as_json: bool) -> int:
    """Print every problem and the sum of it. Returns the exit code."""
    holds = not problems
    words = sys.stderr if as_json else sys.stdout
    for problem in problems:
        words.write(f"PROBLEM  {problem}\n")
    artefacts = f"{body['artefacts']} artefacts, " if "artefacts" in body else ""
    signed = f"signed up to row {body['signed']} with key {short(body['key'])}" if body["signed"] else "not signed"
    words.write(
        f"{'everything holds' if holds else 'it does not hold'}: {body['rows']} rows, {signed}, {artefacts}"
        f"{'no' if broken else body['decisions']} decisions of the gate recomputed"
        f"{', because rows that were changed prove nothing' if broken else ''}\n"
    )
    if as_json:
        out({"holds": holds, **body, "problems": problems})
    return 0 if holds else 1


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


def _decisions(places: Places, reading: Reading) -> tuple[list[str], int]:
    """Problems with the gate's decisions, and how many there are to recompute from their per-item scores."""
    rows = [row.to_json() for row in reading.every_row() if row.event in (Event.NOMINATED, Event.RELEASE)]

    def scores_of(digest: str) -> JsonObject | None:
        folder = artefact_path(places, digest)
        for file in folder.glob("*.json"):
            with suppress(ValueError, OSError):
                scores: JsonObject = json.loads(file.read_text())
                return scores
        return None

    return audit_releases(rows, scores_of), _recomputable(rows)


def _recomputable(rows: Iterable[JsonObject]) -> int:
    return sum(isinstance(row["evidence"], dict) and "scores" in row["evidence"] for row in rows)
