"""What a task and an item are: values, their JSON and their identity.

How items are drawn is the business of `tasks`, how they are sealed of `sealed`. Invariant: an item's id depends only on
its normalised prompt, so the same question is the same item in whatever split, file or seed it turns up.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from state.errors import UserError
from state.records import JsonObject, canonical

ROLES: Final = ("target", "guard")
VERIFIERS: Final = ("exact", "numeric", "reasoning_gym")
RESERVED: Final = ("pooled", "race", "guards")
"""Names that no task may have: job results use them beside task names."""

_SOURCE_KEYS: Final = {
    "jsonl": ({"kind"}, {"path", "sha256", "cut"}),
    "reasoning_gym": ({"kind", "generator"}, {"config", "cut"}),
    "bilingual": ({"kind", "family"}, set()),
}
_SOURCE_TYPES: Final = {
    "path": (str, "the name of a file"), "generator": (str, "a name"), "family": (str, "a name"),
    "sha256": (str, "a digest"), "config": (dict, "a table"), "cut": (int, "a whole number"),
}
MOST_ITEMS: Final = 10_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class TaskError(UserError, ValueError):
    """A task cannot be used as the operator wrote it; the text is one clear line."""


def normalised(text: str) -> str:
    """Text as overlap is judged on: NFKC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def item_id(prompt: str) -> str:
    """16 hex digits of the sha256 of the normalised prompt."""
    return hashlib.sha256(normalised(prompt).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its reference answer. `origin` is the seed it can be generated from again, where it has one."""

    id: str
    prompt: str
    answer: str
    origin: int | None = None

    @classmethod
    def of(cls, prompt: str, answer: str, origin: int | None = None) -> Item:
        return cls(item_id(prompt), prompt, answer, origin)

    def to_json(self) -> JsonObject:
        body: JsonObject = {"id": self.id, "prompt": self.prompt, "answer": self.answer}
        return body if self.origin is None else body | {"origin": self.origin}

    @classmethod
    def from_json(cls, body: JsonObject) -> Item:
        return cls(body["id"], body["prompt"], body["answer"], body.get("origin"))


def write_items(file: Path, items: Iterable[Item]) -> None:
    """One item a line."""
    file.write_text("".join(canonical(item.to_json()) + "\n" for item in items), encoding="utf-8")


def read_items(file: Path) -> list[Item]:
    """What `write_items` wrote. Only a line feed ends a line: the separators of Unicode may stand in a prompt."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [Item.from_json(json.loads(line)) for line in lines]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task as the operator describes it.

    `source` is one of {"kind": "jsonl", "path", "sha256"?, "cut"?}, {"kind": "reasoning_gym", "generator", "config"?,
    "cut"?} and {"kind": "bilingual", "family"}. A target has a vault split of `vault_items`, a guard a guard split of
    `guard_items`; both can be drawn for search. `cut` (0) is a number to change when the sealed splits shall be others.
    A task that reads a file loses the path once its items are sealed; which file it was the sha256 says.
    `second_verifier` decides nothing: it is asked beside `verifier` while reinforcement trains, and the monitor looks
    at how often the two disagree.
    """

    name: str
    role: str
    source: Mapping[str, Any] = field(hash=False)
    vault_items: int = 0
    guard_items: int = 0
    verifier: str = "exact"
    second_verifier: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or self.name in RESERVED:
            taken = " or ".join(RESERVED)
            raise TaskError(f"task name {self.name!r}: use letters, digits, '_', '-' and '.', and not {taken}")
        _choice(self.name, "role", self.role, ROLES)
        _choice(self.name, "verifier", self.verifier, VERIFIERS)
        if self.second_verifier is not None:
            others = tuple(name for name in VERIFIERS if name != self.verifier)
            _choice(self.name, "second_verifier", self.second_verifier, others)
        for key in ("vault_items", "guard_items"):
            value = getattr(self, key)
            if type(value) is not int or not 0 <= value <= MOST_ITEMS:
                raise TaskError(
                    f"task {self.name}: {key} is {value!r}, it must be a whole number from 0 to {MOST_ITEMS}")
        self._check_source()

    def _check_source(self) -> None:
        if not isinstance(self.source, Mapping):
            raise TaskError(f"task {self.name}: source must be a table with a kind")
        kind = self.source.get("kind")
        _choice(self.name, "source kind", kind, tuple(_SOURCE_KEYS))
        needed, optional = _SOURCE_KEYS[str(kind)]
        for key in sorted(needed - set(self.source)):
            raise TaskError(f"task {self.name}: source of kind {kind} needs {key!r}")
        if kind == "jsonl" and not {"path", "sha256"} & set(self.source):
            raise TaskError(f"task {self.name}: source of kind jsonl needs 'path'")
        for key in sorted(set(self.source) - needed - optional):
            raise TaskError(f"task {self.name}: source of kind {kind} has no setting {key!r}")
        for key, (wanted, words) in _SOURCE_TYPES.items():
            if key in self.source and (type(self.source[key]) is not wanted or self.source[key] == ""):
                raise TaskError(f"task {self.name}: {key} of its source must be {words}, got {self.source[key]!r}")
        try:
            canonical(dict(self.source))
        except (TypeError, ValueError) as error:
            raise TaskError(f"task {self.name}: its source holds a value that is no JSON: {error}") from error
        if "reasoning_gym" in (self.verifier, self.second_verifier) and kind != "reasoning_gym":
            raise TaskError(f"task {self.name}: the verifier reasoning_gym needs a source of kind reasoning_gym")

    def to_json(self) -> JsonObject:
        body = {
            "name": self.name, "role": self.role, "source": dict(self.source), "vault_items": self.vault_items,
            "guard_items": self.guard_items, "verifier": self.verifier,
        }
        return body if self.second_verifier is None else body | {"second_verifier": self.second_verifier}

    @classmethod
    def from_json(cls, body: JsonObject) -> TaskSpec:
        """Raises TaskError for a missing or unknown key."""
        name = body.get("name", "(no name)")
        for key in sorted({"name", "role", "source"} - set(body)):
            raise TaskError(f"task {name}: {key!r} is missing")
        for key in sorted(set(body) - set(cls.__slots__)):
            raise TaskError(f"task {name}: there is no setting {key!r}")
        return cls(**body)


def _choice(name: str, key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise TaskError(f"task {name}: {key} is {value!r}, choose from {', '.join(choices)}")
