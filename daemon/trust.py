"""What a verification trusts beside the bytes: a public key, and heads that were kept elsewhere.

Without being told, it is the state folder's own key and the file that the daemon appends heads to: enough against who
can write the database and no more. Against who can write the whole state folder both have to come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from daemon.places import Places
from state.errors import UserError
from state.heads import Head, HeadCheck, check_elsewhere, read_heads, short
from state.records import JsonObject
from state.signing import genuine, read_key, read_public


@dataclass(frozen=True, slots=True)
class Trust:
    """The key, the file that it is from, and the heads with the file that they are from."""

    key: str | None
    where: str
    heads: tuple[Head, ...] = ()
    heads_where: str = ""

    @classmethod
    def of(cls, key: tuple[str | None, str], heads: Path | None) -> Trust:
        """With the heads of a file, where one is named. Raises UserError where it holds none."""
        if heads is None:
            return cls(*key)
        found = tuple(read_heads(heads))
        if not found:
            raise UserError(f"{heads} holds no signed head")
        return cls(*key, found, str(heads))


def check_signatures(rows: Iterable[JsonObject], heads: Iterable[Head], trust: Trust) -> tuple[HeadCheck, list[str]]:
    """What the signed heads say of the rows, and every problem."""
    check = HeadCheck({head.row: head for head in heads}, genuine)
    wanted, hashes = {head.row for head in trust.heads}, dict[int, str]()
    for row in rows:
        check.take(row)
        if row["id"] in wanted:
            hashes[row["id"]] = row["hash"]
    problems = check.result(trust.key, trust.where)
    return check, problems + check_elsewhere(hashes, check.last, trust.heads, genuine, trust.heads_where)


def key_of(places: Places, option: Path | None = None) -> tuple[str | None, str]:
    """The public key to trust, and the file it comes from: the one that was asked for, else that of the private key
    where it can be read, else the state folder's copy."""
    if option is not None:
        return named_key(option), str(option)
    with suppress(UserError):
        private = read_key(places.signing_key)
        if private is not None:
            return private.public, str(places.signing_key)
    return read_public(places.public_key), str(places.public_key)


def named_key(file: Path) -> str:
    public = read_public(file)
    if public is None:
        raise UserError(f"there is no public key at {file}")
    return public


def other_key(places: Places, trust: Trust) -> list[str]:
    """What is wrong with the state folder's own copy of the public key: it is what people carry away."""
    kept = read_public(places.public_key)
    if kept in (None, trust.key):
        return []
    return [f"{places.public_key} holds key {short(kept)}, but {trust.where} holds {short(trust.key)}"]


def own_heads(places: Places) -> Path | None:
    """The file that the daemon appends heads to, where there is something in it."""
    file = places.heads_file
    return file if file is not None and file.is_file() and file.stat().st_size else None
