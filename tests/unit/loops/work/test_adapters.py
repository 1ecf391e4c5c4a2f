"""LoRA adapters as parents: what PEFT makes of them, merged without cross terms, and refused where not understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lora import adapter, edit, whole
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from loops.architecture.genome import Definition, Operator
from loops.work.build import build, read_tensors
from loops.work.weights import opened, outline_of
from safety.adapters import CONFIG, WEIGHTS
from safety.headers import HeaderError
from state.jobs import Desk, JobSpec
from state.records import JsonObject

ALL = {"target_modules": "all-linear"}
KINDS: dict[str, tuple[int, dict[str, Any]]] = {                       # with the number of tensors that change
    "plain": (14, ALL),
    "rank-stabilised": (4, {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
    "patterns": (14, {**ALL, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*proj": 3}}),
    "embedding": (3, {"target_modules": ["embed_tokens", "v_proj"]}),
    "whole modules": (3, {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}),
    "dora": (14, {**ALL, "use_dora": True}),
    "dora, rank-stabilised, of the embedding": (
        3, {"target_modules": ["embed_tokens", "up_proj"], "use_dora": True, "use_rslora": True}),
}
SOME = {"one": ALL, "two": {**ALL, "use_rslora": True, "r": 2}, "three": {**ALL, "use_dora": True}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("adapters") / "base", [f"w{number}" for number in range(20)], seed=1)


@pytest.fixture(scope="module")
def some(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters over the base, a plain one, a rank-stabilised and a DoRA, and PEFT's models of them."""
    folder = tmp_path_factory.mktemp("some")
    made = {name: adapter(base, folder / name, seed, **more) for seed, (name, more) in enumerate(SOME.items())}
    return made | {f"{name}, whole": whole(base, path, folder / f"{name}-whole") for name, path in made.items()}


