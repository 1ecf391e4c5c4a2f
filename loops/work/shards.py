"""Writes a model's tensors as the safetensors files of a Hugging Face folder, one tensor in memory after another.

The header of a file follows from names, shapes and dtypes alone, so it is written before the first tensor is made. The
bytes are those that `huggingface_hub.save_torch_state_dict` gives for the same tensors. Tensors are made ahead by
threads while earlier ones are being written. Where there are several files, each that is finished is marked with its
digest: killed and run again, the files that match their marks stay. Invariant: a file has its name only when it is
complete. How a tensor is made is the caller's matter.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from loops.work.threads import tensor_threads
from loops.work.weights import Tensors
from safety.headers import DTYPES, INDEX, SINGLE
from state import files as disk
from state.records import JsonObject

SHARD_BYTES = 5 * 10**9
MAKING_BYTES = 8                        # of each number while its tensor is made: two of it in float32
SLACK_BYTES = 256 * 2**20               # beyond the largest tensors, what may be in memory at once
ORDER = (                               # of the tensors in a file: the widest numbers first, so that all are aligned
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E4M3", "F8_E5M2", "I8", "U8",
    "BOOL",
)
FORMATS = {getattr(torch, DTYPES[name]): name for name in ORDER}
METADATA = {"format": "pt"}
Progress = Callable[[float, str], None]
Make = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its name, its first bytes, its tensors in the order in which they follow, and its length in bytes."""

    name: str
    header: bytes
    tensors: tuple[str, ...]
    length: int


def laid_out(outline: Tensors, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """The files for these tensors, of at most `shard_bytes` of numbers each unless one tensor alone has more.

    ValueError for a dtype that safetensors does not know.
    """
    parts = _parts(outline, shard_bytes)
    names = [SINGLE] if len(parts) < 2 else [
        SINGLE.replace(".", f"-{number:05d}-of-{len(parts):05d}.") for number in range(1, len(parts) + 1)
    ]
    return [_shard(name, outline, part) for name, part in zip(names, parts, strict=True)]


def index_of(outline: Tensors, shards: list[Shard]) -> JsonObject:
    """The body of the index: which tensor is in which file."""
    where = {tensor: shard.name for shard in shards for tensor in shard.tensors}
    return {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in outline.values()), **METADATA},
        "weight_map": {name: where[name] for shard in shards for name in outline if where[name] == shard.name},
    }


def write(
    outline: Tensors, make: Make, folder: Path, marks: Path, *, shard_bytes: int = SHARD_BYTES, memory_bytes: int = 0,
    making_bytes: int = MAKING_BYTES, threads: int = 1, progress: Progress = lambda done, note: None,
) -> None:
    """Write the files, and the index where there are several. `make` gives a tensor by its name, on the CPU.

    What is made or being made at a time is held to `memory_bytes`, by an estimate of `making_bytes` for each number
    beside the number itself, but for one tensor, which may always be. Anything in `folder` that is not a finished file
    of this model is removed. OSError where the disk is too small.
    """
    shards = laid_out(outline, shard_bytes)
    left = [shard for shard in shards if not _is_finished(shard, folder, marks)]
    kept = {shard.name for shard in shards} - {shard.name for shard in left}
    for stray in [path for path in folder.iterdir() if path.name not in kept]:
        disk.discard(stray)
    _check_space(folder, sum(shard.length for shard in left))
    pace = Pace(sum(shard.length for shard in shards), sum(shard.length for shard in left), progress)
    names = [name for shard in left for name in shard.tensors]
    with closing(made_ahead(names, outline, make, memory_bytes, threads, making_bytes)) as made:
        for shard in left:
            if len(shards) == 1:
                _write_shard(shard, made, folder, pace)
            else:
                _write_marked(shard, made, folder, marks, pace)
    if len(shards) > 1:
        (folder / INDEX).write_text(json.dumps(index_of(outline, shards), indent=2), encoding="utf-8")


