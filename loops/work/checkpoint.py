"""Checkpoints that prove themselves: tensors and a state in a folder whose manifest of hashes is written last.

A folder without a manifest, or with one that its files do not match, was torn and does not count. What was written
outlives the process that wrote it; nothing here waits for the disk, because a job is what a power cut may cost, and
what it tore the hashes tell. What is in a checkpoint is `loops.work.learner`'s matter; where finished ones are kept and
become durable, `state.registry`'s.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import TensorSpec, serialize_file
from safetensors.torch import load_file
from torch import Tensor

from state.failpoints import failpoint
from state.records import JsonObject, canonical

MANIFEST = "manifest.json"
STATE = "state.json"
KEPT = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose files were all found to match their hashes, and the state it holds."""

    folder: Path
    state: JsonObject

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One of the groups of tensors `write` was given, on the CPU; empty where there is none of that name."""
        path = self.folder / f"{name}.safetensors"
        return load_file(path) if path.exists() else {}


def write(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], state: JsonObject) -> None:
    """Write a checkpoint to `folder`, replacing what was there. It appears under its name whole or not at all."""
    failpoint("checkpoint.before")
    writing = folder.with_name(folder.name + ".writing")
    for leftover in (writing, folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    writing.mkdir(parents=True)
    for name, tensors in groups.items():
        held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        serialize_file({key: _where(tensor) for key, tensor in held.items()},
                       writing / f"{name}.safetensors", {"format": "pt"})
    (writing / STATE).write_text(canonical(state), encoding="utf-8")
    failpoint("checkpoint.unsealed")
    hashes = {path.name: _hash(path) for path in sorted(writing.iterdir())}
    (writing / MANIFEST).write_text(canonical(hashes), encoding="utf-8")
    failpoint("checkpoint.unnamed")
    writing.rename(folder)
    failpoint("checkpoint.after")


def read(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`, or None when it is missing, torn or changed."""
    try:
        hashes = json.loads((folder / MANIFEST).read_bytes())
        whole = STATE in hashes and all(_hash(folder / name) == digest for name, digest in hashes.items())
        return Checkpoint(folder, json.loads((folder / STATE).read_bytes())) if whole else None
    except (OSError, ValueError, TypeError):
        return None


def write_step(root: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: JsonObject) -> None:
    """Write the checkpoint of one step below `root` and remove all but the newest `KEPT`."""
    write(root / _name(step), groups, state)
    for old in _steps(root)[KEPT:]:
        shutil.rmtree(old)


def latest(root: Path) -> Checkpoint | None:
    """The newest checkpoint below `root` that proves itself. Its name is not believed, only its hashes."""
    return next((found for folder in _steps(root) if (found := read(folder))), None)


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _steps(root: Path) -> list[Path]:
    return sorted((path for path in root.glob("step-*") if not path.suffix), reverse=True)


def _where(tensor: Tensor) -> TensorSpec:
    """Where the bytes of a tensor lie. What safetensors does by itself takes ten times as long for a small one."""
    return TensorSpec(
        dtype=str(tensor.dtype).removeprefix("torch."), shape=tensor.shape, data_ptr=tensor.data_ptr(),
        data_len=tensor.nbytes,
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
