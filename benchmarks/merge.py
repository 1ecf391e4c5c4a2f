"""Merging on disk and in memory: against mergekit, and against copying the same bytes.

The models have the shape of SmolLM2-135M and random weights. Each of our runs stands beside one of mergekit, as a
process of its own, from start to end; their ratio is one of the figures. Memory is what no file backs, looked at from
outside some hundred times a second, the same for both. There all files are in the page cache when they are read, and
nothing waits for the disk after the last write.

The copy reads all parents and writes as many bytes as the result has. It is compared with the job alone, because in the
service jobs run in processes that have imported everything already; both begin without the parents in the page cache
and end when the result is on the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.figure import Figure
from daemon.meter import memory_gib
from loops.architecture.genome import Definition, Operator
from loops.work import shards
from loops.work.build import build, place, read_tensors
from safety.headers import SINGLE
from state.files import discard, sync
from state.jobs import Desk, JobSpec

PEER = Path(__file__).resolve().parents[1] / ".venv-peer" / "bin" / "mergekit-yaml"
MISSING = "merge: no figures against mergekit: `make peer` installs it, or pip install mergekit==0.1.5 into .venv-peer"
PAIRS = 5
LEAST_TURNS, LONG_SECONDS = 3, 300.0    # of one operator: after so long no further pair begins
COPY_PAIRS = 9
LOOK_SECONDS = 0.005
BUFFER_BYTES = 8 * 2**20
COPY_GOAL, MEMORY_GOAL, IN_MEMORY_GOAL = 1.5, 1.0, 0.1
WALL_GOALS = {Operator.LINEAR: 0.5, Operator.SLERP: 0.5, Operator.TIES: 0.25, Operator.DARE_TIES: 0.25}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODELS = ("base", "one", "two")
LAYERS, WIDTH, INNER, KEYS, VOCABULARY = 30, 576, 1536, 192, 49152
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KEYS, WIDTH), "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER), "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
}


@dataclass(frozen=True, slots=True)
class Run:
    """Wall seconds of one process, and the most memory it was seen with."""

    seconds: float
    gib: float


def figures() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="kaizend-bench-") as folder:
        for dtype in DTYPES:
            home = Path(folder) / dtype
            models = make_models(home, dtype)
            yield against_copies(home, models, dtype)
            if PEER.exists():
                for operator in WALL_GOALS:
                    yield from against_mergekit(home, models, dtype, operator)
            else:
                print(MISSING, file=sys.stderr)
            discard(home)


def against_copies(home: Path, models: Mapping[str, Path], dtype: str, pairs: int = COPY_PAIRS) -> Figure:
    """A linear merge of three parents over the plain copy, in turns."""
    change = Definition(Operator.LINEAR, MODELS[0], MODELS).change([0.5, 0.3, 0.2])
    ratios = []
    for _ in range(pairs + 1):                       # the first pair warms up
        ours = seconds_of_build(change, models, home / "ours")
        ratios.append(ours / seconds_of_copy(list(models.values()), home / "copy"))
    return Figure.of(f"{dtype} linear merge of three from disk to disk, in plain copies", ratios[1:], COPY_GOAL)


def against_mergekit(
    home: Path, models: Mapping[str, Path], dtype: str, operator: Operator, pairs: int = PAIRS
) -> Iterator[Figure]:
    """Wall time and peak memory from disk to disk, and the inner step of the search, over mergekit."""
    change, recipe = merge_of(operator), recipe_of(operator, models, dtype)
    (home / "recipe.yml").write_text(json.dumps(recipe))               # JSON is YAML
    (home / "change.json").write_text(json.dumps([change, {name: str(path) for name, path in models.items()}]))
    our_command = [sys.executable, "-m", "benchmarks.merge", str(home / "change.json"), str(home / "ours")]
    their_command = [str(PEER), str(home / "recipe.yml"), str(home / "theirs"), "--no-copy-tokenizer", "--quiet"]
    ours, theirs = [], []
    for _ in turns(pairs):
        ours.append(watched(our_command, home / "ours"))
        theirs.append(watched(their_command, home / "theirs"))
    held = {name: read_tensors(path) for name, path in models.items()}
    shell = {name: tensor.clone() for name, tensor in held[MODELS[0]].items()}
    placed = [seconds_of_placing(change, held, shell) for _ in ours]
    times = list(zip(ours, theirs, placed, strict=True))[1:]
    name = f"{dtype} {operator} against mergekit"
    yield Figure.of(f"{name}: wall time", [our.seconds / their.seconds for our, their, _ in times],
                    WALL_GOALS[operator])
    yield Figure.of(f"{name}: peak memory", [our.gib / their.gib for our, their, _ in times], MEMORY_GOAL)
    yield Figure.of(f"{name}: in memory", [step / their.seconds for _, their, step in times], IN_MEMORY_GOAL)


def turns(pairs: int) -> Iterator[int]:
    """One for each pair after a first one that warms up; at least three together, where they take long."""
    began = time.perf_counter()
    for turn in range(pairs + 1):
        if turn < LEAST_TURNS or time.perf_counter() - began < LONG_SECONDS:
            yield turn


def make_models(home: Path, dtype: str) -> dict[str, Path]:
    """A base and two parents near it."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}
    outline = {name: torch.empty(shape, dtype=DTYPES[dtype], device="meta") for name, shape in shapes.items()}
    base: dict[str, torch.Tensor] = {}
    draw = torch.Generator().manual_seed(1)

    def make(name: str) -> torch.Tensor:
        first = base.setdefault(name, torch.empty(shapes[name]).normal_(0.0, 0.02, generator=draw))
        return (first + torch.empty(shapes[name]).normal_(0.0, 0.002, generator=draw)).to(DTYPES[dtype])

    for name in MODELS:
        folder = home / name
        folder.mkdir(parents=True)
        shards.write(outline, make, folder, home)
        (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": dtype}))
    return {name: home / name for name in MODELS}


def merge_of(operator: Operator) -> dict[str, Any]:
    """The change that is timed: all three models where there is no base, else two over the base."""
    if operator is Operator.LINEAR:
        return Definition(operator, MODELS[0], MODELS).change([0.5, 0.3, 0.2])
    definition = Definition(operator, MODELS[0], MODELS[1:])
    return definition.change([0.4] if operator is Operator.SLERP else definition.centre([0.6, 0.4]))


def recipe_of(operator: Operator, models: Mapping[str, Path], dtype: str) -> dict[str, Any]:
    """The same for mergekit."""
    base, *parents = (str(models[name]) for name in MODELS)
    body: dict[str, Any] = {"merge_method": str(operator), "dtype": dtype}
    if operator is Operator.LINEAR:
        entries = zip([base, *parents], [0.5, 0.3, 0.2], strict=True)
        return {**body, "parameters": {"normalize": False}, "models": [
            {"model": path, "parameters": {"weight": weight}} for path, weight in entries]}
    if operator is Operator.SLERP:
        return {**body, "base_model": parents[0], "parameters": {"t": 0.4}, "models": [
            {"model": path} for path in parents]}
    return {**body, "base_model": base, "parameters": {"normalize": True}, "models": [
        {"model": path, "parameters": {"weight": weight, "density": 0.8}}
        for path, weight in zip(parents, [0.6, 0.4], strict=True)]}


def watched(command: Sequence[str], result: Path) -> Run:
    """Run it from nothing; it must write a model to `result`."""
    discard(result)
    with tempfile.TemporaryFile() as words:
        began, most = time.perf_counter(), 0.0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=words)
        while process.poll() is None:
            most = max(most, memory_gib(process.pid))
            time.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - began
        if process.returncode or not list(result.rglob("*.safetensors")):
            words.seek(0)
            raise RuntimeError(f"{command} failed: {words.read().decode()}")
    return Run(seconds, most)


