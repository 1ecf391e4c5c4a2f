"""What can be known of the operator's models before any weight is read, and what is wrong with it.

Headers, configs and README front matter only; standard library only, no torch. Every problem is a line that names the
file. Not here: non-finite weights and drift (job "measure"). Invariant: nothing is repaired or cropped in silence; a
vocabulary that differs is reported with the tokens that differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safety.bounds import Bounds
from safety.headers import (
    INDEX,
    SINGLE,
    HeaderError,
    TensorHeader,
    code_keys,
    facts_of,
    read_json,
    tensor_headers,
    weight_files,
)
from safety.layers import difference, obstacle
from state import given
from state.errors import one_line
from state.records import JsonObject

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.gguf")
HARMLESS = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"})   # never loaded
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
TOKENS_SHOWN = 5
LONGEST_README = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why a model cannot be used: which model folder, which check, and a line in words."""

    path: Path
    check: str
    text: str

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.text}")


def preflight(paths: Sequence[Path], bounds: Bounds) -> list[Problem]:
    """Everything wrong with these model folders, alone and together; the first is what the others must match."""
    problems = [problem for path in paths for problem in _alone(path, bounds)]
    broken = {problem.path for problem in problems if problem.check in ("missing", "weights", "config")}
    sound = [path for path in paths if path not in broken]
    for path in sound[1:]:
        problems.extend(_together(sound[0], path))
    return problems


def path_problems(paths: Sequence[Path]) -> list[Problem]:
    """What stands in the way of paths through the layers of these models; of those that can be read at all."""
    problems, configs = [], {}
    for path in paths:
        try:
            configs[path] = read_json(path / "config.json")
        except HeaderError:                                  # said where the model was looked at alone
            continue
        found = obstacle(configs[path])
        if found:
            problems.append(Problem(path, "path", found))
    for path, config in configs.items():
        first = next(iter(configs))
        key = difference(configs[first], config)
        if key:
            text = f"against {first}: {key} is {config.get(key)!r}, not {configs[first].get(key)!r}"
            problems.append(Problem(path, "path", f"no path can be laid through both: {text}"))
    return problems


def licence_of(folder: Path) -> str:
    """The licence in the front matter of README.md, lower case, a list of several in one line; "unknown" where there
    is none.
    """
    readme = folder / "README.md"
    try:
        text = given.read_bytes(readme, LONGEST_README).decode("utf-8", errors="replace")
    except given.Unreadable:
        text = ""
    parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
    front = parts[1] if len(parts) == 3 and not parts[0].strip() else ""
    found = re.search(r"^licen[sc]e:[ \t]*(.*)((?:\n[ \t]*- .*)*)$", front, flags=re.MULTILINE | re.IGNORECASE)
    lines = [found.group(1), *found.group(2).split("\n")] if found else []
    values = [line.strip().removeprefix("- ").split(" #")[0].strip().strip("\"'").lower() for line in lines]
    return ", ".join(value for value in values if value) or "unknown"


def licences_of(folder: Path) -> list[str]:
    """A licence that joins several, as merged models have, taken apart: "apache-2.0 and mit", "[apache-2.0, mit]" or a
    YAML list with one a line.
    """
    joined = licence_of(folder)
    parts = (part.strip("\"'") for part in re.split(r"\s+and\s+|\s*[,+&;\[\]]\s*", joined))
    return [part for part in parts if part] or ["unknown"]


