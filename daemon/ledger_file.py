"""A whole ledger in one file of JSON lines: rows, signed heads, the public key and the per-item scores, no models.

The first line says what it is: {"kaizend": "ledger", "version": 1, "key": ...}. Then one {"head": ...} a signed head,
one {"row": ...} a row in order, and one {"scores": digest, "files": {name: text}} for each artefact from which a
decision of the gate is recomputed. Whoever has the file and, better, the public key from elsewhere needs nothing more:
the digest of the scores stands in the release row, the row in the chain, the chain under a signature.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from daemon.reports import artefact_path, places_of
from daemon.trust import key_of
from state.chain import FIELDS, START
from state.errors import UserError, in_one_line
from state.files import files_of
from state.heads import Head
from state.reading import Reading
from state.records import Event, JsonObject, Row, digest_of

VERSION = 1


def write_ledger(config: Path | None, file: Path) -> str:
    """Write the file, whole or not at all; also while the daemon runs. Returns what was done, in words."""
    places = places_of(config)
    if file.exists():
        raise UserError(f"{file} exists: an export never overwrites")
    partial = file.with_name(file.name + ".partial")
    scores: dict[str, None] = {}
    try:
        with Reading(places.database) as reading, reading.standing_still(), partial.open("w") as stream:
            def put(**line: Any) -> None:
                stream.write(json.dumps(line) + "\n")

            heads, last = reading.heads(), reading.head()[0]
            put(kaizend="ledger", version=VERSION, key=key_of(places)[0] if heads else None)
            for head in heads:
                put(head=head.to_json())
            for row in reading.every_row():
                put(row=row.to_json())
                scores |= {digest: None for digest in _scores_named_by(row) if reading.artefact(digest)}
            for digest in scores:
                put(scores=digest, files=_texts(artefact_path(places, digest)))
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(file)
    except OSError as error:
        raise in_one_line("write the ledger to", file, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return f"{last} rows, {len(heads)} signed heads and the scores of {len(scores)} decisions are in {file}"


def _scores_named_by(row: Row) -> list[str]:
    """Digests of the per-item scores that the row's decision follows from."""
    named: list[Any] = []
    try:
        if row.event == Event.RELEASE:
            named = [row.evidence.get("scores")]
        elif row.event in (Event.ROLLBACK, Event.WATCHED):
            named = [look["scores"] for look in row.evidence["watch"]["looks"]]
    except (AttributeError, KeyError, TypeError):
        return []
    return [digest for digest in named if isinstance(digest, str)]


def _texts(folder: Path) -> dict[str, str]:
    """The files of an artefact as text; nothing where it is gone, which whoever verifies will say."""
    if not folder.exists():
        return {}
    root = folder if folder.is_dir() else folder.parent
    return {file.relative_to(root).as_posix(): file.read_bytes().decode(errors="replace") for file in files_of(folder)}


class LedgerFile:
    """An exported ledger, read. `problems` are lines that are none of an export, and scores that were changed.

    Raises UserError for a file that is no exported ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        self.heads: list[Head] = []
        self.head: tuple[int, str] = (0, START)
        self._scores: dict[str, dict[str, str]] = {}
        first = next(self._lines(), (0, None))[1]
        if not isinstance(first, dict) or first.get("kaizend") != "ledger":
            raise UserError(f"{path} is not a ledger that `kaizend export --ledger` has written")
        if first.get("version") != VERSION:
            raise UserError(f"{path} was written by a newer kaizend (version {first.get('version')}): use that one")
        self.key = first["key"] if isinstance(first.get("key"), str) else None
        for number, line in self._lines():
            if number > 1 and not self._take(line):
                self.problems.append(f"{path} line {number} is none of an exported ledger, or was cut short")
        self.problems += [
            f"the scores {digest[:12]} were changed: their text does not give that digest"
            for digest, files in self._scores.items() if _digest(files) != digest
        ]

    def rows(self) -> Iterator[JsonObject]:
        """The rows in the order in which they stand, read anew."""
        for _, line in self._lines():
            if _is_row(line):
                yield line["row"]

    def scores_of(self, digest: str) -> JsonObject | None:
        """The per-item scores of an artefact; None where the file does not hold them."""
        for text in self._scores.get(digest, {}).values():
            with suppress(ValueError):
                scores: JsonObject = json.loads(text)
                return scores
        return None

    def _take(self, line: Any) -> bool:
        if _is_row(line):
            self.head = (line["row"]["id"], line["row"]["hash"])
            return True
        try:
            if "head" in line:
                self.heads.append(Head.from_json(line["head"]))
                return True
            self._scores[str(line["scores"])] = {str(name): str(text) for name, text in line["files"].items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            return False
        return True

    def _lines(self) -> Iterator[tuple[int, Any]]:
        """Number and value of each line; None for one that is no JSON."""
        try:
            with self.path.open(encoding="utf-8", errors="replace") as stream:
                for number, text in enumerate(stream, 1):
                    try:
                        yield number, json.loads(text)
                    except (ValueError, RecursionError):
                        yield number, None
        except OSError as error:
            raise in_one_line("read", self.path, error) from error


def _is_row(line: Any) -> bool:
    """Whether a line is a row with every field; what the fields hold is for the chain to say."""
    row = line.get("row") if isinstance(line, dict) else None
    return isinstance(row, dict) and isinstance(row.get("id"), int) and {*FIELDS, "hash"} <= row.keys()


def _digest(files: dict[str, str]) -> str:
    return digest_of({name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()})