def seconds_of_build(change: dict[str, Any], models: Mapping[str, Path], folder: Path) -> float:
    """The job, from disk to disk."""
    discard(folder)
    forget(models.values())
    began = time.perf_counter()
    merge(change, models, folder)
    sync(folder / "model" / SINGLE)
    return time.perf_counter() - began


def forget(folders: Iterable[Path]) -> None:
    """Have the kernel drop what it keeps of the weights in memory."""
    for folder in folders:
        sync(folder / SINGLE)
        with (folder / SINGLE).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of_copy(folders: Sequence[Path], target: Path) -> float:
    """Read every file of weights into one buffer, and write one of them, in pieces of the buffer's size."""
    discard(target)
    forget(folders)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    began = time.perf_counter()
    for folder in folders:
        with (folder / SINGLE).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    left = (folders[0] / SINGLE).stat().st_size
    with target.open("wb", buffering=0) as out:
        while left:
            left -= out.write(buffer[:left])
    sync(target)
    return time.perf_counter() - began


def seconds_of_placing(
    change: dict[str, Any], held: Mapping[str, Mapping[str, torch.Tensor]], shell: Mapping[str, torch.Tensor]
) -> float:
    """The search's inner step, up to the scoring: the candidate's weights into a loaded model."""
    began = time.perf_counter()
    place(change, held, shell)
    return time.perf_counter() - began


def merge(change: dict[str, Any], models: Mapping[str, Path], folder: Path) -> None:
    """The job "build", outside a worker."""
    folder.mkdir(parents=True)
    inputs = {f"model:{name}": path for name, path in models.items()}
    build(JobSpec("build", {}, {"change": change}), Desk(folder, inputs, threads=torch.get_num_threads()))


if __name__ == "__main__":
    asked, given = json.loads(Path(sys.argv[1]).read_text())
    merge(asked, {name: Path(path) for name, path in given.items()}, Path(sys.argv[2]))
    os._exit(0)             # as the service's workers end: taking everything apart again takes half a second
