"""What a LoRA adapter (arXiv 2106.09685) in PEFT's format does to a model, by its config and headers alone.

Standard library only; no number is read. Not here: the sum itself (`loops.work.weights`). Invariant: an adapter is
understood in full or refused, each of its tensors included, because what is left out would be another model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safety.headers import HeaderError, TensorHeader, file_headers, read_json
from state import given
from state.records import JsonObject

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
FACTOR: Final = re.compile(r"\.lora_(embedding_)?([AB])(?:\.weight)?$")
OWN: Final = re.compile(r"\.base_layer(?=\.)")       # an embedding is written out whole beside its factors
KNOWN: Final = frozenset({                  # keys of the config that say how it was trained, or are taken into account
    "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
})


@dataclass(frozen=True, slots=True)
class Factors:
    """A tensor of the base changes by `scale` times b a, a product of two tensors of the adapter, or its transpose."""

    a: str
    b: str
    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True)
class Adapter:
    """What changes, by names of the base's tensors: first to a tensor that the adapter has, then by a product."""

    headers: Mapping[str, TensorHeader]
    factors: Mapping[str, Factors]
    replaced: Mapping[str, str]


def is_adapter(folder: Path) -> bool:
    return given.is_file(folder / CONFIG)


def adapter_of(folder: Path, base: Mapping[str, TensorHeader]) -> Adapter:
    """The adapter in a folder, for a model with these tensors. HeaderError where it does not fit, or does more than
    this understands.
    """
    config, headers = read_json(folder / CONFIG), file_headers(folder / WEIGHTS)
    for reason in _not_understood(config):
        raise HeaderError(f"{folder / CONFIG}: {reason}")
    factors: dict[str, Factors] = {}
    replaced: dict[str, str] = {}
    for name, header in headers.items():
        found = FACTOR.search(name)
        if not name.startswith(PREFIX):
            raise HeaderError(f"{header.file}: tensor {name!r} is not named as PEFT names those of a language model")
        target = f"{name[len(PREFIX):found.start()]}.weight" if found else OWN.sub("", name[len(PREFIX):])
        if target not in base:
            raise HeaderError(f"{header.file}: tensor {name!r} changes {target}, which the model does not have")
        if found is None:
            if header.shape != base[target].shape:
                raise HeaderError(f"{header.file}: tensor {name!r} has another shape than the model's {target}")
            replaced[target] = name
        elif found.group(2) == "A":
            factors[target] = _factors(config, name, target, headers, base[target], embedding=bool(found.group(1)))
        elif _other(name, found) not in headers:
            raise HeaderError(f"{header.file}: tensor {name!r} has no lora_A beside it")
    return Adapter(headers, factors, replaced)


def _not_understood(config: JsonObject) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}: only LORA can be merged"
    if config.get("bias", "none") != "none":
        yield "it changes biases (bias is not \"none\"), which is not supported"
    if type(config.get("lora_alpha")) not in (int, float) or not math.isfinite(config["lora_alpha"]):
        yield "lora_alpha is not a number"
    if any(not isinstance(config.get(key) or {}, dict) for key in ("alpha_pattern", "rank_pattern")):
        yield "alpha_pattern and rank_pattern must be tables"
    for key, value in config.items():
        if key not in KNOWN and value not in (None, False, [], {}):
            yield f"{key} is set, which is not supported"


def _factors(
    config: JsonObject, name: str, target: str, headers: Mapping[str, TensorHeader], changed: TensorHeader, *,
    embedding: bool,
) -> Factors:
    found = FACTOR.search(name)
    assert found is not None
    partner = _other(name, found)
    if partner not in headers:
        raise HeaderError(f"{headers[name].file}: tensor {name!r} has no lora_B beside it")
    a, b = headers[name].shape, headers[partner].shape
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
        raise HeaderError(f"{headers[name].file}: {name!r} and its lora_B have no product")
    if changed.shape != ((a[1], b[0]) if transposed else (b[0], a[1])):
        raise HeaderError(f"{headers[name].file}: {name!r} and its lora_B do not fit the model's {target}")
    alpha = _by_pattern(config.get("alpha_pattern") or {}, target.removesuffix(".weight"), config["lora_alpha"])
    return Factors(name, partner, alpha / (math.sqrt(a[0]) if config.get("use_rslora") else a[0]), transposed)


def _by_pattern(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    """The value of the first key that, as a regular expression, is the module's name or ends it after a dot."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise HeaderError(f"alpha_pattern has {pattern!r}, which is no regular expression: {error}") from error
    return otherwise


def _other(name: str, found: re.Match[str]) -> str:
    """The name of the factor that belongs to this one."""
    start = found.start(2)
    return f"{name[:start]}{'B' if name[start] == 'A' else 'A'}{name[start + 1:]}"
