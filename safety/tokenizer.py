"""The tokenizer of a model folder, as far as two models must have the same one to be merged.

By token string and number, special tokens, merges, the steps before and after, and chat templates. JSON and text
files only, standard library only. Invariant: a vocabulary that differs is reported with its tokens, never cropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safety.headers import HeaderError, read_json
from state import given
from state.records import JsonObject

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
READ = (*FILES, "vocab.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
STEPS = ("normalizer", "pre_tokenizer", "decoder")            # of tokenizer.json, beside its model and added tokens
LONGEST_TEMPLATE = 16 * 2**20
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`merges` are pairs, which earlier versions of the library write as one text each; `steps` are what tokenizer.json
    does before and after its model; `pieces` is the SHA-256 of tokenizer.model where that is all there is; `template`
    names and texts of the chat templates.
    """

    tokens: Mapping[str, int]
    merges: Any
    special: Mapping[str, Any]
    steps: Mapping[str, Any]
    pieces: str
    template: Mapping[str, str]


def has_tokenizer(folder: Path) -> bool:
    return any(given.is_file(folder / name) for name in FILES)


def has_own(folder: Path, base: Path) -> bool:
    """Whether the folder of an adapter has a tokenizer of its own, in other files than the base's."""
    return any(given.is_file(folder / name) for name in VOCABULARIES) and not same_files(base, folder)


def read_tokenizer(folder: Path) -> Tokenizer:
    """What is compared. Raises HeaderError."""
    full = folder / "tokenizer.json"
    body = read_json(full) if given.is_file(full) else {}
    settings = _json_if_there(folder / "tokenizer_config.json")
    model = body.get("model", {}) if body else {}
    try:
        vocabulary = model.get("vocab", {}) if body else _json_if_there(folder / "vocab.json")
        if isinstance(vocabulary, list):                               # unigram: [[token, score], ..]
            vocabulary = {entry[0]: place for place, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in body.get("added_tokens") or []}
        tokens = {**vocabulary, **added}
        merges = [entry.split(" ") if isinstance(entry, str) else list(entry) for entry in model.get("merges") or []]
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise HeaderError(f"{full}: its tokens cannot be read") from error
    if not all(isinstance(token, str) and type(place) is int for token, place in tokens.items()):
        raise HeaderError(f"{full}: a token is not a text with a number")
    named = {**_json_if_there(folder / "special_tokens_map.json"), **settings}
    return Tokenizer(
        tokens, merges, {name: _plain(named.get(name)) for name in SPECIAL},
        {name: body.get(name) for name in STEPS}, "" if tokens else _pieces(folder / "tokenizer.model"),
        _templates(folder, settings),
    )


def same_files(first: Path, other: Path) -> bool:
    """Whether everything that `read_tokenizer` reads has the same bytes in both folders: then so is the tokenizer, and
    nothing has to be parsed, which takes seconds for a long one. False where anything cannot be read.
    """
    mine, theirs = (
        {*READ, *(str(file.relative_to(folder)) for file in _named_templates(folder))} for folder in (first, other)
    )
    return mine == theirs and all(_same_bytes(first / name, other / name) for name in sorted(mine))


def _same_bytes(first: Path, other: Path) -> bool:
    if not given.is_file(first) or not given.is_file(other):
        return not given.is_file(first) and not given.is_file(other)
    try:
        if first.stat().st_size != other.stat().st_size:
            return False
        with first.open("rb") as mine, other.open("rb") as theirs:
            pieces = iter(lambda: (mine.read(given.PIECE), theirs.read(given.PIECE)), (b"", b""))
            return all(left == right for left, right in pieces)
    except OSError:
        return False


def differences(first: Tokenizer, other: Tokenizer, *, part: bool = False) -> Iterator[str]:
    """What `other` has otherwise, in words. With `part`, tokens that only the first has (of images) are none of the
    other's business, and its template is.
    """
    tokens = other.tokens.keys() if part else first.tokens.keys() | other.tokens.keys()
    differing = sorted(token for token in tokens if first.tokens.get(token) != other.tokens.get(token))
    if differing:
        yield f"{len(differing)} tokens differ: {some(differing)}"
    for name, left, right in (
        ("special tokens", first.special, other.special), ("merges", first.merges, other.merges),
        *((f"{step} of the tokenizers", first.steps.get(step), other.steps.get(step)) for step in STEPS),
        ("sentencepiece models", first.pieces, other.pieces),
        *([] if part else [("chat template", first.template, other.template)]),
    ):
        if left != right:
            yield f"the {name} differ"


def some(names: Iterable[str]) -> str:
    """The first of these names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return ", ".join(repr(name) for name in listed[:NAMES_SHOWN]) + more


def _json_if_there(file: Path) -> JsonObject:
    return read_json(file) if given.is_file(file) else {}


def _pieces(file: Path) -> str:
    try:
        return hashlib.sha256(given.read_bytes(file)).hexdigest() if given.is_file(file) else ""
    except given.Unreadable as error:
        raise HeaderError(f"{file}: cannot be read: {error}") from error


def _named_templates(folder: Path) -> list[Path]:
    return sorted((folder / "additional_chat_templates").glob("*.jinja"))


def _templates(folder: Path, settings: JsonObject) -> dict[str, str]:
    """The chat templates by name: from the files that have them for themselves, else from the settings."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in _named_templates(folder)}
    found: dict[str, str] = {}
    for name, file in files.items():
        if given.is_file(file):
            try:
                found[name] = given.read_text(file, LONGEST_TEMPLATE)
            except given.Unreadable as error:
                raise HeaderError(f"{file}: cannot be read: {error}") from error
    said = settings.get("chat_template") or _json_if_there(folder / "chat_template.json").get("chat_template")
    if isinstance(said, list):                           # [{"name": .., "template": ..}, ..]
        said = {str(entry.get("name")): entry.get("template") for entry in said if isinstance(entry, dict)}
    elif said is not None:
        said = {"default": said}
    return {name: str(text) for name, text in (said or {}).items()} | found


def _plain(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token
