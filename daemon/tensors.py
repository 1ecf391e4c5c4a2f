"""The tensors of a model folder by the digests of their bytes: what `kaizend diff` compares. Standard library only."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from safety.headers import tensor_headers

CHUNK_BYTES = 1 << 20


def tensor_digests(folder: Path) -> dict[str, str]:
    """{tensor: "dtype shape digest"}. Raises HeaderError for a folder whose weights cannot be read."""
    headers = tensor_headers(folder)
    return {
        name: f"{headers[name].dtype} {'x'.join(map(str, headers[name].shape))} {digest[:12]}"
        for file in sorted({header.file for header in headers.values()})
        for name, digest in _digests(file)
    }


def _digests(file: Path) -> Iterator[tuple[str, str]]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            stream.seek(8 + length + start)
            digest = hashlib.sha256()
            while start < end:
                chunk = stream.read(min(CHUNK_BYTES, end - start))
                digest.update(chunk)
                start += len(chunk) or end
            yield name, digest.hexdigest()
