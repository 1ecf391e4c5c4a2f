"""LoRA adapters as parents: what PEFT makes of them, merged without cross terms, and refused where not understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from loops.architecture.genome import Definition, Operator
from loops.work.build import build, read_tensors
from loops.work.weights import opened, outline_of
from safety.adapters import CONFIG, WEIGHTS
from safety.headers import HeaderError
from state.jobs import Desk, JobSpec

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear"},
    "rank-stabilised": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*proj": 3}},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "whole modules": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("adapters") / "base", [f"w{number}" for number in range(20)], seed=1)


def adapter(base: Path, folder: Path, seed: int = 0, **more: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **more))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(0.0, 0.1, generator=draw)
    wrapped.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, folder: Path) -> dict[str, Tensor]:
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    whole: dict[str, Tensor] = wrapped.merge_and_unload().state_dict()
    return whole


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_adapter_is_the_model_that_peft_makes_of_it(kind: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter", **KINDS[kind])
    ours, theirs, before = opened(folder, base), merged_by_peft(base, folder), read_tensors(base)
    assert ours.keys() == before.keys()
    assert {name: tensor.shape for name, tensor in outline_of(ours).items()} == {
        name: tensor.shape for name, tensor in before.items()}
    changed = [name for name in ours if not torch.equal(ours[name], before[name])]
    assert len(changed) == {"plain": 14, "rank-stabilised": 4, "patterns": 14, "embedding": 3, "whole modules": 3}[kind]
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("operator", [Operator.TASK_ARITHMETIC, Operator.TIES])
def test_adapters_are_merged_as_the_sums_of_their_products(operator: Operator, base: Path, tmp_path: Path) -> None:
    """base + 0.7 delta_1 + 0.4 delta_2: what mixes the factors has cross terms, which are anything but small here. With
    TIES, the same as from the whole models."""
    folders = {name: adapter(base, tmp_path / name, seed, target_modules="all-linear")
               for seed, name in enumerate(("one", "two"))}
    definition = Definition(operator, "base", ("one", "two"))
    spec = JobSpec("build", {}, {"change": definition.change(definition.centre([0.7, 0.4]))})
    inputs = {"model:base": base, **{f"model:{name}": path for name, path in folders.items()}}
    (tmp_path / "job").mkdir()
    made = read_tensors(build(spec, Desk(tmp_path / "job", inputs)).outputs["model"])
    if operator is Operator.TIES:
        for name, path in folders.items():
            inputs[f"model:{name}"] = tmp_path / f"{name}-whole"
            model = AutoModelForCausalLM.from_pretrained(base)
            model.load_state_dict(dict(opened(path, base)))
            model.save_pretrained(inputs[f"model:{name}"])
            for file in base.glob("token*"):
                (inputs[f"model:{name}"] / file.name).write_bytes(file.read_bytes())
        (tmp_path / "whole").mkdir()
        whole = read_tensors(build(spec, Desk(tmp_path / "whole", inputs)).outputs["model"])
        assert all(torch.equal(made[name], whole[name]) for name in made)
        return
    before = read_tensors(base)
    held = {name: load_file(path / WEIGHTS) for name, path in folders.items()}
    target = "model.layers.1.mlp.up_proj"
    expected = before[f"{target}.weight"].double()
    for name, weight in (("one", 0.7), ("two", 0.4)):
        a, b = (held[name][f"base_model.model.{target}.lora_{which}.weight"].double() for which in "AB")
        expected += weight * 2.0 * (b @ a)
    assert torch.allclose(made[f"{target}.weight"].double(), expected, rtol=0.0, atol=1e-6)
    unchanged = "model.embed_tokens.weight"
    assert torch.allclose(made[unchanged], before[unchanged], rtol=0.0, atol=1e-7)


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    """A candidate is scored and written by different numbers of threads."""
    outer, draw, target = torch.get_num_threads(), torch.Generator().manual_seed(2), "layers.0.mlp.up_proj"
    save_file({f"{target}.weight": torch.randn(777, 1031, generator=draw)}, tmp_path / "model.safetensors")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / CONFIG).write_text('{"peft_type": "LORA", "lora_alpha": 5}')
    shapes = {"A": (16, 1031), "B": (777, 16)}
    save_file({f"base_model.model.{target}.lora_{which}.weight": torch.randn(shape, generator=draw)
               for which, shape in shapes.items()}, tmp_path / "adapter" / WEIGHTS)
    made = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            made.append(opened(tmp_path / "adapter", tmp_path)[f"{target}.weight"])
    finally:
        torch.set_num_threads(outer)
    assert all(torch.equal(made[0], tensor) for tensor in made)


@pytest.mark.parametrize(("key", "value", "words"), [
    ("peft_type", "IA3", "only LORA can be merged"), ("use_dora", True, "use_dora is set"),
    ("bias", "all", "it changes biases"), ("layer_replication", [[0, 2], [1, 2]], "layer_replication is set"),
    ("lora_alpha", "8", "lora_alpha is not a number"), ("alpha_pattern", {"(": 1}, "no regular expression"),
])
def test_what_is_not_understood_is_refused(key: str, value: object, words: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter", target_modules="all-linear")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, key: value}))
    with pytest.raises(HeaderError, match=words):
        opened(folder, base)


@pytest.mark.parametrize(("change", "words"), [
    (lambda held: {**held, "base_model.model.model.extra.weight": torch.zeros(2)}, "which the model does not have"),
    (lambda held: {**held, "prompt": torch.zeros(2)}, "is not named as PEFT names"),
    (lambda held: {name: tensor for name, tensor in held.items() if "layers.0.self_attn.q_proj.lora_A" not in name},
     "has no lora_A beside it"),
    (lambda held: {name: tensor for name, tensor in held.items() if "layers.0.self_attn.q_proj.lora_B" not in name},
     "has no lora_B beside it"),
    (lambda held: {name: tensor[:3] if "layers.1.mlp.up_proj.lora_B" in name else tensor
                   for name, tensor in held.items()}, r"do not fit the model's model\.layers\.1\.mlp\.up_proj\.weight"),
])
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_read(
    change: Any, words: str, base: Path, tmp_path: Path
) -> None:
    folder = adapter(base, tmp_path / "adapter", target_modules="all-linear")
    held = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(change(held), folder / WEIGHTS)
    spec = JobSpec("build", {}, {"change": Definition(Operator.LINEAR, "base", ("one",)).change([1.0])})
    with pytest.raises(HeaderError, match=words):
        build(spec, Desk(tmp_path, {"model:base": base, "model:one": folder}))
    assert not (tmp_path / "model.writing").exists()
