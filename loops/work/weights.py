"""The tensors of a model, mapped from the files of its folder and read when they are asked for.

Nothing is copied into memory: the pages of a mapped file are the kernel's, which reads them ahead and drops them when
it needs room. An adapter is a model, too: its base's tensors with the adapter's products added, each when it is asked
for. Which files and tensors there are is the business of `safety.headers`, what an adapter does of `safety.adapters`.
Invariant: what is mapped is never written to.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from safety.adapters import adapter_of, is_adapter
from safety.headers import TensorHeader, tensor_headers

Tensors = Mapping[str, Tensor]
AHEAD_BYTES = 32 * 2**20        # of a file that the kernel is told to read before it is looked at

warnings.filterwarnings("ignore", "The given buffer is not writable")      # true, and nothing here writes to it


class Stored(Tensors):
    """Tensors by name, each in its stored dtype. One that is asked for is mapped, or moved to `device`."""

    def __init__(self, headers: Mapping[str, TensorHeader], device: str = "cpu") -> None:
        """ValueError for a number format that torch does not have."""
        self._headers = headers
        self._dtypes = {name: _dtype(name, header) for name, header in headers.items()}
        self._maps = {file: _mapped(file) for file in {header.file for header in headers.values()}}
        self._told = dict.fromkeys(self._maps, 0)       # up to where the kernel is told to read
        self._device = device

    def __getitem__(self, name: str) -> Tensor:
        header, dtype = self._headers[name], self._dtypes[name]
        if not header.count:
            return torch.empty(header.shape, dtype=dtype, device=self._device)
        self._read_ahead(header.file, header.start)
        stored = torch.frombuffer(self._maps[header.file], dtype=dtype, count=header.count, offset=header.start)
        return stored.view(header.shape).to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def _read_ahead(self, file: Path, start: int) -> None:
        """Have the kernel read on from there, beyond one tensor, since those that follow are often asked for next. It
        does not wait; where threads ask at once, something may be told twice.
        """
        mapped, told = self._maps[file], self._told[file]
        if start < told <= start + AHEAD_BYTES:
            if told > start + AHEAD_BYTES // 2:
                return
            start = told
        start -= start % mmap.PAGESIZE
        length = min(AHEAD_BYTES, len(mapped) - start)
        if length > 0:
            mapped.madvise(mmap.MADV_WILLNEED, start, length)
            self._told[file] = start + length

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


def opened(folder: Path, base: Tensors | None = None, device: str = "cpu") -> Stored | Adapted:
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
    return Stored(headers, device)


def opened_all(folders: Mapping[str, Path], base: str | None = None, device: str = "cpu") -> dict[str, Tensors]:
    """The tensors of every model by digest, those of adapters over the tensors of the one that is called `base`."""
    over = None if base is None else opened(folders[base], device=device)
    return {digest: opened(folder, over, device) for digest, folder in folders.items()}


def outline_of(tensors: Tensors) -> Tensors:
    """Names, shapes and dtypes, without reading anything that is not in memory already."""
    return tensors.outline if isinstance(tensors, Stored | Adapted) else tensors


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
