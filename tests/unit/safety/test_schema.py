"""What headers and configuration say of a model: sizes, kind, code it would run, and whether it kept its tensors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from safety.bounds import Bounds
from safety.drift import calibration, measure
from safety.headers import code_keys, facts_of, unlike
from safety.inspection import inspect_model
from safety.preflight import preflight
from safety.yardstick.items import Item
from safety.yardstick.scoring import load_model
from state.jobs import Desk, JobResult, JobSpec
from state.records import Cost

WORDS = ["one", "two", "three", "four"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "made", WORDS)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def configure(folder: Path, name: str = "config.json", **keys: object) -> None:
    file = folder / name
    body = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(body | keys))


def retensor(folder: Path, **tensors: torch.Tensor | None) -> None:
    kept = load_file(folder / "model.safetensors") | tensors
    save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, folder / "model.safetensors")


def test_sizes_are_those_of_config_or_tensors_whichever_says_more(copy: Path) -> None:
    facts = facts_of(copy)
    assert (facts["vocabulary"], facts["hidden"], facts["intermediate"]) == (7, 32, 64)
    assert (facts["model_type"], facts["loads_code"]) == ("llama", [])
    configure(copy, vocab_size=3, hidden_size=3)
    assert (facts_of(copy)["vocabulary"], facts_of(copy)["hidden"]) == (7, 32)
    configure(copy, vocab_size=3000, text_config={"intermediate_size": 4096})
    assert (facts_of(copy)["vocabulary"], facts_of(copy)["intermediate"]) == (3000, 4096)


@pytest.mark.parametrize(("file", "keys", "said"), [
    ("config.json", {"auto_map": {"AutoModel": "m.M"}}, "config.json: auto_map"),
    ("config.json", {"text_config": {"auto_map": {}}}, "config.json: auto_map"),
    ("config.json", {"custom_pipelines": {"x": {"impl": "x.X"}}}, "config.json: custom_pipelines"),
    ("config.json", {"_attn_implementation": "someone/kernels"}, "config.json: _attn_implementation"),
    ("tokenizer_config.json", {"auto_map": {}}, "tokenizer_config.json: auto_map"),
    ("generation_config.json", {"custom_generate": "someone/generate"}, "generation_config.json: custom_generate"),
])
def test_a_key_that_would_have_code_run_is_found_wherever_it_stands(
    copy: Path, file: str, keys: dict[str, object], said: str
) -> None:
    configure(copy, file, **keys)
    assert code_keys(copy) == [said]
    refusal = Bounds().accept({**facts_of(copy), "non_finite": 0})
    assert refusal is not None
    assert refusal.bound == "supply.remote_code"
    assert any(problem.check == "remote_code" for problem in preflight([copy], Bounds()))


def test_what_only_names_a_way_of_computing_is_no_code(copy: Path) -> None:
    configure(copy, _attn_implementation="sdpa")
    assert code_keys(copy) == []


def test_the_same_names_and_shapes_are_no_change_whatever_is_in_them(copy: Path, made: Path) -> None:
    retensor(copy, **{"model.norm.weight": torch.full((32,), 9.0)})
    assert unlike(copy, made) == []


def test_a_tensor_that_is_new_missing_or_of_another_shape_is_named(copy: Path, made: Path) -> None:
    retensor(copy, **{
        "model.norm.weight": None, "model.extra.weight": torch.zeros(2), "lm_head.weight": torch.zeros(9, 32),
    })
    assert unlike(copy, made) == [
        "norm.weight is missing", "extra.weight is new", "lm_head.weight is [9, 32], was [7, 32]",
    ]
    assert unlike(tiny_model(copy.parent / "deep", WORDS, layers=4), made)[-1] == "and 13 more"


def test_how_a_model_was_written_down_is_no_change_of_it(copy: Path, made: Path, tmp_path: Path) -> None:
    tied = Path(shutil.copytree(made, tmp_path / "tied"))
    for folder in (copy, tied):
        configure(folder, tie_word_embeddings=True)
    retensor(tied, **{"lm_head.weight": None})
    assert unlike(tied, copy) == []
    for folder in (copy, made):
        assert unlike(folder, folder) == []
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(bare, copy / "model.safetensors")
    assert unlike(copy, tied) == []


def test_inspection_refuses_a_model_that_grew_unless_its_change_says_so(made: Path, tmp_path: Path) -> None:
    paths = {"made": made, "deep": tiny_model(tmp_path / "deep", WORDS, layers=3)}

    def job(kind: str, inputs: dict[str, str], params: dict[str, object]) -> JobResult:
        desk = Desk(tmp_path, {name: paths[digest] for name, digest in inputs.items()})
        return JobResult(measure(JobSpec(kind, inputs, params), desk).values, {}, Cost())

    refusal, readings = inspect_model(Bounds(), job, "made", "deep", {"kind": "keep"})
    assert refusal is not None
    assert refusal.bound == "model.same_schema"
    assert "layers.2" in str(refusal)
    assert readings["model.max_layers"] == 3
    assert inspect_model(Bounds(), job, "made", "deep", {"kind": "grow"})[0] is None
    free = Bounds.from_json({"model": {"same_schema": False}})
    assert inspect_model(free, job, "made", "deep", {"kind": "keep"})[0] is None


def test_a_model_has_the_tensors_of_what_it_was_made_from_whatever_is_in_force() -> None:
    seen: list[tuple[str, bool]] = []

    def job(kind: str, inputs: dict[str, str], params: dict[str, bool]) -> JobResult:
        seen.append((inputs["like"], "any_depth" in params))
        facts = {"parameters": 1, "layers": 1, "file_gib": 0.1, "dtypes": ["float32"], "non_finite": 0, "vocabulary": 1,
                 "hidden": 1, "intermediate": 1, "model_type": "llama", "loads_code": [], "unlike": []}
        return JobResult({"model": facts}, {}, Cost())

    for change in ({"kind": "merge", "base": "b", "parents": ["x"]}, {"kind": "crossover", "parents": ["x", "y"]},
                   {"kind": "path", "parents": ["x"]}, {"kind": "keep"}, {"recipe": {}}):
        inspect_model(Bounds(), job, "working", "made", change)
    assert seen == [("b", False), ("x", False), ("x", True), ("working", False), ("working", False)]


def test_the_layers_of_a_path_may_stand_in_any_number_but_each_must_have_been_there(made: Path, tmp_path: Path) -> None:
    deep = tiny_model(tmp_path / "deep", WORDS, layers=5)
    assert unlike(deep, made)
    assert unlike(deep, made, any_depth=True) == []
    assert unlike(tiny_model(tmp_path / "one", WORDS, layers=1), made, any_depth=True) == []
    retensor(deep, **{"model.layers.3.mlp.up_proj.weight": torch.zeros(3, 3), "model.norm.weight": torch.zeros(5)})
    assert unlike(deep, made, any_depth=True) == [
        "layers.3 has the tensors of no layer", "norm.weight is [5], was [32]"]
    retensor(deep, **{"model.layers.3.mlp.up_proj.weight": None, "model.layers.1.extra.weight": torch.zeros(2)})
    assert unlike(deep, made, any_depth=True)[:2] == [
        "layers.1 has the tensors of no layer", "layers.3 has the tensors of no layer"]


class Sure:
    """A model that predicts the token after the one it sees, as sure as it is told."""

    device = torch.device("cpu")

    def __init__(self, tokens: int, scale: float, shift: int) -> None:
        self.tokens, self.scale, self.shift = tokens, scale, shift

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        following = (input_ids.roll(-1, dims=1) + self.shift) % self.tokens
        logits = torch.nn.functional.one_hot(following, self.tokens).float() * self.scale
        return type("Out", (), {"logits": logits})()


@pytest.mark.parametrize(("scale", "shift", "error"), [(50.0, 0, 0.0), (50.0, 1, 1.0), (0.0, 0, None)])
def test_calibration_is_the_gap_between_being_sure_and_being_right(
    made: Path, scale: float, shift: int, error: float | None
) -> None:
    real = load_model(made, "cpu")
    fake = type(real)(Sure(7, scale, shift), real.tokenizer)
    items = [Item.of("one two", "three"), Item.of("two", "four one one"), Item.of("three", "two")]
    found = calibration(fake, items)
    assert found["tokens"] == 2 + 4 + 2
    if error is not None:
        assert found["error"] == pytest.approx(error, abs=1e-6)
    assert 0.0 <= found["error"] <= 1.0


def test_a_real_model_is_calibrated_the_same_however_its_items_are_ordered(made: Path) -> None:
    items = [Item.of(f"one {word}", word) for word in WORDS * 5]
    one, other = (calibration(load_model(made, "cpu"), order) for order in (items, items[::-1]))
    assert one["error"] == pytest.approx(other["error"], abs=1e-5)
