"""What a model folder says about itself before any weight is read: safetensors headers and JSON files.

Standard library only, for preflight and for the facts of job "measure". Not here: what is allowed (`safety.bounds`).
Invariant: no byte of a tensor is read, and a file that is shorter than its header claims is an error.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from state import given
from state.records import JsonObject

LONGEST_HEADER = 100 * 2**20          # what the safetensors library itself accepts
MOST_HEADERS = 128 * 2**20            # bytes of all headers of a model together: some hundred for each tensor
LONGEST_INDEX = 128 * 2**20
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LAYER_NAME = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.([0-9]{1,9})\.")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
VOCABULARY_KEYS = ("vocab_size",)
HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model")
INTERMEDIATE_KEYS = ("intermediate_size", "moe_intermediate_size", "n_inner", "ffn_dim", "d_inner", "ffn_hidden_size")
EMBEDDING = re.compile(r"(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|(?:^|\.)embeddings)\.weight$")
CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "custom_generate"})       # name Python files beside the weights
KERNEL_KEYS = frozenset({
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
})
OUTER_NAME = re.compile(r"^(model|transformer|gpt_neox|backbone)\.(?=.)")
NOT_WEIGHTS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")      # tables that some versions write out
HEAD = "lm_head.weight"
NAMES_SHOWN = 5
T = TypeVar("T")


class HeaderError(Exception):
    """A model folder cannot be read; one line naming the file."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor: its number format (as torch names it), shape, file, and the byte of the file where it begins."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, those its index names where it has one. Raises HeaderError."""
    return _files_of(folder, _weight_map(folder))


def _files_of(folder: Path, named: Mapping[str, str] | None) -> list[Path]:
    if named is None:
        return sorted(folder.glob("*.safetensors"))
    index = folder / INDEX
    files = []
    for name in sorted(set(named.values())):
        if name != Path(name).name or "\0" in name:
            raise HeaderError(f"{index}: names {name!r}, which is not the name of a file beside it")
        if not given.is_file(folder / name):
            raise HeaderError(f"{index}: names {name}, which is missing")
        files.append(folder / name)
    if given.is_file(folder / SINGLE) and folder / SINGLE not in files:
        raise HeaderError(f"{index}: there is a {SINGLE} beside it, and which of the two is the model is not clear")
    return files


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Which file the index says each tensor is in; None where there is no index."""
    index = folder / INDEX
    if not index.is_symlink() and not index.exists():
        return None
    named = read_json(index, LONGEST_INDEX).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise HeaderError(f"{index}: no weight_map of tensors and their files")
    return named


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of a model folder by name, read once through: time and memory go by the headers, not by the weights.

    Raises HeaderError.
    """
    headers: dict[str, TensorHeader] = {}
    named, left = _weight_map(folder), MOST_HEADERS
    for file in _files_of(folder, named):
        length, found = _file_headers(file, left)
        left -= length
        for name, header in found.items():
            if name in headers:
                raise HeaderError(f"{file}: tensor {name} is in {headers[name].file.name} as well")
            headers[name] = header
    for name, place in sorted((named or {}).items()):
        if name not in headers:
            raise HeaderError(f"{folder / INDEX}: names tensor {name!r}, which is in no file")
        if headers[name].file.name != place:
            raise HeaderError(f"{folder / INDEX}: says that tensor {name!r} is in {place}, it is in "
                              f"{headers[name].file.name}")
    return headers


def file_headers(file: Path) -> dict[str, TensorHeader]:
    """Every tensor of one safetensors file by name. Raises HeaderError."""
    return _file_headers(file, LONGEST_HEADER)[1]


def _file_headers(file: Path, most: int) -> tuple[int, dict[str, TensorHeader]]:
    """The bytes of a file's header and its tensors; HeaderError where it has more than `most` bytes."""
    if not given.is_file(file):
        raise HeaderError(f"{file}: cannot be read: not a regular file")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else size + 1
            if length > min(size - 8, LONGEST_HEADER):
                raise HeaderError(f"{file}: truncated or not a safetensors file")
            if length > most:
                raise HeaderError(f"{file}: the headers of the model are larger than {MOST_HEADERS >> 20} MiB together")
            text = stream.read(length)
    except OSError as error:
        raise HeaderError(f"{file}: cannot be read: {error.strerror}") from error
    body = _header(file, text)
    headers = {name: _tensor(file, name, entry, 8 + length) for name, entry in body.items()}
    end = 0
    for place, name in sorted((body[name]["data_offsets"], name) for name in body):
        if place[0] != end:
            raise HeaderError(f"{file}: tensor {name!r} begins at byte {place[0]}, the one before it ends at {end}")
        end = place[1]
    if 8 + length + end != size:
        raise HeaderError(f"{file}: truncated: {size} bytes, its header needs {8 + length + end}")
    return length, headers


