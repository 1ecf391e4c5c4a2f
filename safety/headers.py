"""What a model folder says about itself before any weight is read: safetensors headers and JSON files.

Standard library only, for preflight and for the facts of job "measure". Not here: what is allowed (`safety.bounds`).
Invariant: no byte of a tensor is read, and a file that is shorter than its header claims is an error.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from state.records import JsonObject

LONGEST_HEADER = 100 * 2**20          # what the safetensors library itself accepts
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}
INDEX = "model.safetensors.index.json"
LAYER_NAME = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


class HeaderError(Exception):
    """A model folder cannot be read; one line naming the file."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor: its number format (as torch names it), shape and file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, those its index names where it has one. Raises HeaderError."""
    index = folder / INDEX
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    body = read_json(index)
    named = body.get("weight_map")
    if not isinstance(named, Mapping):
        raise HeaderError(f"{index}: no weight_map")
    files = [folder / str(name) for name in sorted({str(name) for name in named.values()})]
    for file in files:
        if not file.is_file():
            raise HeaderError(f"{index}: names {file.name}, which is missing")
    return files


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of a model folder by name. Raises HeaderError."""
    headers: dict[str, TensorHeader] = {}
    for file in weight_files(folder):
        for name, header in _file_headers(file).items():
            if name in headers:
                raise HeaderError(f"{file}: tensor {name} is in {headers[name].file.name} as well")
            headers[name] = header
    return headers


def _file_headers(file: Path) -> dict[str, TensorHeader]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size + 1
        if length > min(size - 8, LONGEST_HEADER):
            raise HeaderError(f"{file}: truncated or not a safetensors file")
        text = stream.read(length)
    try:
        body = json.loads(text)
        body.pop("__metadata__", None)
        headers = {
            name: TensorHeader(
                DTYPES.get(entry["dtype"], str(entry["dtype"])), tuple(int(side) for side in entry["shape"]), file
            )
            for name, entry in body.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in body.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise HeaderError(f"{file}: its header cannot be read") from error
    if 8 + length + end != size:
        raise HeaderError(f"{file}: truncated: {size} bytes, its header needs {8 + length + end}")
    return headers


def read_json(file: Path) -> JsonObject:
    """A JSON object from a file. Raises HeaderError."""
    try:
        body: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise HeaderError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise HeaderError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise HeaderError(f"{file}: not a JSON object")
    return body


def layers_of(config: JsonObject, names: Mapping[str, Any]) -> int:
    """How many layers a model has, by its config or by its tensors' names, whichever says more."""
    inner = config.get("text_config")
    bodies = [config, inner] if isinstance(inner, dict) else [config]
    said = [int(body[key]) for body in bodies for key in LAYER_KEYS if isinstance(body.get(key), int)]
    seen = [int(match.group(1)) + 1 for name in names if (match := LAYER_NAME.search(name))]
    return max([0, *said, *seen])


def facts_of(folder: Path) -> JsonObject:
    """What the limits of the model family look at: parameters, layers, dtypes, file_gib. Raises HeaderError."""
    headers = tensor_headers(folder)
    return {
        "parameters": sum(header.count for header in headers.values()),
        "layers": layers_of(read_json(folder / "config.json"), headers),
        "dtypes": sorted({header.dtype for header in headers.values()}),
        "file_gib": sum(file.stat().st_size for file in weight_files(folder)) / 2**30,
    }
