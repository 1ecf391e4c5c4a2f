"""What can be known of the operator's models before any weight is read, and what is wrong with it.

Headers, configs and README front matter only, each read once; standard library only, no torch. Every problem is a line
that names the file. Not here: non-finite weights and drift (job "measure"). Invariant: nothing is repaired or cropped
in silence; a vocabulary that differs is reported with the tokens that differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safety.adapters import adapter_of, is_adapter
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
from safety.licences import licences_of
from safety.scope import ScopeError, kept, scope_of
from state import given
from state.errors import one_line
from state.records import JsonObject

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.gguf")
HARMLESS = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"})   # never loaded
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
STEPS = ("normalizer", "pre_tokenizer", "decoder")            # of tokenizer.json, beside its model and added tokens
MEANINGS: Final = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "hidden_activation", "activation_function",
    "num_experts_per_tok",
)
"""Settings by which tensors of the same shape mean something else."""
SENSES: Final = ("vision_config", "audio_config")             # what a model with more than a language part has
HEAD = "lm_head.weight"
LONGEST_TEMPLATE = 16 * 2**20
TOKENS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why a model cannot be used: which model folder, which check, and a line in words."""

    path: Path
    check: str
    text: str

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.text}")


@dataclass(frozen=True, slots=True)
class Model:
    """What was read of one model folder. `name` is what it is called in lines about it."""

    path: Path
    name: str
    headers: Mapping[str, TensorHeader]
    config: JsonObject
    tokenizer: _Tokenizer | None

    @classmethod
    def read(cls, path: Path, name: str) -> Model:
        """Raises HeaderError."""
        return cls(path, name, tensor_headers(path), read_json(path / "config.json"), _tokenizer(path))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: header.shape for name, header in self.headers.items()}

    @property
    def text_config(self) -> JsonObject:
        """The configuration of its language part."""
        inner = self.config.get("text_config")
        return {**self.config, **inner} if isinstance(inner, dict) else self.config

    @property
    def tied(self) -> bool:
        """Whether the embeddings are the head too: as the configuration says, or else by the head that is not there."""
        said = self.config.get("tie_word_embeddings", self.text_config.get("tie_word_embeddings"))
        return said if isinstance(said, bool) else not any(name.endswith(HEAD) for name in self.headers)

    @property
    def senses(self) -> bool:
        """Whether it has more than a language part."""
        return any(key in self.config for key in SENSES)


def preflight(paths: Sequence[Path], bounds: Bounds, parents: Sequence[Path] = ()) -> list[Problem]:
    """Everything wrong with these model folders, alone and together.

    The first is what the others must match. One of `parents` may be a text model, too, that is alike to the language
    part of the first.
    """
    problems: list[Problem] = []
    sound: list[Model] = []
    for path in dict.fromkeys([*paths, *parents]):
        found, model = _alone(path, bounds)
        problems += found
        sound += [model] if model else []
    for other in sound[1:]:
        problems += different(sound[0], other, may_be_part=other.path in parents and other.path not in paths)
        problems += _dtypes(sound[0], other)
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


def mismatches(first: Path, other: Path) -> list[Problem]:
    """Why `other`, a model or an adapter, cannot be merged into `first` or its language part. What they are alone is
    not looked at, and number formats may differ: what is made has the first's. Raises HeaderError for a folder that
    cannot be read, or an adapter that does not fit.
    """
    if first == other:
        return []
    if is_adapter(other):
        adapter_of(other, tensor_headers(first))
        return []                                           # its base's tokenizer is the model's
    return different(Model.read(first, "the template"), Model.read(other, str(other)), may_be_part=True)


def different(first: Model, other: Model, *, may_be_part: bool) -> list[Problem]:
    """What speaks against merging `other` into `first`. With `may_be_part` it may be a text model that is alike to the
    language part of `first`.
    """
    if may_be_part and first.headers.keys() != other.headers.keys() and first.senses and not other.senses:
        try:
            scope_of(first.shapes, other.shapes)
        except ScopeError as error:
            return [Problem(other.path, "tensors", f"no language part of {first.name}: {error}")]
        return [*_same_meaning(first, other), *_same_tokenizers(first, other, part=True)]
    return [*_same_tensors(first, other), *_same_configs(first, other), *_same_tokenizers(first, other)]


