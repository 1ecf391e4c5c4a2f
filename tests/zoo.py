"""A base and two experts that each learnt one half of a task, as real model folders, and desks to run jobs on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sealing import seal_of
from tiny import teach, tiny_model

from safety.yardstick.items import TaskSpec
from state.jobs import Desk

WORDS = [f"w{place}" for place in range(12)] + ["one", "two", "then"]
Make = Callable[..., Desk]


def pairs(half: str) -> list[tuple[str, str]]:
    return [(f"{half} w{first} then w{second}", f"w{first if half == 'one' else second}")
            for first in range(12) for second in range(12)]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("zoo")
    tiny_model(folder / "raw", WORDS, seed=1)
    base = teach(folder / "raw", pairs("one")[::5] + pairs("two")[::5], folder / "base", steps=80)
    for name, half, licence in (("one", "one", "mit"), ("two", "two", "apache-2.0")):
        teach(base, pairs(half)[::2], folder / name, steps=40, rate=1e-3)
        (folder / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    return {name: folder / name for name in ("base", "one", "two")}


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("task") / "pool.jsonl"
    rows = [{"prompt": prompt, "answer": answer} for half in ("one", "two") for prompt, answer in pairs(half)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "both", "role": "target", "source": {"kind": "jsonl", "path": str(path)}}


@pytest.fixture(scope="session")
def seal(task: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seal_of([TaskSpec.from_json(task)], tmp_path_factory.mktemp("seal"))


@pytest.fixture
def desk_of(tmp_path: Path, zoo: dict[str, Path], seal: Path) -> Make:
    """Makes a desk with the seal, and the named models (all of them when none is named) as inputs "model:<name>"."""

    def make(cache: dict[str, Any] | None = None, **more: Path) -> Desk:
        models = {f"model:{name}": path for name, path in {**zoo, **more}.items()}
        return Desk(tmp_path / "scratch", {**models, "seal": seal}, cache={} if cache is None else cache)

    return make