def _header(file: Path, text: bytes) -> JsonObject:
    """The entries of the tensors. A header is an object from its first byte on, padded with spaces."""
    try:
        body = given.parse_json(text.decode("utf-8"))
    except (UnicodeDecodeError, given.Unreadable) as error:
        raise HeaderError(f"{file}: its header cannot be read: {error}") from error
    if not isinstance(body, dict) or not text.startswith(b"{"):
        raise HeaderError(f"{file}: its header is not a JSON object")
    metadata = body.pop("__metadata__", None)
    texts = {} if metadata is None else metadata
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise HeaderError(f"{file}: the metadata in its header are not texts")
    return body


def _tensor(file: Path, name: str, entry: Any, first: int) -> TensorHeader:
    """One entry of a header: number format, shape, and as many bytes as they take, counted from byte `first`."""
    known = entry if isinstance(entry, dict) else {}
    dtype, shape, place = known.get("dtype"), known.get("shape"), known.get("data_offsets")
    if not isinstance(dtype, str) or not _are_counts(shape) or not _are_counts(place) or len(place) != 2:
        raise HeaderError(f"{file}: tensor {name!r} has no proper dtype, shape and data_offsets")
    needed = math.prod(shape) * BYTES[dtype] if dtype in BYTES else None
    if place[0] > place[1] or needed not in (None, place[1] - place[0]):
        raise HeaderError(f"{file}: tensor {name!r} has {place[1] - place[0]} bytes, its shape and dtype need {needed}")
    return TensorHeader(DTYPES.get(dtype, dtype), tuple(shape), file, first + place[0])


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of whole numbers that a file can be as large as."""
    return isinstance(value, list) and all(type(entry) is int and 0 <= entry < 2**63 for entry in value)


def read_json(file: Path, most: int = given.MOST_TEXT) -> JsonObject:
    """A JSON object from a file of at most `most` bytes. Raises HeaderError."""
    try:
        body: Any = given.parse_json(given.read_text(file, most))
    except given.NotValid as error:
        raise HeaderError(f"{file}: not valid JSON: {error}") from error
    except given.Unreadable as error:
        raise HeaderError(f"{file}: cannot be read: {error}") from error
    if not isinstance(body, dict):
        raise HeaderError(f"{file}: not a JSON object")
    return body


def layers_of(config: JsonObject, names: Mapping[str, Any]) -> int:
    """How many layers a model has, by its config or by its tensors' names, whichever says more."""
    seen = [int(match.group(1)) + 1 for name in names if (match := LAYER_NAME.search(name))]
    return max([_said(config, LAYER_KEYS), *seen])


