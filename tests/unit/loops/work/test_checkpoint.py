"""A checkpoint counts only while every file in it matches the manifest that was written last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loops.work import checkpoint

GROUPS = {"weights": {"a": torch.arange(6.0)}, "optimizer": {"a@step": torch.tensor(3.0)}}


def test_tensors_of_every_make_come_back_bit_for_bit(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    tensors = {
        "whole": whole, "turned": whole.T, "part": whole[1:, 2:4], "half": whole.bfloat16(),
        "learning": whole.clone().requires_grad_(), "scalar": torch.tensor(7, dtype=torch.int64),
        "none": torch.empty(0, 3), "truth": torch.tensor([True, False]),
    }
    checkpoint.write(tmp_path / "kept", {"weights": tensors}, {})
    found = checkpoint.read(tmp_path / "kept")
    assert found is not None
    back = found.tensors("weights")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_what_was_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {"loss": 0.1 + 0.2, "step": 4}
    checkpoint.write(tmp_path / "kept", GROUPS, state)
    found = checkpoint.read(tmp_path / "kept")
    assert found is not None
    assert found.state == state
    assert torch.equal(found.tensors("weights")["a"], GROUPS["weights"]["a"])
    assert found.tensors("nothing") == {}


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
def test_a_flipped_byte_anywhere_disqualifies_it(tmp_path: Path, name: str) -> None:
    checkpoint.write(tmp_path / "kept", GROUPS, {"step": 1})
    content = bytearray((tmp_path / "kept" / name).read_bytes())
    content[-3] ^= 1
    (tmp_path / "kept" / name).write_bytes(content)
    assert checkpoint.read(tmp_path / "kept") is None


def test_a_folder_without_its_manifest_does_not_count(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "kept", GROUPS, {"step": 1})
    (tmp_path / "kept" / "manifest.json").unlink()
    assert checkpoint.read(tmp_path / "kept") is None
    assert checkpoint.read(tmp_path / "never") is None


def test_the_latest_is_the_newest_that_proves_itself_and_only_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint.write_step(tmp_path, step, GROUPS, {"step": step})
    assert len(list(tmp_path.iterdir())) == 2
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.state["step"] == 15
    (newest.folder / "state.json").write_text("{}")
    older = checkpoint.latest(tmp_path)
    assert older is not None
    assert older.state["step"] == 10
    assert checkpoint.latest(tmp_path / "never") is None
