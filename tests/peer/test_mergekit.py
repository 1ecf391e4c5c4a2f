"""Every operator beside mergekit 0.1.5: the same models on disk, both results on disk, compared tensor by tensor.

mergekit is LGPL: it is installed in an environment of its own (`make peer`, or KAIZEND_PEER names an interpreter that
has it), runs there in a process of its own and is asked by its public interface; nothing here imports it. Its options
are set to what our operator is defined as: no normalisation of weights, or weights of which the sum is 1. What cannot
be made equal is said at the case; random masks (other generators) are compared by what is kept and how it is scaled.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from torch import Tensor

from loops.architecture.genome import Definition, Operator
from loops.work import sphere
from loops.work.build import build, read_tensors
from loops.work.joining import linear, task_arithmetic
from state.jobs import Desk, JobSpec

INTERPRETER = os.environ.get("KAIZEND_PEER", "")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not INTERPRETER, reason="KAIZEND_PEER names no interpreter that has mergekit 0.1.5"),
]
VERSION = "0.1.5"
DENSITY, EPSILON, GAMMA, TAU, SCALE = 0.5, 0.4, 0.125, 0.25, 0.7     # shares of 64 x 64 entries that are whole numbers
SHARES = [0.5, 0.3, 0.2]
AMPLE = [0.7, 0.6, 0.4]
PARENTS = ("one", "two", "three")
RUN = """
import importlib.metadata, json, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
told = {"version": importlib.metadata.version("mergekit")}
for name, case in json.load(open(sys.argv[1])).items():
    try:
        run_merge(MergeConfiguration.model_validate(case["config"]), case["out"], options=MergeOptions(quiet=True))
        told[name] = ""
    except Exception as error:
        told[name] = f"{type(error).__name__}: {error}"
json.dump(told, open(sys.argv[2], "w"))
"""
Model = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One operator of ours and what mergekit is asked for.

    `genes` are ours; `method`, `weights` and `options` mergekit's. `parents` are those that are merged; a case `over` a
    base names it. `tolerance` is the largest absolute difference of entries of size about 0.1, unless they are compared
    in another way.
    """

    genes: dict[str, Any]
    method: str
    weights: list[float] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = PARENTS
    base: str | None = "base"
    tolerance: float = 1e-6
    compared: str = "equal"
    each: dict[str, Any] = field(default_factory=dict)      # options of every parent


def weighted(share: list[float]) -> dict[str, Any]:
    return {"weights": [[[part] * 3] for part in share]}


def sparse(share: list[float], **more: Any) -> dict[str, Any]:
    return {**weighted(share), "density": [DENSITY] * len(share), **more}


