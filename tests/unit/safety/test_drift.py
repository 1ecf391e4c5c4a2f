"""Job "measure" on real models: nothing moved is zero, what moved is measured, what is broken is seen."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from court import write_lines
from safetensors.torch import load_file, save_file
from sealing import seal_of
from tiny import tiny_model

from safety import drift
from safety.bounds import Bounds
from safety.drift import measure, probe, spectral_norm
from safety.inspection import inspect_model
from safety.yardstick.items import Item, TaskError, TaskSpec
from state.jobs import Desk, JobResult, JobSpec
from state.records import Cost, canonical

WORDS = ["one", "two", "three", "four", "is"]
PROBE = [["one two", "three"], ["two", "four one"], ["four four four", "is"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "base", WORDS, seed=1)


def changed(base: Path, into: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(base, into)
    tensors = load_file(into / "model.safetensors")
    edit(tensors)
    save_file(tensors, into / "model.safetensors", {"format": "pt"})
    return into


def measured(folder: Path, base: Path | None, tmp_path: Path, **params: Any) -> dict[str, Any]:
    inputs = {"result": folder, **({"base": base} if base else {})}
    return measure(JobSpec("measure", {name: name for name in inputs}, params), Desk(tmp_path, inputs)).values


def test_a_model_does_not_drift_from_itself(base: Path, tmp_path: Path) -> None:
    values = measured(base, base, tmp_path, probe=PROBE)
    assert values["drift"]["embedding_norm"] == 1.0
    assert all(value == 0 for name, value in values["drift"].items() if name != "embedding_norm")
    assert set(values["drift"]) == set(Bounds().drift.stable.__dataclass_fields__)
    assert values["model"]["non_finite"] == 0
    assert values["model"]["layers"] == 2


def test_doubled_weights_have_moved_by_their_own_norm(base: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    double = changed(base, tmp_path / "m", lambda tensors: tensors.update({name: tensors[name] * 2}))
    drift = measured(double, base, tmp_path)["drift"]
    assert drift["tensor_frobenius"] == pytest.approx(1.0)
    assert drift["spectral"] == pytest.approx(1.0, rel=1e-3)
    tensors = load_file(base / "model.safetensors")
    whole = math.sqrt(sum(float(tensor.double().norm()) ** 2 for tensor in tensors.values()))
    assert drift["relative_frobenius"] == pytest.approx(float(tensors[name].norm()) / whole, rel=1e-5)
    assert "kl_mean" not in drift


def test_another_model_drifts_in_behaviour_and_twice_by_the_same_numbers(base: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", WORDS, seed=2)
    first, second = (measured(other, base, tmp_path, probe=PROBE) for _ in range(2))
    assert first == second
    assert 0 < first["drift"]["kl_mean"] <= first["drift"]["kl_p99"]
    canonical(first)


def test_answer_lengths_are_looked_at_in_every_task(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[str] = []

    def written(model: Any, tokenizer: Any, items: list[Item], batch: int) -> list[str]:
        met.extend(item.prompt for item in items)
        return ["one"] * len(items)

    monkeypatch.setattr(drift, "generate_texts", written)
    measured(base, base, tmp_path, probe=[["one", "two"]] * 90 + [["three", "four"]] * 90)
    assert met.count("one") == met.count("three") == len(met) / 2
    assert len(met) <= 2 * drift.GENERATED


def test_embeddings_that_grew_are_seen(base: Path, tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    grown = changed(base, tmp_path / "m", lambda tensors: tensors.update({name: tensors[name] * 3}))
    assert measured(grown, base, tmp_path)["drift"]["embedding_norm"] == pytest.approx(3.0, rel=1e-5)


def test_broken_weights_are_counted_and_the_model_is_not_run(base: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])

    values = measured(changed(base, tmp_path / "m", spoil), base, tmp_path, probe=PROBE)
    assert values["model"]["non_finite"] == 3
    assert values["drift"] == {}


def test_models_of_other_shapes_are_compared_in_what_applies(base: Path, tmp_path: Path) -> None:
    wide = tiny_model(tmp_path / "wide", WORDS, width=64)
    drift = measured(wide, base, tmp_path, probe=PROBE)["drift"]
    assert "relative_frobenius" not in drift
    assert "kl_mean" in drift
    words = tiny_model(tmp_path / "words", [*WORDS, "five"])
    assert "kl_mean" not in measured(words, base, tmp_path, probe=PROBE)["drift"]


def restacked(folder: Path, into: Path, layers: list[int], edit: Any = None) -> Path:
    """The model with other layers of its own in its layers' places."""
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if ".layers." not in name}
    held = load_file(folder / "model.safetensors")
    for place, layer in enumerate(layers):
        old, new = f"model.layers.{layer}.", f"model.layers.{place}."
        kept |= {name.replace(old, new): tensor.clone() for name, tensor in held.items() if name.startswith(old)}
    (edit or (lambda tensors: None))(kept)
    shutil.copytree(folder, into)
    config = json.loads((into / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({**config, "num_hidden_layers": len(layers)}))
    save_file(kept, into / "model.safetensors", {"format": "pt"})
    return into


@pytest.mark.parametrize("layers", [[0, 1, 1, 0], [1, 0], [1], [0, 0]])
def test_layers_that_stand_elsewhere_are_measured_against_the_layers_they_were(
    layers: list[int], base: Path, tmp_path: Path
) -> None:
    moved = measured(restacked(base, tmp_path / "m", layers), base, tmp_path, probe=PROBE)["drift"]
    assert moved["relative_frobenius"] == moved["tensor_frobenius"] == moved["spectral"] == 0.0
    assert moved["kl_mean"] > 0.0                            # what the order does shows in behaviour
    name = "model.layers.0.mlp.up_proj.weight"
    double = restacked(base, tmp_path / "d", layers, lambda tensors: tensors.update({name: tensors[name] * 1.5}))
    assert measured(double, base, tmp_path)["drift"]["tensor_frobenius"] == pytest.approx(0.5)


def test_a_layer_that_is_like_no_other_is_measured_against_its_own_place(base: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", WORDS, seed=9)
    drift = measured(other, base, tmp_path)["drift"]
    tensors = [load_file(folder / "model.safetensors") for folder in (base, other)]
    moved = sum(float((tensors[1][name] - tensors[0][name]).double().norm()) ** 2 for name in tensors[0])
    size = sum(float(tensor.double().norm()) ** 2 for tensor in tensors[0].values())
    assert drift["relative_frobenius"] == pytest.approx((moved / size) ** 0.5, rel=1e-5)


def test_the_spectral_norm_is_that_of_the_singular_values() -> None:
    torch.manual_seed(0)
    low_rank = torch.randn(40, 3) @ torch.diag(torch.tensor([9.0, 3.0, 1.0])) @ torch.randn(3, 30)
    assert spectral_norm(low_rank, "x") == pytest.approx(float(torch.linalg.matrix_norm(low_rank, 2)), rel=1e-3)
    assert spectral_norm(torch.zeros(4, 5), "x") == 0.0


def test_inspection_refuses_a_broken_model_and_one_over_a_limit_and_skips_none(base: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][0, 0] = float("nan")

    paths = {"base": base, "good": base, "bad": changed(base, tmp_path / "m", spoil)}

    def job(kind: str, inputs: dict[str, str], params: dict[str, Any]) -> JobResult:
        desk = Desk(tmp_path, {name: paths[digest] for name, digest in inputs.items()})
        return JobResult(measure(JobSpec(kind, inputs, params), desk).values, {}, Cost())

    assert inspect_model(Bounds(), job, "base", "good")[0] is None
    refusal, _ = inspect_model(Bounds(), job, "base", "bad")
    assert refusal is not None
    assert refusal.bound == "model.non_finite"
    assert inspect_model(Bounds(), job, "base", None) == (None, {})
    tight = Bounds.from_json({"model": {"max_layers": 1}})
    over, _ = inspect_model(tight, job, "base", "good")
    assert over is not None
    assert over.bound == "model.max_layers"


def test_the_probe_is_drawn_from_the_tasks_and_smaller_where_their_pool_is(base: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    write_lines(pool, [(f"one two {word}", "three") for word in WORDS], lambda p, a: {"prompt": p, "answer": a})
    task = TaskSpec("words", "target", {"kind": "jsonl", "path": str(pool)})
    params = {"tasks": [task.to_json()], "probe_items": 64, "probe_seed": 1}
    seal = seal_of([task], tmp_path / "seal")
    assert len(probe(JobSpec("measure", {}, params), Desk(tmp_path, {"seal": seal}))) == 4
    desk = Desk(tmp_path, {"base": base, "result": base, "seal": seal})
    assert "kl_mean" in measure(JobSpec("measure", dict.fromkeys(desk.inputs, "x"), params), desk).values["drift"]
    with pytest.raises(TaskError):
        probe(JobSpec("measure", {}, params), Desk(tmp_path, {}))
