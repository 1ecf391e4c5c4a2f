"""A build killed anywhere and run again in the same folder ends with the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from loops.architecture.genome import Definition, Operator
from loops.work.build import build
from state.jobs import Desk, JobSpec

ROOT = Path(__file__).resolve().parent.parent.parent
SHARD_BYTES = 20_000
CHANGE = Definition(Operator.DARE_TIES, "base", ("one", "two"), seed=3).change([0.7, 0.4, 0.5, 0.6])
KILLS = ["piece 2", "piece 9", "before rename 1", "after rename 1", "before rename 2", "piece 4", "after rename 2",
         "piece 1", "after rename 5", "before rename 7", "named"]
ATTEMPTS = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from loops.work.build import build
from state.jobs import Desk, JobSpec

spec, folder = JobSpec.from_json(json.loads(sys.argv[1])), Path(sys.argv[3])
inputs = {name: Path(path) for name, path in json.loads(sys.argv[2]).items()}
counts, rename = {"piece": 0, "rename": 0}, Path.rename

def passed(moment, kind, fatal):
    if fatal == f"{moment}{kind} {counts[kind]}":
        os.kill(os.getpid(), signal.SIGKILL)

def attempt(fatal, threads):
    def progress(done, note):
        counts["piece"] += 1
        passed("", "piece", fatal)

    def renamed(path, target):
        counts["rename"] += 1
        passed("before ", "rename", fatal)
        rename(path, target)
        passed("after ", "rename", fatal)
        if fatal == "named" and target == folder / "model":
            os.kill(os.getpid(), signal.SIGKILL)

    Path.rename = renamed
    build(spec, Desk(folder, inputs, threads=threads, progress=progress))

def finished():
    marked = {path.name for path in folder.glob("steps/*") if not path.suffix}
    return {path.name: path.stat().st_ino for path in folder.glob("model*/*.safetensors") if path.stem in marked}

told = []
for number, fatal in enumerate([*json.loads(sys.argv[4]), ""]):
    before = finished()
    child = os.fork()
    if child == 0:
        attempt(fatal, 1 + number % 3)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    after = finished()
    kept = all(after.get(name) == inode for name, inode in before.items())
    told.append([status, len(before), kept, len(list(folder.glob("model/*")))])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    words = [f"w{number}" for number in range(40)]
    names = enumerate(("base", "one", "two"))
    return {f"model:{name}": tiny_model(folder / name, words, seed, layers=8) for seed, name in names}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def disturbed(models: dict[str, Path], folder: Path, spec: JobSpec, kills: list[str]) -> list[Any]:
    folder.mkdir()
    given = json.dumps({name: str(path) for name, path in models.items()})
    command = [sys.executable, "-c", ATTEMPTS, json.dumps(spec.to_json()), given, str(folder), json.dumps(kills)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout
    attempts: list[Any] = json.loads(told.splitlines()[-1])
    return attempts


def test_killed_again_and_again_it_ends_with_the_same_bytes_and_redoes_no_finished_file(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """Each attempt is a process of its own, with another number of threads. The last but one is killed when the folder
    is complete and nobody was told; the last one is left in peace.
    """
    spec = JobSpec("build", {}, {"change": CHANGE, "shard_bytes": SHARD_BYTES})
    (tmp_path / "undisturbed").mkdir()
    undisturbed = contents(build(spec, Desk(tmp_path / "undisturbed", models)).outputs["model"])
    assert len([name for name in undisturbed if name.endswith(".safetensors")]) >= 5
    attempts = disturbed(models, tmp_path / "disturbed", spec, KILLS)
    assert [status for status, *_ in attempts] == [-signal.SIGKILL] * len(KILLS) + [0]
    assert all(kept for _, _, kept, _ in attempts)
    assert attempts[-1][1] >= 4                                     # most of the work was done by killed processes
    assert [visible for *_, visible in attempts] == [0] * (len(KILLS) - 1) + [len(undisturbed)] * 2  # never half made
    assert contents(tmp_path / "disturbed" / "model") == undisturbed