AS_IS, SUM = {"normalize": False}, {"normalize": True, "lambda": SCALE}
ALONE = PARENTS[:1]
CASES: dict[Operator, Case] = {
    Operator.LINEAR: Case(weighted(AMPLE), "linear", AMPLE, AS_IS, base=None),
    Operator.TASK_ARITHMETIC: Case(weighted(AMPLE), "task_arithmetic", AMPLE, AS_IS),
    Operator.SLERP: Case({"t": [[0.3] * 3]}, "slerp", None, {"t": 0.3}, PARENTS[:2], "one"),
    # mergekit's result is the mean direction itself, where our round begins; the length of ours is the sum of
    # w_i |theta_i|, which is a mean where the weights sum to 1
    Operator.MULTI_SLERP: Case(weighted(SHARES), "multislerp", SHARES, base=None, compared="begun", tolerance=1e-5),
    Operator.MULTI_SLERP_DELTAS: Case(weighted(SHARES), "multislerp", SHARES, compared="begun", tolerance=1e-5),
    # mergekit has no weights here and stops at a tolerance
    Operator.KARCHER: Case(weighted([1 / 3] * 3), "karcher", None, {"max_iter": 100, "tol": 1e-9}, base=None,
                           tolerance=1e-5),
    # ours is the mean of those that agree, scale in the weights: mergekit's weights of 1, normalised, and its lambda
    Operator.TIES: Case(sparse([SCALE] * 3), "ties", [1.0] * 3, SUM, each={"density": DENSITY}),
    Operator.BREADCRUMBS: Case(sparse(AMPLE, gamma=GAMMA), "breadcrumbs", AMPLE, AS_IS,
                               each={"density": DENSITY, "gamma": GAMMA}),
    Operator.BREADCRUMBS_TIES: Case(sparse([SCALE] * 3, gamma=GAMMA), "breadcrumbs_ties", [1.0] * 3, SUM,
                                    each={"density": DENSITY, "gamma": GAMMA}),
    # ours divides what is kept by its probability, as in the papers; mergekit so that the sum of sizes is what it was
    Operator.DARE_LINEAR: Case(sparse([SCALE]), "dare_linear", [SCALE], AS_IS, ALONE, each={"density": DENSITY},
                               compared="kept"),
    Operator.DARE_TIES: Case(sparse([SCALE]), "dare_ties", [1.0], SUM, ALONE, each={"density": DENSITY},
                             compared="kept"),
    # our epsilon is the width of the range of probabilities, as in the paper; mergekit's is half of it
    Operator.DELLA_LINEAR: Case(sparse([SCALE], epsilon=EPSILON), "della_linear", [SCALE], AS_IS, ALONE,
                                each={"density": DENSITY, "epsilon": EPSILON / 2}, compared="kept"),
    Operator.DELLA_TIES: Case(sparse([SCALE], epsilon=EPSILON), "della", [1.0], SUM, ALONE,
                              each={"density": DENSITY, "epsilon": EPSILON / 2}, compared="kept"),
    # mergekit divides what is left by the sum of its coefficients, the paper does not
    Operator.SCE: Case({"tau": [[TAU] * 3]}, "sce", None, {"select_topk": TAU}, compared="undivided", tolerance=1e-5),
    Operator.MODEL_STOCK: Case({}, "model_stock", tolerance=1e-5),
    Operator.PASSTHROUGH: Case({"source": [[0.5] * 3], "scales": [[SCALE] * 3]}, "passthrough", None, {}, ALONE, None,
                               each={"scale": SCALE}),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and three parents whose differences from it have something in common, each a random Llama on disk."""
    folder, draw = tmp_path_factory.mktemp("models"), torch.Generator().manual_seed(1)
    words = [f"w{place}" for place in range(61)]
    base = load_file(tiny_model(folder / "base", words, seed=1, width=64) / "model.safetensors")
    base = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=draw) for name, tensor in base.items()}
    save_file(base, folder / "base" / "model.safetensors", {"format": "pt"})
    shared = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in base.items()}
    for parent in PARENTS:
        tiny_model(folder / parent, words, seed=1, width=64)
        moved = {name: tensor + 0.05 * (shared[name] + torch.randn(tensor.shape, generator=draw))
                 for name, tensor in base.items()}
        save_file(moved, folder / parent / "model.safetensors", {"format": "pt"})
    return {name: folder / name for name in ("base", *PARENTS)}


@pytest.fixture(scope="module")
def theirs(zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By operator the folder that mergekit wrote, or what it said instead; all in one process."""
    folder, asked = tmp_path_factory.mktemp("mergekit"), {}
    for operator, case in CASES.items():
        asked[str(operator)] = {"config": configuration(case, zoo), "out": str(folder / operator)}
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "run.py").write_text(RUN)
    quiet = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    said = subprocess.run(
        [INTERPRETER, "run.py", "asked.json", "told.json"], cwd=folder, capture_output=True, text=True, env=quiet,
    )
    assert said.returncode == 0, said.stderr
    told = json.loads((folder / "told.json").read_text())
    assert told.pop("version") == VERSION
    return {operator: error or folder / operator for operator, error in told.items()}


def configuration(case: Case, zoo: dict[str, Path]) -> dict[str, Any]:
    shares: list[Any] = case.weights or [None] * len(case.parents)
    models = [
        {"model": str(zoo[parent]), "parameters": case.each | ({"weight": share} if share is not None else {})}
        for parent, share in zip(case.parents, shares, strict=True)
    ]
    base = {"base_model": str(zoo[case.base])} if case.base else {}
    return {"merge_method": case.method, "models": models, "parameters": case.options, "dtype": "float32", **base}


def ours(operator: Operator, case: Case, zoo: dict[str, Path], folder: Path) -> Model:
    definition = Definition(operator, "base", case.parents)
    change = {**definition.change(definition.centre([0.5] * len(case.parents))), **case.genes}
    folder.mkdir(parents=True)
    desk = Desk(folder, {f"model:{name}": path for name, path in zoo.items()})
    return read_tensors(Path(build(JobSpec("build", {}, {"change": change}), desk).outputs["model"]))


