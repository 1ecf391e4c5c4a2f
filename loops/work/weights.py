"""The tensors of a model, mapped from the files of its folder and read when they are asked for.

Nothing is kept in memory: the pages of a mapped file are the kernel's, read ahead (`Ahead`) and dropped when it needs
room. An adapter is a model, too: its base's tensors with the adapter's products added, each when it is asked
for. Which files and tensors there are is the business of `safety.headers`, what an adapter does of `safety.adapters`.
Invariant: what is mapped is never written to.
"""

from __future__ import annotations

import mmap
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from safety.adapters import adapter_of, is_adapter
from safety.headers import TensorHeader, tensor_headers

Tensors = Mapping[str, Tensor]
AHEAD_BYTES = 64 * 2**20        # of a file that are read before they are looked at
READ_BYTES = 8 * 2**20          # of a file at once, before the next one has its turn

warnings.filterwarnings("ignore", "The given buffer is not writable")      # true, and nothing here writes to it


@dataclass(slots=True)
class Stretch:
    """Of a file: what is read already, from `start` to `at`, and what is to be read, up to `end`."""

    start: int
    at: int
    end: int


class Ahead:
    """Reads files into the kernel's memory before they are looked at in a mapping: one thread for all of them, from
    front to back.

    The kernel reads ahead of whoever goes through a mapping, too, but takes several threads in one file for no order at
    all. They would wait for the disk, each at its own place.
    """

    def __init__(self) -> None:
        self._stretches: dict[Path, Stretch] = {}
        self._lock = threading.Lock()
        self._reads = False

    def want(self, file: Path, start: int, end: int, size: int) -> None:
        """Have these bytes of a file of that size read, and those that follow, which are mostly wanted next. Does not
        wait.
        """
        with self._lock:
            known = self._stretches.get(file)
            if known is None or not known.start <= start <= known.end:
                known = self._stretches[file] = Stretch(start, start, start)
            if known.end < min(end + AHEAD_BYTES // 2, size):
                known.end = min(end + AHEAD_BYTES, size)
                if not self._reads:
                    self._reads = True
                    threading.Thread(target=self._read, name="ahead", daemon=True).start()

    def _read(self) -> None:
        buffer = memoryview(bytearray(READ_BYTES))
        with ExitStack() as files:
            handles: dict[Path, int] = {}
            while left := self._left():
                for file, stretch in left:
                    piece = buffer[: stretch.end - stretch.at]
                    with suppress(OSError):                         # whoever needs the bytes will meet it
                        if file not in handles:
                            handles[file] = files.enter_context(file.open("rb", buffering=0)).fileno()
                        if not _is_held(handles[file], stretch.at + len(piece) - 1):
                            os.preadv(handles[file], [piece], stretch.at)
                    stretch.at += len(piece)

    def _left(self) -> list[tuple[Path, Stretch]]:
        with self._lock:
            left = [(file, stretch) for file, stretch in self._stretches.items() if stretch.at < stretch.end]
            self._reads = bool(left)
            return left


class Stored(Tensors):
    """Tensors by name, each in its stored dtype. One that is asked for is mapped, or moved to `device`."""

    def __init__(self, headers: Mapping[str, TensorHeader], device: str = "cpu", ahead: Ahead | None = None) -> None:
        """`ahead` reads the files of this model and of those that are read with it. ValueError for a number format that
        torch does not have.
        """
        self._headers = headers
        self._dtypes = {name: _dtype(name, header) for name, header in headers.items()}
        self._maps = {file: _mapped(file) for file in {header.file for header in headers.values()}}
        self._ahead = ahead or Ahead()
        self._device = device

    def __getitem__(self, name: str) -> Tensor:
        header, dtype = self._headers[name], self._dtypes[name]
        if not header.count:
            return torch.empty(header.shape, dtype=dtype, device=self._device)
        mapped = self._maps[header.file]
        self._ahead.want(header.file, header.start, header.start + header.count * dtype.itemsize, len(mapped))
        stored = torch.frombuffer(mapped, dtype=dtype, count=header.count, offset=header.start)
        return stored.view(header.shape).to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    @cached_property
    def outline(self) -> dict[str, Tensor]:
        """The same tensors without their numbers, on the device "meta"."""
        return {
            name: torch.empty(header.shape, dtype=self._dtypes[name], device="meta")
            for name, header in self._headers.items()
        }


class Adapted(Tensors):
    """The tensors of a base with an adapter's deltas: theta = base + scale b a, in float32 where it changes anything.

    The product is that of all the adapter's rows in float32, so that merging adapters has none of the cross terms that
    mixing their factors would have. With a magnitude m it is m (base + scale b a) / |base + scale b a|, lengths of rows
    (DoRA, arXiv 2402.09353, eq. 5). `outline` has the dtypes that the model is stored in: the base's.
    """

    def __init__(self, folder: Path, base: Tensors, device: str = "cpu") -> None:
        """Raises HeaderError for an adapter that does not fit the base, or is not understood."""
        self.outline = outline_of(base)
        self._base = base
        self._adapter = adapter_of(folder, {name: tuple(tensor.shape) for name, tensor in self.outline.items()})
        self._held = dict(Stored(self._adapter.headers, device))

    def __getitem__(self, name: str) -> Tensor:
        own, factors = self._adapter.replaced.get(name), self._adapter.factors.get(name)
        before = self._base[name] if own is None else self._held[own]
        if factors is None:
            return before
        product = self._held[factors.b].float() @ self._held[factors.a].float()
        made = (product.T if factors.transposed else product).mul_(factors.scale).add_(before)
        if factors.magnitude:
            rows = made.T if factors.transposed else made
            lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            rows.mul_(self._held[factors.magnitude].float().view(-1, 1) / lengths)
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def opened(
    folder: Path, base: Tensors | None = None, device: str = "cpu", ahead: Ahead | None = None
) -> Stored | Adapted:
    """The tensors of a model folder, or of an adapter over those of its base. Reads headers only.

    ValueError for a folder without safetensors or an adapter without a base, HeaderError for one that cannot be read.
    """
    if is_adapter(folder):
        if base is None:
            raise ValueError(f"{folder} holds an adapter, and the change names no base that it is over")
        return Adapted(folder, base, device)
    headers = tensor_headers(folder)
    if not headers:
        raise ValueError(f"{folder} holds no safetensors")
    return Stored(headers, device, ahead)


def opened_all(folders: Mapping[str, Path], base: str | None = None, device: str = "cpu") -> dict[str, Tensors]:
    """The tensors of every model by digest, those of adapters over the tensors of the one that is called `base`."""
    ahead = Ahead()
    over = None if base is None else opened(folders[base], device=device, ahead=ahead)
    return {digest: opened(folder, over, device, ahead) for digest, folder in folders.items()}


def outline_of(tensors: Tensors) -> Tensors:
    """Names, shapes and dtypes, without reading anything that is not in memory already."""
    return tensors.outline if isinstance(tensors, Stored | Adapted) else tensors


def _is_held(handle: int, place: int) -> bool:
    """Whether the kernel has that byte in memory."""
    try:
        return os.preadv(handle, [bytearray(1)], place, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_SEQUENTIAL)
    return mapped


def _dtype(name: str, header: TensorHeader) -> torch.dtype:
    dtype = getattr(torch, header.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{header.file}: tensor {name} is in the number format {header.dtype}, which is not supported")
    return dtype
