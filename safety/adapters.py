"""What a LoRA adapter (arXiv 2106.09685) in PEFT's format does to a model, by its config and headers alone.

Rank-stabilised ones (2312.03732) and DoRA (2402.09353) too. Standard library only; no number is read. Not here: the sum
itself (`loops.work.weights`), and whether a folder may be used at all (`safety.preflight`). Invariant: an adapter is
understood in full or refused, each of its tensors included, because what is left out would be another model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safety.headers import (
    EMBEDDING,
    HEAD,
    HeaderError,
    TensorHeader,
    code_keys,
    facts_of,
    file_headers,
    read_json,
    weight_files,
)
from state import given
from state.records import JsonObject

Shapes = Mapping[str, Sequence[int]]
Alphas = list[tuple[re.Pattern[str], float]]

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
FACTOR: Final = re.compile(r"\.lora_(embedding_)?([AB])(?:\.weight)?$")
MAGNITUDE: Final = re.compile(r"\.lora_magnitude_vector(?:\.weight)?$")
OWN: Final = re.compile(r"\.base_layer(?=\.)")       # an embedding is written out whole beside its factors
KNOWN: Final = frozenset({                  # keys of the config that say how it was trained, or are taken into account
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
})
LEAVE_BASE: Final = frozenset({"None", "True", "False", "gaussian", "eva", "orthogonal"})
"""Ways to begin a training (init_lora_weights) that leave the base's own weights as they are."""
MOST_ALPHA: Final = 1e9
REPEATED, REPEATED_GROUP = re.compile(r"[*+]|\{\d*,"), re.compile(r"\)\s*[*+{]")
MOST_REPEATED: Final = 3                    # in one pattern: looking for more takes too long on a name made for it
NUMBERS: Final = frozenset({"float64", "float32", "float16", "bfloat16"})


@dataclass(frozen=True, slots=True)
class Factors:
    """A tensor of the base changes by `scale` times b a, a product of two tensors of the adapter, or its transpose.

    With a `magnitude` (DoRA) the sum is then scaled to have those lengths: each row, or each column where transposed.
    """

    a: str
    b: str
    scale: float
    transposed: bool
    magnitude: str | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """What changes, by names of the base's tensors: first to a tensor that the adapter has, then by a product.

    `made_on` is what its config calls the model that it was trained on, "" where it does not say; `keeps_tied` whether
    it was trained to change embeddings and head as one.
    """

    headers: Mapping[str, TensorHeader]
    factors: Mapping[str, Factors]
    replaced: Mapping[str, str]
    made_on: str
    keeps_tied: bool

    @property
    def in_words(self) -> str:
        ranks = sorted({self.headers[factors.a].shape[0] for factors in self.factors.values()})
        kind = "DoRA" if any(factors.magnitude for factors in self.factors.values()) else "LoRA"
        rank = " to ".join(str(rank) for rank in dict.fromkeys([*ranks[:1], *ranks[-1:]]))
        changed = len(self.factors.keys() | self.replaced.keys())
        said = f"; its config says that it was made on {self.made_on!r}" if self.made_on else ""
        return f"{kind} adapter{f' of rank {rank}' if rank else ''} that changes {changed} tensors of the base{said}"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model that it could be beside."""
    try:
        return given.is_file(folder / CONFIG) and all(file.name == WEIGHTS for file in weight_files(folder))
    except HeaderError:                                         # an index is there, so a model is, or should be
        return False


def adapter_of(folder: Path, base: Shapes) -> Adapter:
    """The adapter in a folder, for a model with tensors of these shapes. HeaderError where it does not fit, or does
    more than this understands.
    """
    config = read_json(folder / CONFIG)
    for reason in _not_understood(config):
        raise HeaderError(f"{folder / CONFIG}: {reason}")
    if not given.is_file(folder / WEIGHTS):
        raise HeaderError(f"{folder}: there is no {WEIGHTS} beside {CONFIG}")
    headers = file_headers(folder / WEIGHTS)
    if not headers:
        raise HeaderError(f"{folder / WEIGHTS}: it has no tensors")
    alphas, factors = _alphas(config), dict[str, Factors]()
    replaced: dict[str, str] = {}
    for name, header in headers.items():
        part = FACTOR.search(name) or MAGNITUDE.search(name)
        target = _target(name, header, part)
        if target not in base:
            raise HeaderError(f"{header.file}: tensor {name!r} changes {target}, which the model does not have")
        if part is None:
            _refuse_another_shape(name, header, target, base[target])
            replaced[target] = name
        elif part.re is FACTOR and part.group(2) == "A":
            factors[target] = _factors(config, name, part, target, headers, base[target], alphas)
        elif not any(f"{name[:part.start()]}.lora_{a}" in headers for a in ("A.weight", "embedding_A", "A")):
            raise HeaderError(f"{header.file}: tensor {name!r} has no lora_A beside it")
    made_on, keeps_tied = str(config.get("base_model_name_or_path") or ""), bool(config.get("ensure_weight_tying"))
    return Adapter(headers, factors, replaced, made_on, keeps_tied)


def adapter_facts(folder: Path, base: Path) -> JsonObject:
    """The facts (`safety.headers.facts_of`) of the model that an adapter makes of a base, with the number formats, the
    bytes and the code of both. Raises HeaderError.
    """
    facts, headers = facts_of(base), file_headers(folder / WEIGHTS)
    return {
        **facts, "dtypes": sorted({*facts["dtypes"], *(header.dtype for header in headers.values())}),
        "file_gib": facts["file_gib"] + (folder / WEIGHTS).stat().st_size / 2**30,
        "loads_code": [*facts["loads_code"], *code_keys(folder)],
    }


def _not_understood(config: JsonObject) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}: only LORA can be merged"
    if config.get("bias", "none") != "none":
        yield "it changes biases (bias is not \"none\"), which is not supported"
    if not _is_number(config.get("lora_alpha")):
        yield "lora_alpha is not a number"
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
        yield "alpha_pattern is no table of numbers"
    if str(config.get("init_lora_weights")) not in LEAVE_BASE:
        yield (f"init_lora_weights is {config['init_lora_weights']!r}, with which training may have changed the "
               "base's own weights: convert it to a plain adapter first")
    for key, value in config.items():
        if key not in KNOWN and value not in (None, False, [], {}):
            yield f"{key} is set, which is not supported"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MOST_ALPHA


def _target(name: str, header: TensorHeader, part: re.Match[str] | None) -> str:
    """The tensor of the base that one of the adapter's is about."""
    if not name.startswith(PREFIX):
        raise HeaderError(f"{header.file}: tensor {name!r} is not named as PEFT names those of a language model")
    if header.dtype not in NUMBERS:
        raise HeaderError(f"{header.file}: tensor {name!r} is in the number format {header.dtype}: what is quantised "
                          "cannot be merged")
    return f"{name[len(PREFIX):part.start()]}.weight" if part else OWN.sub("", name[len(PREFIX):])


