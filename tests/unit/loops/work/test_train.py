"""The job "train" trains on the answers only, is a pure function of its spec, and carries runs on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from coaching import desk, hashes, make_classroom, train_spec
from safetensors.torch import load_file, save_file
from trl import SFTTrainer

from loops.work.build import build
from loops.work.train import Diverged, train
from safety.headers import unlike
from state.jobs import Desk, JobSpec


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classroom(tmp_path_factory.mktemp("classroom"))


@pytest.fixture(scope="module")
def whole(classroom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return train(train_spec(), desk(classroom, folder)), folder


def test_it_lowers_the_loss_and_says_what_each_source_gave(whole: tuple[Any, Path]) -> None:
    values = whole[0].values
    assert values["loss_last"] < values["loss_first"]
    assert values["steps"] == 12
    assert values["stopped"] is None
    assert values["sources"]["expert_maths"]["rows"] + values["sources"]["expert_language"]["rows"] == 96
    assert values["tokens"] == whole[0].tokens == sum(source["tokens"] for source in values["sources"].values())
    assert values["sources"]["expert_maths"]["loss_drop"] > 0


def test_the_model_folder_is_the_source_with_other_weights(classroom: Path, whole: tuple[Any, Path]) -> None:
    old, new = hashes(classroom / "model"), hashes(whole[0].outputs["model"])
    assert set(old) == set(new)
    assert {name for name in old if old[name] != new[name]} == {"model.safetensors"}


def test_the_same_spec_gives_the_same_bits_and_values(classroom: Path, whole: tuple[Any, Path], tmp_path: Path) -> None:
    again = train(train_spec(), desk(classroom, tmp_path))
    assert again.values == whole[0].values
    for output in ("model", "checkpoint"):
        assert hashes(again.outputs[output]) == hashes(whole[0].outputs[output])


@pytest.mark.parametrize("part", [1.0, 0.999, 0.5, 0.09])
def test_a_capped_one_does_the_steps_that_fit_and_is_the_shorter_run_bit_for_bit(
    classroom: Path, whole: tuple[Any, Path], tmp_path: Path, part: float
) -> None:
    cap = int(part * whole[0].tokens)
    capped = train(train_spec(max_tokens=cap), desk(classroom, tmp_path / "capped"))
    steps = capped.values["steps"]
    shorter = train(train_spec(0, steps), desk(classroom, tmp_path / "shorter"))
    assert capped.tokens == shorter.tokens <= cap
    assert capped.values == {**shorter.values, "stopped": capped.values["stopped"]}
    for output in ("model", "checkpoint"):
        assert hashes(capped.outputs[output]) == hashes(shorter.outputs[output])
    if steps < 12:
        assert train(train_spec(0, steps + 1), desk(classroom, tmp_path / "longer")).tokens > cap
        assert f"the {cap} tokens it may use do not suffice for another step" == capped.values["stopped"]
    else:
        assert capped.values["stopped"] is None


@pytest.mark.parametrize("cap", [50, 1, 0])
def test_where_no_step_fits_nothing_is_trained(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: int
) -> None:
    monkeypatch.setattr(SFTTrainer, "__init__", None)
    made = train(train_spec(max_tokens=cap), desk(classroom, tmp_path))
    assert (made.values["steps"], made.values["tokens"], made.tokens, made.outputs) == (0, 0, 0, {})
    assert made.values["stopped"] == f"the {cap} tokens it may use do not suffice for a step"


@pytest.mark.parametrize("kind", ["none", "lora", "dora", "rslora"])
def test_two_rungs_end_where_one_run_ends(classroom: Path, tmp_path: Path, kind: str) -> None:
    adapter = {"adapter": {"kind": kind, "rank": 4, "alpha": 8.0}}
    one = train(train_spec(0, 6, **adapter), desk(classroom, tmp_path / "one"))
    first = train(train_spec(0, 3, **adapter), desk(classroom, tmp_path / "first"))
    second = train(
        train_spec(3, 6, **adapter),
        desk(classroom, tmp_path / "second", checkpoint=first.outputs["checkpoint"], model=first.outputs["model"]),
    )
    assert hashes(second.outputs["checkpoint"]) == hashes(one.outputs["checkpoint"])
    assert hashes(second.outputs["model"])["model.safetensors"] == hashes(one.outputs["model"])["model.safetensors"]


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "rank": 4, "alpha": 8.0}])
def test_from_a_checkpoint_a_child_goes_on_with_the_rate_of_its_own_recipe_and_its_leaders_moments(
    classroom: Path, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    leader = train(train_spec(0, 4, adapter=adapter), desk(classroom, tmp_path / "leader"))
    stood = load_file(leader.outputs["checkpoint"] / "weights.safetensors")

    def moved(name: str, **genes: Any) -> dict[str, torch.Tensor]:
        given = desk(classroom, tmp_path / name, model=leader.outputs["model"], checkpoint=leader.outputs["checkpoint"])
        child = train(train_spec(4, 5, adapter=adapter, **genes), given)
        weights = load_file(child.outputs["checkpoint"] / "weights.safetensors")
        return {key: weights[key] - stood[key] for key in weights}

    slow = moved("slow", learning_rate=5e-4, schedule="constant")
    fast = moved("fast", learning_rate=1e-3, schedule="constant")
    late = moved("late", learning_rate=1e-3, schedule="linear")              # 16 of the 18 steps after warm-up are left
    assert any(bool(step.any()) for step in slow.values())
    for key, step in fast.items():
        assert torch.allclose(step, 2 * slow[key], rtol=0.02, atol=2e-7), key
        assert torch.allclose(late[key], 16 / 18 * step, rtol=0.02, atol=2e-7), key


def test_an_adapter_changes_linear_weights_only_and_merges_into_plain_names(classroom: Path, tmp_path: Path) -> None:
    adapter = {"kind": "lora", "rank": 4, "alpha": 8.0}
    made = train(train_spec(0, 4, adapter=adapter), desk(classroom, tmp_path))
    old = load_file(classroom / "model" / "model.safetensors")
    new = load_file(made.outputs["model"] / "model.safetensors")
    assert set(old) == set(new)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.endswith("_proj.weight") for name in changed)


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "rank": 4, "alpha": 8.0}])
def test_a_path_is_trained_like_any_model_and_its_repeated_layers_each_for_itself(
    classroom: Path, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    change = {"kind": "path", "parents": ["m"], "layers": [[0, 0], [0, 1], [0, 1]], "scales": [1.0, 1.0, 0.8],
              "places": [0, 1, 3]}
    (tmp_path / "build").mkdir()
    built = build(JobSpec("build", {}, {"change": change}),
                  Desk(tmp_path / "build", {"model:m": classroom / "model"}, cache={})).outputs["model"]
    made = train(train_spec(0, 4, adapter=adapter), desk(classroom, tmp_path / "trained", model=built))
    old, new = (load_file(folder / "model.safetensors") for folder in (built, made.outputs["model"]))
    assert set(old) == set(new)
    name = "model.layers.{}.self_attn.q_proj.weight"
    assert torch.equal(old[name.format(1)], old[name.format(2)])
    assert not torch.equal(new[name.format(1)], new[name.format(2)])
    assert unlike(made.outputs["model"], built) == []


def test_a_checkpoint_of_another_kind_or_place_is_refused(
    classroom: Path, whole: tuple[Any, Path], tmp_path: Path
) -> None:
    given = {"checkpoint": whole[0].outputs["checkpoint"]}
    with pytest.raises(ValueError, match="step is 12, asked for is 5"):
        train(train_spec(5, 14), desk(classroom, tmp_path / "a", **given))
    with pytest.raises(ValueError, match="adapter"):
        train(train_spec(12, 14, adapter={"kind": "lora", "rank": 4, "alpha": 8.0}),
              desk(classroom, tmp_path / "b", **given))
    with pytest.raises(ValueError, match="need a checkpoint"):
        train(train_spec(5, 14), desk(classroom, tmp_path / "c"))


def test_a_loss_that_is_no_number_ends_the_job_with_a_reason(classroom: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="at step"):
        train(train_spec(), _poisoned(classroom, tmp_path))


def _poisoned(classroom: Path, folder: Path) -> Any:
    """A desk whose model holds one weight that is no number."""
    source = classroom / "model"
    poisoned = folder / "poisoned"
    poisoned.mkdir(parents=True)
    for path in source.iterdir():
        (poisoned / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, poisoned / "model.safetensors", {"format": "pt"})
    return desk(classroom, folder / "work", model=poisoned)


def test_out_of_memory_halves_the_batch_once_and_is_remembered(
    classroom: Path, tmp_path: Path, whole: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SFTTrainer.compute_loss

    def narrow(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if len(inputs["input_ids"]) > 4:
            raise torch.OutOfMemoryError("too much")
        return honest(self, model, inputs, *rest, **more)

    monkeypatch.setattr(SFTTrainer, "compute_loss", narrow)
    values = train(train_spec(), desk(classroom, tmp_path)).values
    assert values["learned"] == {"micro_batch": 4}
    assert values["loss_last"] == pytest.approx(whole[0].values["loss_last"], rel=1e-3)
    with pytest.raises(torch.OutOfMemoryError):
        train(train_spec(batch=16), desk(classroom, tmp_path / "wider"))