def made_ahead(
    names: Iterable[str], outline: Tensors, make: Make, memory_bytes: int, threads: int = 1,
    making_bytes: int = MAKING_BYTES,
) -> Generator[Tensor]:
    """The tensors in the order of `names`, made by so many threads while the caller uses the ones before."""
    waiting: deque[tuple[int, Future[Tensor]]] = deque()
    held = 0
    with tensor_threads(threads) as pool:
        for name in names:
            cost = outline[name].nbytes + making_bytes * outline[name].numel()
            while waiting and held + cost > memory_bytes:
                yield waiting[0][1].result()
                held -= waiting.popleft()[0]
            waiting.append((cost, pool.submit(make, name)))
            held += cost
        while waiting:
            yield waiting[0][1].result()
            waiting.popleft()


class Pace:
    """Tells how much is written, how fast, and how long the rest will take."""

    def __init__(self, total: int, left: int, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._left, self._written = total, left, 0
        self._progress, self._clock = progress, clock
        self._began = clock()

    def wrote(self, count: int) -> None:
        self._written += count
        seconds = max(self._clock() - self._began, 1e-9)
        rate, left = self._written / seconds, self._left - self._written
        self._progress(1.0 - left / self._total, f"{rate / 1e6:.0f} MB/s, {left / rate:.0f} s left")


def _parts(outline: Tensors, shard_bytes: int) -> list[list[str]]:
    """Names by file, filled in the order of the outline. A tensor that is too large for a file gets one of its own."""
    parts: list[list[str]] = []
    current: list[str] = []
    size = 0
    for name, tensor in outline.items():
        if tensor.nbytes > shard_bytes:
            parts.append([name])
            continue
        if size + tensor.nbytes > shard_bytes:
            parts.append(current)
            current, size = [], 0
        current.append(name)
        size += tensor.nbytes
    return [*parts, current] if current else parts


def _shard(name: str, outline: Tensors, tensors: list[str]) -> Shard:
    entries: JsonObject = {"__metadata__": METADATA}
    end = 0
    in_order = sorted(tensors, key=lambda tensor: (ORDER.index(_format(tensor, outline[tensor])), tensor))
    for tensor in in_order:
        start, end = end, end + outline[tensor].nbytes
        entries[tensor] = {
            "dtype": _format(tensor, outline[tensor]), "shape": list(outline[tensor].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return Shard(name, header, tuple(in_order), len(header) + end)


def _format(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in FORMATS:
        raise ValueError(f"tensor {name} is {tensor.dtype}, which safetensors cannot hold")
    return FORMATS[tensor.dtype]


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed / 1e9:.1f} GB are to be written, "
                                    f"{free / 1e9:.1f} GB are free", str(folder))


def _write_marked(shard: Shard, made: Iterator[Tensor], folder: Path, marks: Path, pace: Pace) -> None:
    """Write one file through to the disk, then its mark."""
    digest = hashlib.sha256()
    _write_shard(shard, made, folder, pace, digest.update)
    disk.sync(folder / shard.name)
    marks.mkdir(exist_ok=True)
    mark = marks / Path(shard.name).stem
    fresh = mark.with_suffix(".writing")
    fresh.write_text(digest.hexdigest(), encoding="ascii")
    fresh.rename(mark)


def _write_shard(
    shard: Shard, made: Iterator[Tensor], folder: Path, pace: Pace, note: Callable[[memoryview], None] = lambda _: None
) -> None:
    writing = folder / f"{shard.name}.writing"
    with writing.open("wb", buffering=0) as file:
        for piece in chain([memoryview(shard.header)], (_bytes(next(made)) for _ in shard.tensors)):
            _write_all(file.fileno(), piece)
            note(piece)
            pace.wrote(len(piece))
    writing.rename(folder / shard.name)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_all(handle: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(handle, piece):]


def _is_finished(shard: Shard, folder: Path, marks: Path) -> bool:
    """Whether an earlier run wrote this file and marked it, and it still has those bytes."""
    with suppress(OSError, ValueError):
        marked = (marks / Path(shard.name).stem).read_text(encoding="ascii")
        with (folder / shard.name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == marked
    return False