def _refuse_another_shape(name: str, header: TensorHeader, target: str, shape: Sequence[int]) -> None:
    if header.shape == tuple(shape):
        return
    mine, its = ("x".join(map(str, sides)) for sides in (header.shape, shape))
    resized = (EMBEDDING.search(target) or target.endswith(HEAD)) and header.shape[1:] == tuple(shape)[1:]
    why = ": its vocabulary was resized, which is not supported" if resized else ""
    raise HeaderError(f"{header.file}: tensor {name!r} is {mine}, the model's {target} is {its}{why}")


def _factors(
    config: JsonObject, name: str, part: re.Match[str], target: str, headers: Mapping[str, TensorHeader],
    changed: Sequence[int], alphas: Alphas,
) -> Factors:
    file, module = headers[name].file, name[:part.start()]
    partner = f"{name[:part.start(2)]}B{name[part.end(2):]}"
    if partner not in headers:
        raise HeaderError(f"{file}: tensor {name!r} has no lora_B beside it")
    a, b = headers[name].shape, headers[partner].shape
    transposed = bool(part.group(1)) or bool(config.get("fan_in_fan_out"))
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
        raise HeaderError(f"{file}: {name!r} and its lora_B have no product")
    if tuple(changed) != ((a[1], b[0]) if transposed else (b[0], a[1])):
        raise HeaderError(f"{file}: {name!r} and its lora_B do not fit the model's {target}")
    places = (f"{module}.lora_magnitude_vector", f"{module}.lora_magnitude_vector.weight")
    magnitude = next((place for place in places if place in headers), None)
    if bool(magnitude) != bool(config.get("use_dora")):
        raise HeaderError(f"{file}: {module!r} has {'a' if magnitude else 'no'} lora_magnitude_vector, "
                          f"use_dora is {'false' if magnitude else 'true'}")
    if magnitude and headers[magnitude].count != b[0]:
        raise HeaderError(f"{file}: {magnitude!r} does not fit the model's {target}")
    own = (alpha for pattern, alpha in alphas if pattern.match(target.removesuffix(".weight")))
    alpha = next(own, config["lora_alpha"])
    scale = alpha / (math.sqrt(a[0]) if config.get("use_rslora") else a[0])
    return Factors(name, partner, scale, transposed, magnitude)


def _alphas(config: JsonObject) -> Alphas:
    """The keys of alpha_pattern as regular expressions: of a module's name, or of its end after a dot. HeaderError for
    one that could take for ever.
    """
    found = []
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if REPEATED_GROUP.search(pattern) or len(REPEATED.findall(pattern)) > MOST_REPEATED:
            raise HeaderError(f"alpha_pattern has {pattern!r}, which may take too long to look for")
        try:
            found.append((re.compile(rf"(.*\.)?({pattern})$"), alpha))
        except (re.error, OverflowError, RecursionError) as error:
            raise HeaderError(f"alpha_pattern has {pattern!r}, which is no regular expression: {error}") from error
    return found