def built(change: JsonObject, folder: Path, **models: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    desk = Desk(folder, {f"model:{name}": path for name, path in models.items()})
    return read_tensors(build(JobSpec("build", {}, {"change": change}), desk).outputs["model"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_adapter_is_the_model_that_peft_makes_of_it(kind: str, base: Path, tmp_path: Path) -> None:
    count, more = KINDS[kind]
    folder = adapter(base, tmp_path / "adapter", **more)
    ours, before = opened(folder, opened(base)), read_tensors(base)
    theirs = read_tensors(whole(base, folder, tmp_path / "whole"))
    assert ours.keys() == theirs.keys() == before.keys()
    assert {name: tensor.shape for name, tensor in outline_of(ours).items()} == {
        name: tensor.shape for name, tensor in before.items()}
    assert sum(not torch.equal(ours[name], before[name]) for name in ours) == count
    for name in ours:
        if "dora" in kind and "embed" in name:                      # PEFT sums the squares of a column in another order
            assert torch.allclose(ours[name], theirs[name], rtol=3e-7, atol=0.0)
        else:
            assert torch.equal(ours[name], theirs[name])            # the same operations in float32: the same bits


@pytest.mark.parametrize("operator", [
    Operator.LINEAR, Operator.TASK_ARITHMETIC, Operator.TIES, Operator.DARE_LINEAR, Operator.SCE, Operator.KARCHER,
])
def test_a_merge_of_adapters_is_the_merge_of_the_models_that_peft_makes_of_them(
    operator: Operator, base: Path, some: dict[str, Path], tmp_path: Path
) -> None:
    """Three of them at once, bit for bit, in float32; one of them also beside whole models."""
    definition = Definition(operator, "base", tuple(SOME), seed=3)
    change = definition.change(definition.centre([0.7, 0.4, 0.5]))
    models = {name: some[f"{name}, whole"] for name in SOME}
    expected = built(change, tmp_path / "whole", base=base, **models)
    found = built(change, tmp_path / "adapters", base=base, **{name: some[name] for name in SOME})
    mixed = built(change, tmp_path / "mixed", base=base, **{**models, "two": some["two"]})
    before = read_tensors(base)
    assert any(not torch.equal(found[name], before[name]) for name in found)
    assert found.keys() == expected.keys() == mixed.keys()
    assert all(torch.equal(found[name], expected[name]) and torch.equal(mixed[name], expected[name]) for name in found)


def test_adapters_are_merged_as_the_sums_of_their_products(base: Path, some: dict[str, Path], tmp_path: Path) -> None:
    """base + 0.7 delta_1 + 0.4 delta_2: what mixes the factors has cross terms, which are anything but small here."""
    change = Definition(Operator.TASK_ARITHMETIC, "base", ("one", "two")).change([0.7, 0.4])
    made = built(change, tmp_path / "job", base=base, one=some["one"], two=some["two"])
    before = read_tensors(base)
    target = "model.layers.1.mlp.up_proj"
    expected = before[f"{target}.weight"].double()
    for name, weight, scale in (("one", 0.7, 8 / 4), ("two", 0.4, 8 / 2**0.5)):
        held = load_file(some[name] / WEIGHTS)
        a, b = (held[f"base_model.model.{target}.lora_{which}.weight"].double() for which in "AB")
        expected += weight * scale * (b @ a)
    assert torch.allclose(made[f"{target}.weight"].double(), expected, rtol=0.0, atol=1e-6)
    unchanged = "model.embed_tokens.weight"
    assert torch.allclose(made[unchanged], before[unchanged], rtol=0.0, atol=1e-7)


def test_over_a_base_in_bfloat16_only_the_result_is_rounded(base: Path, some: dict[str, Path], tmp_path: Path) -> None:
    """So the deltas are those of the adapters; whole parents in bfloat16 would have lost a part of them before."""
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16).save_pretrained(half)
    for file in base.glob("token*"):
        (half / file.name).write_bytes(file.read_bytes())
    change = Definition(Operator.TASK_ARITHMETIC, "base", ("one", "two")).change([0.7, 0.4])
    made = built(change, tmp_path / "job", base=half, one=some["one"], two=some["two"])
    exact = built(change, tmp_path / "exact", base=whole_in_float32(half, tmp_path), one=some["one"], two=some["two"])
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    assert all(torch.equal(made[name], exact[name].to(torch.bfloat16)) for name in made)


def whole_in_float32(half: Path, folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32).save_pretrained(folder / "float32")
    for file in half.glob("token*"):
        (folder / "float32" / file.name).write_bytes(file.read_bytes())
    return folder / "float32"


def test_crossovers_and_paths_of_adapters_are_those_of_whole_models(
    base: Path, some: dict[str, Path], tmp_path: Path
) -> None:
    """Both name the base, which gives config and tokenizer where the first parent has none."""
    layers = {"layers": [[0, 0], [1, 1], [0, 1], [1, 1]], "scales": [1.0, 0.8, 1.0, 1.2], "places": [0, 1, 2, 3]}
    for place, change in enumerate((
        {"kind": "crossover", "parents": ["one", "three"], "split": 0.4, "mix": 0.3},
        {"kind": "crossover", "parents": ["three"], "split": 1.0, "mix": 0.0},
        {"kind": "path", "parents": ["one", "three"], **layers},
    )):
        names = change["parents"]
        expected = built(change, tmp_path / f"{place}-whole", **{name: some[f"{name}, whole"] for name in names})
        over = {**change, "base": "base"}
        found = built(over, tmp_path / f"{place}", base=base, **{name: some[name] for name in names})
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        made = tmp_path / f"{place}" / "model"
        assert (made / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
        assert AutoModelForCausalLM.from_pretrained(made).config.num_hidden_layers == 4 - 2 * (place < 2)
        assert not (made / CONFIG).exists()


def test_an_adapter_without_a_base_is_refused_by_name(base: Path, some: dict[str, Path], tmp_path: Path) -> None:
    change = {"kind": "crossover", "parents": ["one", "two"], "split": 0.4, "mix": 0.3}
    with pytest.raises(ValueError, match="model one is an adapter, and the change names no base that it is over"):
        built(change, tmp_path / "job", one=some["one"], two=some["two"])
    with pytest.raises(ValueError, match="the change names no base that it is over"):
        opened(some["one"])


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    """A candidate is scored and written by different numbers of threads."""
    outer, draw, target = torch.get_num_threads(), torch.Generator().manual_seed(2), "layers.0.mlp.up_proj"
    save_file({f"{target}.weight": torch.randn(777, 1031, generator=draw)}, tmp_path / "model.safetensors")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / CONFIG).write_text('{"peft_type": "LORA", "lora_alpha": 5, "use_dora": true}')
    shapes = {"lora_A.weight": (16, 1031), "lora_B.weight": (777, 16), "lora_magnitude_vector": (777,)}
    save_file({f"base_model.model.{target}.{which}": torch.randn(shape, generator=draw)
               for which, shape in shapes.items()}, tmp_path / "adapter" / WEIGHTS)
    made = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            made.append(opened(tmp_path / "adapter", opened(tmp_path))[f"{target}.weight"])
    finally:
        torch.set_num_threads(outer)
    assert all(torch.equal(made[0], tensor) for tensor in made)


@pytest.mark.parametrize(("key", "value", "words"), [
    ("peft_type", "IA3", "only LORA can be merged"),
    ("use_dora", True, "has no lora_magnitude_vector, use_dora is true"),
    ("init_lora_weights", "pissa", "may have changed the base's own weights"),
    ("arrow_config", {"top_k": 1}, "arrow_config is set"),
    ("alpha_pattern", {"q_proj": "2"}, "no table of numbers"), ("alpha_pattern", [1], "no table of numbers"),
    ("bias", "all", "it changes biases"), ("layer_replication", [[0, 2], [1, 2]], "layer_replication is set"),
    ("alpha_pattern", {"(.*)*x": 1}, "may take too long"), ("alpha_pattern", {".*.*.*.*x": 1}, "may take too long"),
    ("lora_alpha", "8", "lora_alpha is not a number"), ("alpha_pattern", {"(": 1}, "no regular expression"),
])
def test_what_is_not_understood_is_refused(
    key: str, value: object, words: str, base: Path, some: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in some["one"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit(folder / CONFIG, **{key: value})
    with pytest.raises(HeaderError, match=words):
        opened(folder, opened(base))


def without(part: str) -> Any:
    left_out = f"layers.0.self_attn.q_proj.{part}"
    return lambda held: {name: tensor for name, tensor in held.items() if left_out not in name}


@pytest.mark.parametrize(("change", "words"), [
    (lambda held: {**held, "base_model.model.model.extra.weight": torch.zeros(2)}, "which the model does not have"),
    (lambda held: {**held, "prompt": torch.zeros(2)}, "is not named as PEFT names"),
    (without("lora_A"), "has no lora_A beside it"),
    (without("lora_B"), "has no lora_B beside it"),
    (lambda held: {name: tensor[:3] if "layers.1.mlp.up_proj.lora_B" in name else tensor
                   for name, tensor in held.items()}, r"do not fit the model's model\.layers\.1\.mlp\.up_proj\.weight"),
    (lambda held: {name: tensor.to(torch.uint8) if "layers.1.mlp.up_proj.lora_B" in name else tensor
                   for name, tensor in held.items()}, "in the number format uint8: what is quantised cannot be merged"),
    (lambda held: {**held, "base_model.model.lm_head.weight": torch.zeros(29, 32)},
     r"is 29x32, the model's lm_head\.weight is 23x32: its vocabulary was resized"),
    (lambda held: {**held, "base_model.model.model.norm.weight": torch.zeros(31)}, r"is 31, the model's model\.norm"),
    (lambda held: {**held, "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": torch.zeros(64)},
     "has a lora_magnitude_vector, use_dora is false"),
    (lambda held: {}, "it has no tensors"),
])
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_read(
    change: Any, words: str, base: Path, some: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CONFIG).write_bytes((some["one"] / CONFIG).read_bytes())
    save_file(change({name: tensor.clone() for name, tensor in load_file(some["one"] / WEIGHTS).items()}),
              folder / WEIGHTS)
    with pytest.raises(HeaderError, match=words):
        built(Definition(Operator.LINEAR, "base", ("one",)).change([1.0]), tmp_path / "job", base=base, one=folder)
    assert not (tmp_path / "job" / "model.writing").exists()
