"""Tensors mapped from the files of a model folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from loops.work.weights import opened, outline_of
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