def equal(case: Case, mine: Model, their: Model, zoo: dict[str, Path]) -> None:
    for name, tensor in mine.items():
        assert torch.allclose(tensor, their[name], rtol=0.0, atol=case.tolerance), (
            name, float((tensor - their[name]).abs().max()))


def begun(case: Case, mine: Model, their: Model, zoo: dict[str, Path]) -> None:
    """Theirs is the normalised mean direction; ours is one round further and nearer to the Karcher mean."""
    base, parents = read_tensors(zoo["base"]), [read_tensors(zoo[name]) for name in case.parents]

    def after(rounds: int, name: str) -> Tensor:
        tensors = [parent[name] for parent in parents]
        gram = sphere.products(tensors, base[name] if case.base else None)
        parts = sphere.barycentre(gram, SHARES, rounds)
        return task_arithmetic(base[name], tensors, parts) if case.base else linear(tensors, parts)

    for name, tensor in mine.items():
        assert torch.allclose(after(0, name), their[name], rtol=0.0, atol=case.tolerance), (
            name, float((after(0, name) - their[name]).abs().max()))
        goal = after(sphere.KARCHER_ROUNDS, name)
        assert float((tensor - goal).norm()) < 0.5 * float((their[name] - goal).norm()) + case.tolerance, name


def kept(case: Case, mine: Model, their: Model, zoo: dict[str, Path]) -> None:
    """Of the only parent's delta both keep the same share, and either scales it as it says."""
    base, parent = read_tensors(zoo["base"]), read_tensors(zoo[case.parents[0]])
    for name, tensor in mine.items():
        delta = parent[name] - base[name]
        rows = delta.reshape(-1, delta.shape[-1])
        rank = rows.abs().argsort(dim=1).argsort(dim=1).reshape(delta.shape) / (rows.shape[1] - 1)
        width = EPSILON if "epsilon" in case.genes else 0.0
        chance = DENSITY - width / 2 + width * rank
        for made, of_theirs in ((tensor, False), (their[name], True)):
            change = made - base[name]
            stays = change.abs() > 1e-7
            scaled = delta * (delta.abs().sum() / delta[stays].abs().sum()) if of_theirs else delta / chance
            assert torch.allclose(change[stays], SCALE * scaled[stays], rtol=1e-3, atol=1e-6), (name, of_theirs)
            error = 4 * (0.25 / delta.numel()) ** 0.5
            assert abs(float(stays.float().mean()) - DENSITY) < error, name
            if width:
                larger = stays[chance > DENSITY].float().mean() - stays[chance < DENSITY].float().mean()
                assert abs(float(larger) - width / 2) < 2 * error, name


def undivided(case: Case, mine: Model, their: Model, zoo: dict[str, Path]) -> None:
    """Theirs is ours divided, entry by entry, by the coefficients of the parents that were not erased."""
    base, parents = read_tensors(zoo["base"]), [read_tensors(zoo[name]) for name in case.parents]
    for name, tensor in mine.items():
        delta = torch.stack([parent[name] - base[name] for parent in parents])
        varied = delta.var(0)
        delta = delta * (varied >= varied.flatten().topk(int(TAU * varied.numel())).values.min())
        share = delta.square().flatten(1).sum(1) / delta.square().sum()
        agree = (delta.sign() == delta.sum(0).sign()) & (delta != 0)
        divisor = torch.einsum("p,p...->...", share, agree.float()).clamp(min=1e-9)
        expected = base[name] + torch.where(agree.any(0), (tensor - base[name]) / divisor, 0.0)
        assert torch.allclose(expected, their[name], rtol=0.0, atol=case.tolerance), (
            name, float((expected - their[name]).abs().max()))


COMPARED: dict[str, Callable[[Case, Model, Model, dict[str, Path]], None]] = {
    "equal": equal, "begun": begun, "kept": kept, "undivided": undivided}


def test_every_operator_has_a_peer() -> None:
    assert CASES.keys() == set(Operator)


@pytest.mark.parametrize("operator", list(Operator))
def test_mergekit_makes_the_same_model(
    operator: Operator, zoo: dict[str, Path], theirs: dict[str, Any], tmp_path: Path
) -> None:
    their, case = theirs[operator], CASES[operator]
    assert isinstance(their, Path), their
    mine, their = ours(operator, case, zoo, tmp_path / "ours"), read_tensors(their)
    assert mine.keys() == their.keys()
    assert {tensor.dtype for tensor in their.values()} == {torch.float32}
    COMPARED[case.compared](case, mine, their, zoo)
