"""A build holds a few tensors at a time, however large the model is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from daemon.meter import memory_gib
from loops.architecture.genome import Definition, Operator
from loops.work import shards
from state.jobs import JobSpec

ROOT = Path(__file__).resolve().parents[4]
ROWS, WIDTH = 65536, 4096                                           # 512 MiB in bfloat16
TENSORS = ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")
LARGEST_GIB, SLACK_GIB = ROWS * WIDTH * 2 / 2**30, 0.5
BUILD = """
import json, sys
from pathlib import Path
from loops.work.build import build
from state.jobs import Desk, JobSpec
inputs = {name: Path(path) for name, path in json.loads(sys.argv[2]).items()}
build(JobSpec.from_json(json.loads(sys.argv[1])), Desk(Path(sys.argv[3]), inputs, threads=2))
"""


@pytest.fixture(scope="module")
def giants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models of three tensors each: 4.5 GiB in all."""
    folders = {}
    outline = {name: torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, device="meta") for name in TENSORS}
    for name in ("base", "one", "two"):
        folder = tmp_path_factory.mktemp(name)
        shards.write(outline, lambda _: torch.empty(ROWS, WIDTH, dtype=torch.bfloat16).normal_(), folder, folder)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        folders[f"model:{name}"] = str(folder)
    return folders


@pytest.mark.long
@pytest.mark.parametrize(("operator", "vector"), [
    (Operator.LINEAR, [0.5, 0.5]), (Operator.SLERP, [0.4]), (Operator.TIES, [0.7, 0.4, 0.5, 0.6]),
    (Operator.DARE_TIES, [0.7, 0.4, 0.5, 0.6]),
])
def test_the_peak_is_at_most_parents_and_two_times_the_largest_tensor_and_half_a_gib(
    operator: Operator, vector: list[float], giants: dict[str, str], tmp_path: Path
) -> None:
    """Memory is counted as the bound `resources.worker_memory_gib` is: what no file backs, swapped out or not. The
    pages of mapped files do not count, because the kernel may drop them at any time.
    """
    change = Definition(operator, "base", ("one", "two")).change(vector)
    spec = JobSpec("build", {}, {"change": change, "shard_bytes": 10**9})
    command = [sys.executable, "-c", BUILD, json.dumps(spec.to_json()), json.dumps(giants), str(tmp_path)]
    process = subprocess.Popen(command, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"})
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_gib(process.pid))
        time.sleep(0.002)
    assert process.returncode == 0
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 3
    assert LARGEST_GIB < peak <= (2 + 2) * LARGEST_GIB + SLACK_GIB, f"{peak:.2f} GiB"