def _alone(path: Path, bounds: Bounds) -> Iterator[Problem]:
    if not given.is_folder(path):
        yield Problem(path, "missing", "there is no such model folder")
        return
    try:
        config = read_json(path / "config.json")
    except HeaderError as error:
        yield Problem(path, "config", str(error))
        return
    if not isinstance(config.get("model_type"), str):
        yield Problem(path, "config", "config.json has no model_type")
    yield from _remote_code(path)
    yield from _elsewhere(path, config)
    yield from _weights(path, bounds)
    for licence in licences_of(path):
        if licence not in bounds.supply.licences:
            yield Problem(path, "licence", f"licence {licence!r} is not in supply.licences")
    if not any(given.is_file(path / name) for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        yield Problem(path, "tokenizer", "there is no tokenizer (tokenizer.json)")
    try:
        _tokenizer(path)
    except HeaderError as error:
        yield Problem(path, "tokenizer", str(error))


def _remote_code(path: Path) -> Iterator[Problem]:
    try:
        found = code_keys(path)
    except HeaderError as error:
        yield Problem(path, "config", str(error))
        return
    for place in found:
        name, key = place.split(": ")
        yield Problem(path, "remote_code", f"{name} has the key {key}: code that comes with a model is never run")


def _elsewhere(path: Path, config: JsonObject) -> Iterator[Problem]:
    """What makes a library load other weights than those that are looked at here."""
    if "transformers_weights" in config:
        yield Problem(path, "weights", "config.json has transformers_weights: rename the weights instead")
    if (path / "adapter_config.json").is_symlink() or (path / "adapter_config.json").exists():
        yield Problem(path, "weights", "there is an adapter (adapter_config.json): merge it into the model first")


def _weights(path: Path, bounds: Bounds) -> Iterator[Problem]:
    pickles = sorted(
        file.name for pattern in PICKLES for file in path.glob(pattern) if file.name not in HARMLESS
    )
    try:
        if not weight_files(path):
            also = f" ({', '.join(pickles)} cannot be used: convert it)" if pickles else ""
            yield Problem(path, "weights", f"there are no safetensors weights{also}")
            return
        if not any(given.is_file(path / name) for name in (SINGLE, INDEX)):
            yield Problem(path, "weights", f"there is neither {SINGLE} nor {INDEX}, by which weights are found")
            return
        facts = facts_of(path)
    except HeaderError as error:
        yield Problem(path, "weights", str(error))
        return
    for name in pickles:
        yield Problem(path, "format", f"{name} can run code when it is loaded; only safetensors are allowed")
    refusal = bounds.accept({**facts, "non_finite": 0, "loads_code": []})          # code is told of by itself
    if refusal:
        yield Problem(path, "limits", str(refusal))


def _together(first: Path, other: Path) -> Iterator[Problem]:
    yield from _same_tensors(first, other)
    yield from _same_configs(first, other)
    yield from _same_tokenizers(first, other)


def _same_tensors(first: Path, other: Path) -> Iterator[Problem]:
    mine, theirs = tensor_headers(first), tensor_headers(other)
    for verb, names in (("lacks", mine.keys() - theirs.keys()), ("has, beyond it,", theirs.keys() - mine.keys())):
        if names:
            yield Problem(other, "tensors", f"against {first}: {verb} {_some(names)}")
    common = sorted(mine.keys() & theirs.keys())
    shapes = [name for name in common if mine[name].shape != theirs[name].shape]
    if shapes:
        name = shapes[0]
        yield Problem(
            other, "shapes",
            f"against {first}: {_some(shapes)} differ in shape ({name}: {_shape(mine[name])} and "
            f"{_shape(theirs[name])})",
        )
    dtypes = [name for name in common if mine[name].dtype != theirs[name].dtype]
    if dtypes:
        name = dtypes[0]
        yield Problem(
            other, "dtypes",
            f"against {first}: {_some(dtypes)} differ in number format ({mine[name].dtype} and {theirs[name].dtype})",
        )


def _same_configs(first: Path, other: Path) -> Iterator[Problem]:
    mine, theirs = read_json(first / "config.json"), read_json(other / "config.json")
    for key in ("model_type", "tie_word_embeddings"):
        if mine.get(key) != theirs.get(key):
            yield Problem(other, "config", f"against {first}: {key} is {theirs.get(key)!r}, not {mine.get(key)!r}")


def _same_tokenizers(first: Path, other: Path) -> Iterator[Problem]:
    try:
        mine, theirs = _tokenizer(first), _tokenizer(other)
    except HeaderError:                                  # said where the model was looked at alone
        return
    differing = sorted(
        token for token in mine.tokens.keys() | theirs.tokens.keys()
        if mine.tokens.get(token) != theirs.tokens.get(token)
    )
    if differing:
        yield Problem(other, "tokenizer", f"against {first}: {len(differing)} tokens differ: {_some(differing)}")
    for name, left, right in (
        ("special tokens", mine.special, theirs.special), ("chat template", mine.template, theirs.template),
        ("merges", mine.merges, theirs.merges),
    ):
        if left != right:
            yield Problem(other, "tokenizer", f"against {first}: the {name} differ")


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    tokens: Mapping[str, int]
    merges: Any
    special: Mapping[str, Any]
    template: str | None


def _tokenizer(folder: Path) -> _Tokenizer:
    """What is compared. Raises HeaderError."""
    full = folder / "tokenizer.json"
    body = read_json(full) if given.is_file(full) else {}
    settings_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    settings = read_json(settings_file) if given.is_file(settings_file) else {}
    model = body.get("model", {}) if body else {}
    try:
        vocabulary = model.get("vocab", {})
        if isinstance(vocabulary, list):                               # unigram: [[token, score], ..]
            vocabulary = {entry[0]: place for place, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in body.get("added_tokens") or []}
        tokens = {**vocabulary, **added}
        template = given.read_text(template_file) if given.is_file(template_file) else settings.get("chat_template")
    except given.Unreadable as error:
        raise HeaderError(f"{template_file}: cannot be read: {error}") from error
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise HeaderError(f"{full}: its tokens cannot be read") from error
    if not all(isinstance(token, str) and type(place) is int for token, place in tokens.items()):
        raise HeaderError(f"{full}: a token is not a text with a number")
    return _Tokenizer(
        tokens, model.get("merges"), {name: _plain(settings.get(name)) for name in SPECIAL},
        str(template) if template is not None else None,
    )


def _plain(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _shape(header: TensorHeader) -> str:
    return "x".join(map(str, header.shape)) or "scalar"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - TOKENS_SHOWN} more" if len(listed) > TOKENS_SHOWN else ""
    return ", ".join(repr(name) for name in listed[:TOKENS_SHOWN]) + more
