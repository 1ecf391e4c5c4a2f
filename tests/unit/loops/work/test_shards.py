"""Weights written tensor by tensor: the bytes are those of the library, whole files stay, and memory is bounded."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from loops.work import shards
from loops.work.shards import FORMATS, Pace, laid_out, made_ahead, write

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(1, 5), max_size=3)
MODELS = st.dictionaries(NAMES, st.tuples(st.sampled_from(list(FORMATS)), SHAPES), min_size=1, max_size=8)
LAYERS = {f"layers.{number}.weight": torch.full((4, 5), float(number)) for number in range(12)}


def noise(dtype: torch.dtype, shape: list[int]) -> Tensor:
    count = torch.empty(shape, dtype=dtype, device="meta").nbytes
    numbers = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
    return numbers.view(dtype).view(shape)


def written(tensors: dict[str, Tensor], folder: Path, **more: int) -> dict[str, bytes]:
    (folder / "model").mkdir(parents=True, exist_ok=True)
    write(tensors, tensors.__getitem__, folder / "model", folder / "steps", **more)
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


@settings(max_examples=60, deadline=None)
@given(MODELS, st.integers(1, 200))
def test_the_files_are_those_of_the_library_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[torch.dtype, list[int]]], most: int
) -> None:
    tensors = {name: noise(dtype, shape) for name, (dtype, shape) in kinds.items()}
    folder = tmp_path_factory.mktemp("bytes")
    for limit in (most, shards.SHARD_BYTES):
        shutil.rmtree(folder)
        (folder / "theirs").mkdir(parents=True)
        save_torch_state_dict(dict(tensors), folder / "theirs", max_shard_size=limit, metadata={"format": "pt"})
        theirs = {path.name: path.read_bytes() for path in (folder / "theirs").iterdir()}
        assert written(tensors, folder, shard_bytes=limit) == theirs


def test_no_file_has_more_numbers_than_it_may_unless_it_is_one_tensor() -> None:
    tensors = {**LAYERS, "large": torch.zeros(1000)}
    for shard in laid_out(tensors, 250):
        assert shard.length - len(shard.header) <= 250 or shard.tensors == ("large",)
    assert sorted(name for shard in laid_out(tensors, 250) for name in shard.tensors) == sorted(tensors)


def test_a_dtype_that_the_format_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"tensor wide is torch\.complex128"):
        laid_out({"wide": torch.zeros(2, dtype=torch.complex128)})


def counted(made: list[str]) -> Callable[[str], Tensor]:
    def make(name: str) -> Tensor:
        made.append(name)
        return LAYERS[name]

    return make


def test_marked_files_stay_and_only_the_rest_is_made_again(tmp_path: Path) -> None:
    whole = written(LAYERS, tmp_path, shard_bytes=250)
    assert len(whole) == 5
    (tmp_path / "model" / "model-00002-of-00004.safetensors").unlink()
    (tmp_path / "model" / "model-00003-of-00004.safetensors.writing").write_bytes(b"half")
    made: list[str] = []
    write(LAYERS, counted(made), tmp_path / "model", tmp_path / "steps", shard_bytes=250)
    assert made == [f"layers.{number}.weight" for number in (3, 4, 5)]
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == whole


@pytest.mark.parametrize("spoil", ["a changed byte", "no mark", "another mark"])
def test_a_file_that_does_not_match_its_mark_is_made_again(tmp_path: Path, spoil: str) -> None:
    whole = written(LAYERS, tmp_path, shard_bytes=250)
    shard, mark = tmp_path / "model" / "model-00004-of-00004.safetensors", tmp_path / "steps" / "model-00004-of-00004"
    if spoil == "a changed byte":
        shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    elif spoil == "no mark":
        mark.unlink()
    else:
        mark.write_text((tmp_path / "steps" / "model-00001-of-00004").read_text())
    made: list[str] = []
    write(LAYERS, counted(made), tmp_path / "model", tmp_path / "steps", shard_bytes=250)
    assert made == ["layers.10.weight", "layers.11.weight", "layers.9.weight"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == whole


def test_the_marks_rise_so_that_progress_shows(tmp_path: Path) -> None:
    written(LAYERS, tmp_path, shard_bytes=250)
    names = [path.name for path in (tmp_path / "steps").iterdir() if not path.suffix]
    assert sorted(names) == [f"model-{number:05d}-of-00004" for number in (1, 2, 3, 4)]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(OSError, match=r"No space left on device: 0\.0 GB are to be written"):
        written(LAYERS, tmp_path)
    assert not list((tmp_path / "model").iterdir())


def test_an_error_while_a_tensor_is_made_ends_the_writing(tmp_path: Path) -> None:
    def make(name: str) -> Tensor:
        if name == "layers.5.weight":
            raise ValueError("no such parent")
        return LAYERS[name]

    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="no such parent"):
        write(LAYERS, make, tmp_path / "model", tmp_path / "steps", shard_bytes=250, threads=3)
    assert not list((tmp_path / "model").glob("*.json"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("make")]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(0, 2000), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_tensors_come_in_order_and_no_more_are_held_than_memory_allows(
    sizes: list[int], memory: int, threads: int
) -> None:
    outline = {str(place): torch.zeros(size) for place, size in enumerate(sizes)}
    cost = {name: 12 * tensor.numel() for name, tensor in outline.items()}
    held: set[str] = set()
    turn = threading.Lock()
    broken: list[set[str]] = []

    def make(name: str) -> Tensor:
        with turn:
            held.add(name)
            if len(held) > 1 and sum(cost[one] for one in held) > memory:
                broken.append(set(held))
        return outline[name] + int(name)

    for place, tensor in enumerate(made_ahead(outline, outline, make, memory, threads)):
        assert torch.equal(tensor, outline[str(place)] + place)
        with turn:
            held.discard(str(place))
    assert not broken


def test_progress_tells_share_rate_and_time_left() -> None:
    told: list[tuple[float, str]] = []
    now = iter([0.0, 2.0, 4.0])
    pace = Pace(200_000_000, 100_000_000, lambda done, note: told.append((done, note)), lambda: next(now))
    pace.wrote(50_000_000)
    pace.wrote(50_000_000)
    assert told == [(0.75, "25 MB/s, 2 s left"), (1.0, "25 MB/s, 0 s left")]


def test_what_was_written_is_read_back_by_the_library(tmp_path: Path) -> None:
    written(LAYERS, tmp_path, shard_bytes=250)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "model" / file)[name], LAYERS[name])
