"""The layers of a model, as its config and its tensors' names tell of them: whether they can be laid end to end in
another order, how large what comes out is, and by which of their tensors they write into the residual stream.

Standard library only: preflight asks before any weight is read, and paths are built by the same answers. Invariant: a
kind of model that is not known to read its residual stream through scale-free norms alone is refused by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safety.headers import BYTES, DTYPES, LAYER_KEYS, layers_of, read_json, tensor_headers
from state.records import JsonObject

PATH = "path"
STACK = re.compile(r"^((?:.*?\.)?(?:layers|h))\.(\d{1,9})\.(.+)$")
WRITERS = re.compile(
    r"^(?:self_attn\.(?:o_proj|out_proj|dense)|attn\.(?:c_proj|out_proj)|attention\.dense|conv\.out_proj"
    r"|mlp\.(?:down_proj|c_proj|fc2|fc_out|dense_4h_to_h)|feed_forward\.w2)\.(?:weight|bias)$"
)
PRE_NORM = frozenset({
    "cohere", "cohere2", "gemma", "glm", "gpt2", "gpt_neox", "gptj", "granite", "lfm2", "llama", "mistral", "olmo",
    "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
})
"""Every read of the residual stream goes through an RMSNorm or LayerNorm, and every write is one of `WRITERS`, linear
in its weight and bias. In others a branch reads the stream as it is (olmo2), or a norm follows the write (gemma2).
"""
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
BY_PLACE = {"scale_attn_by_inverse_layer_idx": "scales attention by a layer's place"}
OF_NO_ACCOUNT = frozenset({
    "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "dtype", "embd_pdrop", "initializer_range",
    "max_window_layers", "pretraining_tp", "resid_pdrop", "torch_dtype", "transformers_version", "use_cache",
})
"""Keys of a config that change nothing of what its layers compute."""


BYTES_OF = {DTYPES[name]: size for name, size in BYTES.items()}


@dataclass(frozen=True, slots=True)
class Sizes:
    """(parameters, bytes) of a model, outside its layers and in each of them."""

    outside: tuple[int, int] = (0, 0)
    layers: dict[int, tuple[int, int]] = field(default_factory=dict)


def sizes_of(folder: Path) -> Sizes:
    """By the headers alone. Raises HeaderError."""
    found: dict[int | None, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for name, header in tensor_headers(folder).items():
        place = place_of(name)
        layer = place[1] if place else None
        count, size = found[layer]
        found[layer] = count + header.count, size + header.count * BYTES_OF.get(header.dtype, 0)
    return Sizes(found.pop(None, (0, 0)), {layer: size for layer, size in found.items() if layer is not None})


def forecast(change: JsonObject, sizes: Callable[[str], Sizes]) -> JsonObject:
    """What of the facts about a path (`safety.headers.facts_of`) is known before it is built: parameters, file_gib.

    `sizes` tells those of a model by its digest. Nothing of another change, and none where a model has no such layer:
    that is said where it is built.
    """
    if change.get("kind") != PATH:
        return {}
    models = [sizes(digest) for digest in change["parents"]]
    if any(layer not in models[model].layers for model, layer in change["layers"]):
        return {}
    parts = [models[0].outside, *(models[model].layers[layer] for model, layer in change["layers"])]
    return {"parameters": sum(count for count, _ in parts), "file_gib": sum(size for _, size in parts) / 2**30}


def place_of(tensor: str) -> tuple[str, int, str] | None:
    """(stack, layer, name within the layer) of a tensor; None for one outside the layers."""
    found = STACK.match(tensor)
    return (found.group(1), int(found.group(2)), found.group(3)) if found else None


def writes(name: str) -> bool:
    """Whether a tensor, by its name within the layer, is what the layer adds to the residual stream with."""
    return bool(WRITERS.match(name))


def depth_of(folder: Path) -> int:
    """How many layers the config of a model folder says. Raises HeaderError."""
    return layers_of(read_json(folder / "config.json"), {})


def obstacle(config: JsonObject) -> str | None:
    """Why no path can be laid through the layers of a model with this config, in words; None where one can."""
    kind, depth = config.get("model_type"), layers_of(config, {})
    if not isinstance(kind, str) or kind not in PRE_NORM:
        return f"no path can be laid through layers of model_type {kind!r}: known are {', '.join(sorted(PRE_NORM))}"
    if not depth or not any(key in config for key in LAYER_KEYS):
        return "config.json does not say how many layers there are"
    for key, what in BY_PLACE.items():
        if config.get(key):
            return f"no path can be laid through its layers: {key} {what}"
    if config.get("use_sliding_window") and not config.get("layer_types"):
        return "no path can be laid through its layers: use_sliding_window without layer_types"
    for key in PER_LAYER:
        listed = config.get(key)
        if listed is not None and not (isinstance(listed, list) and len(listed) == depth):
            return f"{key} in config.json is no list of {depth}, one for each layer"
    return None


def difference(config: JsonObject, other: JsonObject) -> str | None:
    """The first key by which the layers of two models compute otherwise, so that one config cannot serve both."""
    known = {*LAYER_KEYS, *OF_NO_ACCOUNT}
    for key in sorted(config.keys() | other.keys()):
        if key in known or key.endswith("_token_id"):
            continue
        if key in PER_LAYER:
            if (config.get(key) is None) != (other.get(key) is None):
                return key
        elif config.get(key) != other.get(key):
            return key
    return None


def laid(configs: Sequence[JsonObject], layers: Sequence[tuple[int, int]]) -> JsonObject:
    """The config of a path: the first config with as many layers, and each layer's own entries in its lists.

    `layers` are (place of the model in `configs`, layer). ValueError, one line, where no path can be laid.
    """
    for config in configs:
        found = obstacle(config)
        if found:
            raise ValueError(found)
        key = difference(configs[0], config)
        if key:
            raise ValueError(f"one config cannot serve both models: {key} is {config.get(key)!r}, "
                             f"not {configs[0].get(key)!r}")
    first = dict(configs[0])
    first |= {key: len(layers) for key in LAYER_KEYS if key in first}
    first |= {key: [configs[model][key][layer] for model, layer in layers] for key in PER_LAYER if first.get(key)}
    return first