def scope_in_words(first: Path, other: Path) -> str:
    """What of `first` a model is merged into and what is kept, where it is not the whole; else "". For models without
    a problem.
    """
    if is_adapter(other):
        return ""
    whole, part = tensor_headers(first), tensor_headers(other)
    if whole.keys() == part.keys():
        return ""
    shapes = {name: header.shape for name, header in whole.items()}
    scope = scope_of(shapes, {name: header.shape for name, header in part.items()})
    stays = ", ".join(f"{name} ({count} tensors)" for name, count in kept(shapes, scope).items())
    return f"{len(scope)} tensors of the language part are merged; kept bit for bit: {stays}"


def _alone(path: Path, bounds: Bounds) -> tuple[list[Problem], Model | None]:
    """What is wrong with one folder, and the model where it can be compared with others."""
    if not given.is_folder(path):
        return [Problem(path, "missing", "there is no such model folder")], None
    try:
        config = read_json(path / "config.json")
    except HeaderError as error:
        return [Problem(path, "config", str(error))], None
    named = isinstance(config.get("model_type"), str)
    found = [] if named else [Problem(path, "config", "config.json has no model_type")]
    found += [*_remote_code(path), *_elsewhere(path, config)]
    problems, headers = _weights(path, bounds)
    found += problems
    allowed = {licence.lower() for licence in bounds.supply.licences}
    found += [
        Problem(path, "licence", f"licence {licence!r} is not in supply.licences")
        for licence in licences_of(path) if licence not in allowed
    ]
    if not any(given.is_file(path / name) for name in TOKENIZERS):
        found.append(Problem(path, "tokenizer", "there is no tokenizer (tokenizer.json)"))
    tokenizer = None
    try:
        tokenizer = _tokenizer(path)
    except HeaderError as error:
        found.append(Problem(path, "tokenizer", str(error)))
    broken = headers is None or any(problem.check in ("weights", "config") for problem in found)
    return found, None if broken or headers is None else Model(path, str(path), headers, config, tokenizer)


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


def _weights(path: Path, bounds: Bounds) -> tuple[list[Problem], Mapping[str, TensorHeader] | None]:
    """What is wrong with the weights, and their headers where they can be read."""
    pickles = sorted(
        file.name for pattern in PICKLES for file in path.glob(pattern) if file.name not in HARMLESS
    )
    try:
        if not weight_files(path):
            also = f" ({', '.join(pickles)} cannot be used: convert it)" if pickles else ""
            return [Problem(path, "weights", f"there are no safetensors weights{also}")], None
        if not any(given.is_file(path / name) for name in (SINGLE, INDEX)):
            text = f"there is neither {SINGLE} nor {INDEX}, by which weights are found"
            return [Problem(path, "weights", text)], None
        headers = tensor_headers(path)
        facts = facts_of(path, headers)
    except HeaderError as error:
        return [Problem(path, "weights", str(error))], None
    found = [
        Problem(path, "format", f"{name} can run code when it is loaded; only safetensors are allowed")
        for name in pickles
    ]
    refusal = bounds.accept({**facts, "non_finite": 0, "loads_code": []})          # code is told of by itself
    return found + ([Problem(path, "limits", str(refusal))] if refusal else []), headers


def _same_tensors(first: Model, other: Model) -> Iterator[Problem]:
    mine, theirs = first.headers, other.headers
    for verb, names in (("lacks", mine.keys() - theirs.keys()), ("has, beyond it,", theirs.keys() - mine.keys())):
        if names:
            yield Problem(other.path, "tensors", f"against {first.name}: {verb} {_some(names)}")
    common = sorted(mine.keys() & theirs.keys())
    shapes = [name for name in common if mine[name].shape != theirs[name].shape]
    if shapes:
        name = shapes[0]
        yield Problem(
            other.path, "shapes",
            f"against {first.name}: {_some(shapes)} differ in shape ({name}: {_shape(mine[name])} and "
            f"{_shape(theirs[name])})",
        )


