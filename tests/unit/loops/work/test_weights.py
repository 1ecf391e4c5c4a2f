"""Tensors mapped from the files of a model folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from loops.work import weights as job
from loops.work.weights import Ahead, opened, outline_of
from safety.headers import HeaderError

HELD: dict[str, Tensor] = {
    "model.layers.0.weight": torch.arange(12.0).view(3, 4), "model.layers.1.weight": torch.ones(2, 3).bfloat16(),
    "count": torch.tensor(7), "flags": torch.tensor([True, False, True]), "none": torch.zeros(0, 4),
    "bytes": torch.arange(5, dtype=torch.uint8), "wide": torch.tensor([1, 2, 65535], dtype=torch.uint16),
}


@pytest.mark.parametrize("most", [10**9, 40])
def test_every_tensor_comes_back_from_one_file_or_many(tmp_path: Path, most: int) -> None:
    save_torch_state_dict(dict(HELD), tmp_path, max_shard_size=most)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is (most == 40)
    weights = opened(tmp_path)
    assert weights.keys() == HELD.keys()
    for name, tensor in HELD.items():
        assert weights[name].dtype is tensor.dtype
        assert torch.equal(weights[name], tensor)


def test_the_outline_has_names_shapes_and_dtypes_and_no_numbers(tmp_path: Path) -> None:
    save_torch_state_dict(dict(HELD), tmp_path)
    outline = outline_of(opened(tmp_path))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in outline.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in HELD.items()
    }
    assert all(tensor.is_meta for tensor in outline.values())


def test_tensors_in_memory_are_their_own_outline() -> None:
    assert outline_of(HELD) is HELD


def test_weights_that_an_index_does_not_name_are_not_the_models(tmp_path: Path) -> None:
    save_torch_state_dict(dict(HELD), tmp_path, max_shard_size=40)
    save_torch_state_dict({"adapter": torch.ones(3)}, tmp_path, filename_pattern="adapter_model{suffix}.safetensors")
    assert "adapter" not in opened(tmp_path)


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    save_torch_state_dict(dict(HELD), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(HeaderError, match=r"model\.safetensors: truncated"):
        opened(tmp_path)


def settle() -> None:
    for thread in threading.enumerate():
        if thread.name == "ahead":
            thread.join(60)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[range]]:
    """What is read ahead, in pieces of 10 bytes and up to 40 ahead; nothing is in memory before."""
    found: list[range] = []
    real = os.preadv

    def preadv(handle: int, buffers: list[memoryview], place: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        found.append(range(place, place + len(buffers[0])))
        return real(handle, buffers, place)

    settle()                                                   # what an earlier test had read ahead
    monkeypatch.setattr(job.os, "preadv", preadv)
    monkeypatch.setattr(job, "READ_BYTES", 10)
    monkeypatch.setattr(job, "AHEAD_BYTES", 40)
    yield found


def test_what_is_wanted_and_what_follows_is_read_once_in_order_to_the_end_of_the_file(
    tmp_path: Path, reads: list[range]
) -> None:
    file, ahead = tmp_path / "file", Ahead()
    file.write_bytes(bytes(200))
    for start in (20, 30, 35, 60, 100, 20, 140, 180):
        ahead.want(file, start, start + 5, 200)
        settle()
        places = [place for piece in reads for place in piece]
        assert places == list(range(20, len(places) + 20))
        assert min(200, start + 5 + job.AHEAD_BYTES // 2) <= places[-1] + 1 <= 200
    assert places[-1] == 199


def test_another_place_of_a_file_is_read_from_there(tmp_path: Path, reads: list[range]) -> None:
    file, ahead = tmp_path / "file", Ahead()
    file.write_bytes(bytes(1000))
    for start in (500, 100, 800):
        reads.clear()
        ahead.want(file, start, start + 5, 1000)
        settle()
        assert (reads[0][0], reads[-1][-1]) == (start, start + 5 + job.AHEAD_BYTES - 1)


def test_files_take_turns(tmp_path: Path, reads: list[range], monkeypatch: pytest.MonkeyPatch) -> None:
    files, ahead, begun = [tmp_path / "a", tmp_path / "b"], Ahead(), threading.Event()
    held = job._is_held
    monkeypatch.setattr(job, "_is_held", lambda *given: begun.wait(60) and held(*given))
    for file in files:
        file.write_bytes(bytes(100))
        ahead.want(file, 0, 5, 100)
    begun.set()
    settle()
    assert [piece[0] for piece in reads].index(0, 1) < 4                # the second file, before the first is through
    assert sum(map(len, reads)) == 90


def test_what_is_in_memory_is_not_read_again(
    tmp_path: Path, reads: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_is_held", lambda handle, place: place % 20 < 10)
    file, ahead = tmp_path / "file", Ahead()
    file.write_bytes(bytes(45))
    ahead.want(file, 0, 5, 45)
    settle()
    assert [(piece[0], len(piece)) for piece in reads] == [(10, 10), (30, 10)]


def test_a_file_that_cannot_be_read_ahead_is_left_to_whoever_needs_it(tmp_path: Path) -> None:
    ahead = Ahead()
    ahead.want(tmp_path / "nothing", 0, 5, 100)
    settle()
    (tmp_path / "nothing").write_bytes(bytes(100))
    ahead.want(tmp_path / "nothing", 50, 55, 100)
    settle()
    assert not ahead._reads
