"""The job "build": what is written, and that it is what was composed."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loops.architecture.genome import Definition, Operator
from loops.work.build import build, cell_of, composed, layer_count, read_tensors
from safety.licences import licences_of
from state.jobs import Desk, JobSpec

CHANGE = Definition(Operator.TASK_ARITHMETIC, "base", ("one", "two")).change([0.7, 0.4])
CROSSING = {"kind": "crossover", "parents": ["one", "two"], "split": 0.4, "mix": 0.3}
pytest_plugins = ("zoo",)
Make = Callable[..., Desk]


def built(change: dict[str, Any], desk: Desk) -> Path:
    desk.folder.mkdir(exist_ok=True)
    return Path(build(JobSpec("build", {}, {"change": change}), desk).outputs["model"])


@pytest.mark.parametrize("change", [CHANGE, CROSSING, Definition(Operator.DARE_TIES, "base", ("one", "two"), seed=3)
                                    .change([0.7, 0.4, 0.5, 0.6])])
def test_the_written_tensors_are_the_composed_ones_bit_for_bit(
    change: dict[str, Any], desk_of: Make, zoo: dict[str, Path]
) -> None:
    written = read_tensors(built(change, desk_of()))
    models = {name: read_tensors(path) for name, path in zoo.items()}
    for name, tensor in composed(change, models):
        assert torch.equal(written[name], tensor)


def test_with_a_split_point_of_its_own_attention_changes_sides_where_the_rest_does_not(zoo: dict[str, Path]) -> None:
    """SLERP with mix 0 is the first parent and with 1 the second, so each side of a split point is one of them."""
    models = {name: read_tensors(path) for name, path in zoo.items()}
    change = {**CROSSING, "split": 0.0, "attention_split": 1.0, "mix": 0.0}
    sides = {True: models["one"], False: models["two"]}
    for name, tensor in composed(change, models):
        assert torch.equal(tensor, sides["self_attn" in name][name]), name


def test_two_equal_split_points_cut_each_part_at_its_own_place(zoo: dict[str, Path]) -> None:
    models = {name: read_tensors(path) for name, path in zoo.items()}
    halves = dict(composed({**CROSSING, "split": 0.5, "attention_split": 0.5, "mix": 0.0}, models))
    for own in (True, False):
        names = [name for name in halves if ("self_attn" in name) == own]
        first = torch.cat([models["one"][name].flatten() for name in names])
        second = torch.cat([models["two"][name].flatten() for name in names])
        made, point = torch.cat([halves[name].flatten() for name in names]), first.numel() // 2
        assert torch.equal(made[:point], first[:point])
        assert torch.equal(made[point:], second[point:])


def test_building_twice_gives_the_same_bytes(desk_of: Make) -> None:
    first = {path.name: path.read_bytes() for path in built(CHANGE, desk_of()).iterdir()}
    second = {path.name: path.read_bytes() for path in built(CHANGE, desk_of()).iterdir()}
    assert first == second


def test_the_folder_loads_with_transformers_and_has_the_base_tokenizer(desk_of: Make, zoo: dict[str, Path]) -> None:
    folder = built(CHANGE, desk_of())
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(zoo["base"]).get_vocab()


def test_the_card_names_every_licence_of_what_went_in_once(desk_of: Make) -> None:
    assert licences_of(built(CHANGE, desk_of())) == ["apache-2.0", "mit"]


def test_the_notices_of_every_parent_are_carried_along_and_the_files_of_the_base_alone(
    desk_of: Make, zoo: dict[str, Path], tmp_path: Path
) -> None:
    more = {name: Path(shutil.copytree(zoo[name], tmp_path / name)) for name in zoo}
    (more["base"] / "LICENSE").write_text("the base's")
    (more["base"] / "lineage.json").write_text("of the base")
    (more["one"] / "LICENSE").write_text("the first parent's")
    (more["two"] / "NOTICE").write_text("of the second parent")
    (more["two"] / "notes.txt").write_text("of the second parent")
    folder = built(CHANGE, desk_of(**more))
    notices = {file.read_text() for file in folder.iterdir() if file.name.startswith(("LICENSE", "NOTICE"))}
    assert notices == {"the base's", "the first parent's", "of the second parent"}
    assert not (folder / "lineage.json").exists() and not (folder / "notes.txt").exists()


def test_without_room_for_it_nothing_is_built_and_nobody_is_blamed(
    desk_of: Make, zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (zoo["base"] / "model.safetensors").stat().st_size
    desk = desk_of()
    for free in (size, size - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        if free == size:
            assert built(CHANGE, desk).is_dir()
            shutil.rmtree(desk.folder)
        else:
            with pytest.raises(OSError, match="GB are to be written") as raised:
                built(CHANGE, desk)
            assert raised.value.errno == errno.ENOSPC                    # a worker tells the disk's failures by it
            assert not [path for path in desk.folder.rglob("*") if path.is_file()]


def test_tensors_of_another_shape_are_named(zoo: dict[str, Path]) -> None:
    models = {name: read_tensors(path) for name, path in zoo.items()}
    models["one"]["lm_head.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"model one does not fit the template: tensor 'lm_head\.weight' is 3x3"):
        dict(composed(CHANGE, models))
    del models["one"]["lm_head.weight"]
    with pytest.raises(ValueError, match=r"model one does not fit .* it has nothing for the tensor 'lm_head\.weight'"):
        dict(composed(CHANGE, models))


def test_models_that_do_not_go_together_are_refused_before_any_weight_is_read(
    desk_of: Make, zoo: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(zoo["two"], tmp_path / "odd")
    tokenizer = tmp_path / "odd" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"then"', '"than"'))
    desk = desk_of(two=tmp_path / "odd")
    words = "model two cannot be merged: against the template: 2 tokens differ: 'than', 'then'"
    with pytest.raises(ValueError, match=words):
        built(CHANGE, desk)
    assert not list(desk.folder.iterdir())


def test_a_parent_in_another_number_format_is_merged_in_the_bases(
    desk_of: Make, zoo: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(zoo["two"], tmp_path / "half")
    half = {name: tensor.bfloat16() for name, tensor in read_tensors(zoo["two"]).items()}
    save_file(half, tmp_path / "half" / "model.safetensors", {"format": "pt"})
    written = read_tensors(built(CHANGE, desk_of(two=tmp_path / "half")))
    models = {name: read_tensors(path) for name, path in zoo.items()} | {"two": half}
    for name, tensor in composed(CHANGE, models):
        assert written[name].dtype is torch.float32
        assert torch.equal(written[name], tensor)


def test_more_groups_than_layers_are_refused(zoo: dict[str, Path]) -> None:
    models = {name: read_tensors(path) for name, path in zoo.items()}
    fine = Definition(Operator.TASK_ARITHMETIC, "base", ("one", "two"), groups=3, shared=False)
    with pytest.raises(ValueError, match="the model has 2 layers"):
        dict(composed(fine.change(fine.centre([0.5, 0.5])), models))


def test_a_folder_without_safetensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_tensors(tmp_path)


def test_pickled_weights_beside_a_template_are_not_copied(desk_of: Make, zoo: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(zoo["base"], tmp_path / "dirty")
    (tmp_path / "dirty" / "pytorch_model.bin").write_bytes(b"pickle")
    folder = built(CHANGE, desk_of(base=tmp_path / "dirty"))
    assert sorted(path.suffix for path in folder.iterdir() if path.name.startswith(("model", "pytorch"))) == [
        ".safetensors"]


@pytest.mark.parametrize(("name", "cell"), [
    ("model.embed_tokens.weight", (0, 2)),
    ("model.layers.0.self_attn.q_proj.weight", (0, 0)),
    ("model.layers.1.self_attn.q_norm.weight", (0, 0)),
    ("model.layers.2.mlp.up_proj.weight", (1, 1)),
    ("model.layers.3.post_attention_layernorm.weight", (1, 2)),
    ("transformer.h.3.attn.c_attn.weight", (1, 0)),
    ("model.norm.weight", (1, 2)),
    ("lm_head.weight", (1, 2)),
])
def test_each_tensor_has_its_block_of_layers_and_module(name: str, cell: tuple[int, int]) -> None:
    assert cell_of(name, 2, 4) == cell


def test_layers_are_counted_by_their_highest_number() -> None:
    assert layer_count(["model.layers.0.a.weight", "model.layers.11.a.weight", "lm_head.weight"]) == 12