def _dtypes(first: Model, other: Model) -> Iterator[Problem]:
    try:
        scope = scope_of(first.shapes, other.shapes)
    except ScopeError:
        scope = {name: name for name in first.headers.keys() & other.headers.keys()}
    mine, theirs = first.headers, other.headers
    differing = sorted(name for name, inner in scope.items() if mine[name].dtype != theirs[inner].dtype)
    if differing:
        name = differing[0]
        yield Problem(
            other.path, "dtypes",
            f"against {first.name}: {_some(differing)} differ in number format ({mine[name].dtype} and "
            f"{theirs[scope[name]].dtype})",
        )


def _same_configs(first: Model, other: Model) -> Iterator[Problem]:
    mine, theirs = first.config.get("model_type"), other.config.get("model_type")
    if mine != theirs:
        yield Problem(other.path, "config", f"against {first.name}: model_type is {theirs!r}, not {mine!r}")
    yield from _same_meaning(first, other)


def _same_meaning(first: Model, other: Model) -> Iterator[Problem]:
    if first.tied != other.tied:
        yield Problem(
            other.path, "config",
            f"against {first.name}: tie_word_embeddings is {_truth(other.tied)}, not {_truth(first.tied)}",
        )
    mine, theirs = first.text_config, other.text_config
    for key in MEANINGS:
        if None not in (mine.get(key), theirs.get(key)) and mine[key] != theirs[key]:
            yield Problem(other.path, "config", f"against {first.name}: {key} is {theirs[key]!r}, not {mine[key]!r}")


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _same_tokenizers(first: Model, other: Model, *, part: bool = False) -> Iterator[Problem]:
    """With `part`, tokens that only the first has (of images) are none of the other's business, and its template is."""
    mine, theirs = first.tokenizer, other.tokenizer
    if mine is None or theirs is None:
        return
    tokens = theirs.tokens.keys() if part else mine.tokens.keys() | theirs.tokens.keys()
    differing = sorted(token for token in tokens if mine.tokens.get(token) != theirs.tokens.get(token))
    if differing:
        yield Problem(
            other.path, "tokenizer", f"against {first.name}: {len(differing)} tokens differ: {_some(differing)}"
        )
    for name, left, right in (
        ("special tokens", mine.special, theirs.special), ("merges", mine.merges, theirs.merges),
        *((f"{step} of the tokenizers", mine.steps.get(step), theirs.steps.get(step)) for step in STEPS),
        ("sentencepiece models", mine.pieces, theirs.pieces),
        *([] if part else [("chat template", mine.template, theirs.template)]),
    ):
        if left != right:
            yield Problem(other.path, "tokenizer", f"against {first.name}: the {name} differ")


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """`steps` are what tokenizer.json does before and after its model; `pieces` is the SHA-256 of tokenizer.model where
    that is all there is; `template` names and texts of the chat templates.
    """

    tokens: Mapping[str, int]
    merges: Any
    special: Mapping[str, Any]
    steps: Mapping[str, Any]
    pieces: str
    template: Mapping[str, str]


def _tokenizer(folder: Path) -> _Tokenizer:
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
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise HeaderError(f"{full}: its tokens cannot be read") from error
    if not all(isinstance(token, str) and type(place) is int for token, place in tokens.items()):
        raise HeaderError(f"{full}: a token is not a text with a number")
    named = {**_json_if_there(folder / "special_tokens_map.json"), **settings}
    return _Tokenizer(
        tokens, model.get("merges"), {name: _plain(named.get(name)) for name in SPECIAL},
        {name: body.get(name) for name in STEPS}, "" if tokens else _pieces(folder / "tokenizer.model"),
        _templates(folder, settings),
    )


def _json_if_there(file: Path) -> JsonObject:
    return read_json(file) if given.is_file(file) else {}


def _pieces(file: Path) -> str:
    try:
        return hashlib.sha256(given.read_bytes(file)).hexdigest() if given.is_file(file) else ""
    except given.Unreadable as error:
        raise HeaderError(f"{file}: cannot be read: {error}") from error


def _templates(folder: Path, settings: JsonObject) -> dict[str, str]:
    """The chat templates by name: from the files that have them for themselves, else from the settings."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
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


def _shape(header: TensorHeader) -> str:
    return "x".join(map(str, header.shape)) or "scalar"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - TOKENS_SHOWN} more" if len(listed) > TOKENS_SHOWN else ""
    return ", ".join(repr(name) for name in listed[:TOKENS_SHOWN]) + more
