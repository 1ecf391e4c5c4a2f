"""What can be known of the operator's models before any weight is read, and what is wrong with it.

Headers, configs and README front matter only, each read once; standard library only, no torch. Every problem is a line
that names the file. Not here: non-finite weights and drift (job "measure"). Invariant: nothing is repaired or cropped
in silence; a vocabulary that differs is reported with the tokens that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safety.adapters import CONFIG, adapter_facts, adapter_of, is_adapter
from safety.bounds import Bounds
from safety.headers import (
    EMBEDDING,
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
from safety.licences import CARD, UNKNOWN, licences_of
from safety.scope import ScopeError, kept, scope_of
from safety.tokenizer import Tokenizer, differences, has_own, has_tokenizer, read_tokenizer, same_files, some
from state import given
from state.errors import one_line
from state.records import JsonObject

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.gguf")
HARMLESS = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"})   # never loaded
MEANINGS: Final = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "hidden_activation", "activation_function",
    "num_experts_per_tok",
)
"""Settings by which tensors of the same shape mean something else."""
SENSES: Final = ("vision_config", "audio_config")             # what a model with more than a language part has
HEAD = "lm_head.weight"
MOST_THETA: Final = 1e12


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
    tokenizer: Tokenizer | None

    @classmethod
    def read(cls, path: Path, name: str, *, tokenizer: bool = True) -> Model:
        """With or without its tokenizer, which may take long. Raises HeaderError."""
        read = read_tokenizer(path) if tokenizer else None
        return cls(path, name, tensor_headers(path), read_json(path / "config.json"), read)

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


def preflight(
    paths: Sequence[Path], bounds: Bounds, parents: Sequence[Path] = (), base: Path | None = None
) -> list[Problem]:
    """Everything wrong with these model folders, alone and together.

    The first is what the others must match. One of `parents` may be a text model, too, that is alike to the language
    part of the first, or an adapter over `base`, which is one of `paths`.
    """
    problems: list[Problem] = []
    sound: list[Model] = []
    adapters = [path for path in dict.fromkeys(parents) if path not in paths and is_adapter(path)]
    for path in dict.fromkeys([*paths, *parents]):
        if path not in adapters:
            found, model = _alone(path, bounds)
            problems += found
            sound += [model] if model else []
    for other in sound[1:]:
        problems += different(sound[0], other, may_be_part=other.path in parents and other.path not in paths)
        problems += _dtypes(sound[0], other)
    over = next((model for model in sound if model.path == base), None)
    for path in adapters:
        problems += [*_adapter_alone(path, bounds), *(_over(over, path, bounds, sound) if over else ())]
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
        return adapter_problems(Model.read(first, "the base", tokenizer=has_own(other, first)), other)
    apart = not same_files(first, other)
    template = Model.read(first, "the template", tokenizer=apart)
    return different(template, Model.read(other, str(other), tokenizer=apart), may_be_part=True)


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


def adapter_problems(base: Model, folder: Path) -> list[Problem]:
    """What speaks against adding an adapter to `base`. A tokenizer beside it must be the base's; one without has the
    base's. Raises HeaderError for an adapter that does not fit, or is not understood.
    """
    adapter, problems = adapter_of(folder, base.shapes), []
    names = adapter.factors.keys() | adapter.replaced.keys()
    changed = sorted(name for name in names if EMBEDDING.search(name) or name.endswith(HEAD))
    if changed and base.tied and not adapter.keeps_tied:
        text = f"it changes {changed[0]}, and embeddings are the head (tie_word_embeddings): merged, both would change"
        problems.append(Problem(folder, "adapter", text))
    if base.tokenizer is not None and has_own(folder, base.path):
        found = differences(base.tokenizer, read_tokenizer(folder))
        problems += [Problem(folder, "tokenizer", f"against {base.name}: {words}") for words in found]
    return problems


def adapter_in_words(base: Path, folder: Path) -> str:
    """What an adapter without a problem does to its base; "" for a model."""
    if not is_adapter(folder):
        return ""
    return adapter_of(folder, {name: header.shape for name, header in tensor_headers(base).items()}).in_words


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


def rotary_in_words(base: Path, folder: Path) -> str:
    """Where a model's rotary position embeddings (arXiv 2104.09864) have another base frequency than those of `base`,
    whose configuration a merge has; else "". Its attention learnt other angles then. For models without a problem.
    """
    if is_adapter(folder):
        return ""
    own, kept = (_rope_theta(read_json(path / "config.json")) for path in (folder, base))
    same = own is None or kept is None or own == kept
    return "" if same else f"its rope_theta is {own:g}, what is merged has {kept:g}"


def _rope_theta(config: JsonObject) -> float | None:
    """As earlier versions of the library write it, or later ones."""
    inner = config.get("text_config")
    said: JsonObject = {**config, **inner} if isinstance(inner, dict) else config
    later = said.get("rope_parameters")
    theta: Any = said.get("rope_theta", later.get("rope_theta") if isinstance(later, dict) else None)
    return float(theta) if type(theta) in (int, float) and 0 < theta < MOST_THETA else None


def _over(base: Model, folder: Path, bounds: Bounds, models: Sequence[Model]) -> Iterator[Problem]:
    """What is wrong with an adapter over this base, `models` being all whole models of the settings."""
    try:
        yield from adapter_problems(base, folder)
        facts, made_on = adapter_facts(folder, base.path), Path(adapter_of(folder, base.shapes).made_on)
    except HeaderError as error:
        yield Problem(folder, "adapter", str(error))
        return
    if refusal := bounds.accept({**facts, "non_finite": 0, "loads_code": []}):      # code is told of by itself
        yield Problem(folder, "limits", str(refusal))
    if made_on.is_absolute() and not _same_place(made_on, base.path):
        for other in (model.path for model in models if _same_place(model.path, made_on)):
            yield Problem(folder, "adapter", f"it was made on {other}, not on the base {base.path}")


def _same_place(first: Path, other: Path) -> bool:
    try:
        return first.samefile(other)
    except (OSError, ValueError):
        return False


def _adapter_alone(path: Path, bounds: Bounds) -> Iterator[Problem]:
    yield from _remote_code(path)
    yield from _unsafe(path)
    yield from _unlisted(path, bounds)


def _alone(path: Path, bounds: Bounds) -> tuple[list[Problem], Model | None]:
    """What is wrong with one folder, and the model where it can be compared with others."""
    if not given.is_folder(path):
        return [Problem(path, "missing", "there is no such model folder")], None
    if is_adapter(path):
        return [Problem(path, "adapter", "holds an adapter: models.parents may, over the model of models.base")], None
    try:
        config = read_json(path / "config.json")
    except HeaderError as error:
        return [Problem(path, "config", str(error))], None
    named = isinstance(config.get("model_type"), str)
    found = [] if named else [Problem(path, "config", "config.json has no model_type")]
    found += [*_remote_code(path), *_elsewhere(path, config)]
    problems, headers = _weights(path, bounds)
    found += [*problems, *_unlisted(path, bounds)]
    if not has_tokenizer(path):
        found.append(Problem(path, "tokenizer", "there is no tokenizer (tokenizer.json)"))
    tokenizer = None
    try:
        tokenizer = read_tokenizer(path)
    except HeaderError as error:
        found.append(Problem(path, "tokenizer", str(error)))
    broken = headers is None or any(problem.check in ("weights", "config") for problem in found)
    return found, None if broken or headers is None else Model(path, str(path), headers, config, tokenizer)


def _unlisted(path: Path, bounds: Bounds) -> Iterator[Problem]:
    """Its licences that the bounds do not list."""
    allowed = {licence.lower() for licence in bounds.supply.licences}
    for licence in licences_of(path):
        if licence not in allowed:
            why = f": {CARD} names none" if licence == UNKNOWN else ""
            yield Problem(path, "licence", f"licence {licence!r} is not in supply.licences{why}")


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
    if (path / CONFIG).is_symlink() or (path / CONFIG).exists():
        yield Problem(path, "weights", f"there is an adapter ({CONFIG}) beside it: put it into a folder of its own")


def _weights(path: Path, bounds: Bounds) -> tuple[list[Problem], Mapping[str, TensorHeader] | None]:
    """What is wrong with the weights, and their headers where they can be read."""
    try:
        if not weight_files(path):
            pickles = _pickles(path)
            also = f" ({', '.join(pickles)} cannot be used: convert it)" if pickles else ""
            return [Problem(path, "weights", f"there are no safetensors weights{also}")], None
        if not any(given.is_file(path / name) for name in (SINGLE, INDEX)):
            text = f"there is neither {SINGLE} nor {INDEX}, by which weights are found"
            return [Problem(path, "weights", text)], None
        headers = tensor_headers(path)
        facts = facts_of(path, headers)
    except HeaderError as error:
        return [Problem(path, "weights", str(error))], None
    found = [*_unsafe(path)]
    refusal = bounds.accept({**facts, "non_finite": 0, "loads_code": []})          # code is told of by itself
    return found + ([Problem(path, "limits", str(refusal))] if refusal else []), headers


def _pickles(path: Path) -> list[str]:
    return sorted(file.name for pattern in PICKLES for file in path.glob(pattern) if file.name not in HARMLESS)


def _unsafe(path: Path) -> Iterator[Problem]:
    for name in _pickles(path):
        yield Problem(path, "format", f"{name} can run code when it is loaded; only safetensors are allowed")


def _same_tensors(first: Model, other: Model) -> Iterator[Problem]:
    mine, theirs = first.headers, other.headers
    for verb, names in (("lacks", mine.keys() - theirs.keys()), ("has, beyond it,", theirs.keys() - mine.keys())):
        if names:
            yield Problem(other.path, "tensors", f"against {first.name}: {verb} {some(names)}")
    common = sorted(mine.keys() & theirs.keys())
    shapes = [name for name in common if mine[name].shape != theirs[name].shape]
    if shapes:
        name = shapes[0]
        yield Problem(
            other.path, "shapes",
            f"against {first.name}: {some(shapes)} differ in shape ({name}: {_shape(mine[name])} and "
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
            f"against {first.name}: {some(differing)} differ in number format ({mine[name].dtype} and "
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
    if first.tokenizer is not None and other.tokenizer is not None:
        for words in differences(first.tokenizer, other.tokenizer, part=part):
            yield Problem(other.path, "tokenizer", f"against {first.name}: {words}")


def _shape(header: TensorHeader) -> str:
    return "x".join(map(str, header.shape)) or "scalar"