def facts_of(folder: Path, headers: Mapping[str, TensorHeader] | None = None) -> JsonObject:
    """What the limits of the model family look at: parameters, layers, dtypes, file_gib, vocabulary, hidden,
    intermediate, model_type, loads_code. `headers` are the folder's where they were read already. Raises HeaderError.
    """
    headers, config = tensor_headers(folder) if headers is None else headers, read_json(folder / "config.json")
    tables = [header.shape for name, header in headers.items() if EMBEDDING.search(name) and len(header.shape) == 2]
    return {
        "parameters": sum(header.count for header in headers.values()),
        "layers": layers_of(config, headers),
        "dtypes": sorted({header.dtype for header in headers.values()}),
        "file_gib": sum(file.stat().st_size for file in {header.file for header in headers.values()}) / 2**30,
        "vocabulary": max([_said(config, VOCABULARY_KEYS), *(shape[0] for shape in tables)]),
        "hidden": max([_said(config, HIDDEN_KEYS), *(shape[1] for shape in tables)]),
        "intermediate": _said(config, INTERMEDIATE_KEYS),
        "model_type": str(config.get("model_type")),
        "loads_code": code_keys(folder),
    }


def code_keys(folder: Path) -> list[str]:
    """The keys by which the JSON files of a model would have code run that comes with it, as "file: key"."""
    found = []
    for name in sorted({*CONFIGS, *(file.name for file in folder.glob("*config.json"))}):
        if (folder / name).is_symlink() or (folder / name).exists():
            found += [f"{name}: {key}" for key in sorted(set(_code_keys(read_json(folder / name))))]
    return found


def _code_keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            named = key == "auto_map" or (key in CODE_KEYS and inner is not None)
            if named or (key in KERNEL_KEYS and "/" in str(inner)):
                yield key
            yield from _code_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _code_keys(inner)


def unlike(folder: Path, other: Path, any_depth: bool = False) -> list[str]:
    """Tensors that `folder` has otherwise than `other`, a line each and not all of many; empty where the names and
    shapes are the same.

    The name of the outermost module does not count, nor a head that is written out although it is tied. With
    `any_depth` the layers may stand in any order and number, as long as each has the tensors of one that was there.
    """
    mine, theirs = (_schema(place) for place in (folder, other))
    lines: list[str] = []
    if any_depth:
        (mine, layers), (theirs, known) = by_layer(mine), by_layer(theirs)
        lines = [f"{name} has the tensors of no layer" for name in layers if layers[name] not in known.values()]
    lines += [f"{name} is missing" for name in sorted(theirs.keys() - mine.keys())]
    lines += [f"{name} is new" for name in sorted(mine.keys() - theirs.keys())]
    lines += [
        f"{name} is {list(mine[name])}, was {list(theirs[name])}"
        for name in sorted(mine.keys() & theirs.keys()) if mine[name] != theirs[name]
    ]
    more = len(lines) - NAMES_SHOWN
    return [*lines[:NAMES_SHOWN], f"and {more} more"] if more > 0 else lines


def by_layer(named: Mapping[str, T]) -> tuple[dict[str, T], dict[str, dict[str, T]]]:
    """What is named outside the layers, and for each layer ("model.layers.3") what is named in it, by the rest."""
    outside: dict[str, T] = {}
    layers: dict[str, dict[str, T]] = {}
    for name, value in named.items():
        found = LAYER_NAME.search(name)
        if found:
            layers.setdefault(name[: found.end() - 1], {})[name[found.end() :]] = value
        else:
            outside[name] = value
    return outside, layers


def _schema(folder: Path) -> dict[str, tuple[int, ...]]:
    tied = bool(read_json(folder / "config.json").get("tie_word_embeddings"))
    shapes = {
        OUTER_NAME.sub("", name): header.shape for name, header in tensor_headers(folder).items()
        if not NOT_WEIGHTS.search(name)
    }
    return {name: shape for name, shape in shapes.items() if not (tied and name == HEAD)}


def _said(config: JsonObject, keys: Sequence[str]) -> int:
    """The largest number that the config has under any of the keys, its part for text included; 0 where it has none."""
    inner = config.get("text_config")
    bodies = [config, inner] if isinstance(inner, dict) else [config]
    return max([0, *(int(body[key]) for body in bodies for key in keys if type(body.get(key)) is int)])
