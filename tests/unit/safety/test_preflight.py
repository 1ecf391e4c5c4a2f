"""Preflight: every way in which a model folder can be wrong is found without reading a weight, and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_model

from safety.bounds import Bounds
from safety.headers import HeaderError, facts_of, layers_of, tensor_headers
from safety.preflight import licence_of, licences_of, path_problems, preflight

WORDS = ["one", "two", "three"]
README = "---\nlicense: apache-2.0\n---\n# tiny\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("models") / "one", WORDS)
    (folder / "README.md").write_text(README)
    return folder


@pytest.fixture
def pair(made: Path, tmp_path: Path) -> list[Path]:
    return [shutil.copytree(made, tmp_path / name) for name in ("a", "b")]


def found(paths: list[Path]) -> dict[str, str]:
    return {problem.check: str(problem) for problem in preflight(paths, Bounds())}


def edit(path: Path, **keys: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_two_sound_models_have_no_problem(pair: list[Path]) -> None:
    assert preflight(pair, Bounds()) == []


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def scramble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00hello")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))


def new_token(folder: Path) -> None:
    file = folder / "tokenizer.json"
    body = json.loads(file.read_text())
    body["model"]["vocab"]["seven"] = body["model"]["vocab"].pop("three")
    file.write_text(json.dumps(body))


@pytest.mark.parametrize(("spoil", "check", "words"), [
    (cut, "weights", ["model.safetensors", "truncated"]),
    (scramble, "weights", ["model.safetensors"]),
    (pickled, "weights", ["no safetensors", "pytorch_model.bin"]),
    (index, "weights", ["gone.safetensors"]),
    (lambda f: shutil.copy(f / "config.json", f / "extra.pkl"), "format", ["extra.pkl"]),
    (lambda f: shutil.rmtree(f), "missing", ["no such model"]),
    (lambda f: (f / "config.json").unlink(), "config", ["config.json"]),
    (lambda f: (f / "config.json").write_text("{"), "config", ["config.json", "JSON"]),
    (lambda f: edit(f / "config.json", auto_map={"AutoModel": "evil.Model"}), "remote_code", ["auto_map"]),
    (lambda f: edit(f / "tokenizer_config.json", auto_map={}), "remote_code", ["tokenizer_config.json"]),
    (lambda f: (f / "README.md").write_text("---\nlicense: llama2\n---\n"), "licence", ["'llama2'"]),
    (lambda f: (f / "README.md").unlink(), "licence", ["'unknown'"]),
    (lambda f: edit(f / "config.json", tie_word_embeddings=True), "config", ["tie_word_embeddings"]),
    (new_token, "tokenizer", ["2 tokens differ", "'seven'", "'three'"]),
    (lambda f: edit(f / "tokenizer_config.json", eos_token="two"), "tokenizer", ["special tokens"]),
    (lambda f: edit(f / "tokenizer_config.json", chat_template="{{ x }}"), "tokenizer", ["chat template"]),
])
def test_what_is_wrong_with_a_folder_is_named(
    pair: list[Path], spoil: Callable[[Path], object], check: str, words: list[str]
) -> None:
    spoil(pair[1])
    problems = found(pair)
    assert check in problems, problems
    assert all(word in problems[check] for word in [str(pair[1]), *words]), problems
    assert "\n" not in problems[check]


def test_other_shapes_and_missing_tensors_are_named_with_the_tensor(pair: list[Path], tmp_path: Path) -> None:
    wide, deep = tiny_model(tmp_path / "w", WORDS, width=48), tiny_model(tmp_path / "d", WORDS, layers=3)
    for folder in (wide, deep):
        (folder / "README.md").write_text(README)
    problems = found([pair[0], wide])
    assert "model.embed_tokens.weight" in problems["shapes"] or "lm_head.weight" in problems["shapes"]
    assert "layers.2" in found([pair[0], deep])["tensors"]


def test_another_number_format_is_named(pair: list[Path]) -> None:
    from safetensors.torch import load_file, save_file

    file = pair[1] / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    assert "float16" in found(pair)["dtypes"]


def test_harmless_leftovers_of_training_are_not_weights(pair: list[Path]) -> None:
    (pair[1] / "training_args.bin").write_bytes(b"x")
    assert preflight(pair, Bounds()) == []


def test_facts_come_from_the_headers_alone(made: Path) -> None:
    facts = facts_of(made)
    headers = tensor_headers(made)
    assert facts["layers"] == 2
    assert facts["dtypes"] == ["float32"]
    assert facts["parameters"] == sum(header.count for header in headers.values())
    assert layers_of({"num_hidden_layers": 1}, {"model.layers.6.mlp": 0}) == 7
    with pytest.raises(HeaderError):
        facts_of(made / "none")


@pytest.mark.parametrize(("text", "licence"), [
    (README, "apache-2.0"), ("---\nlicence: 'MIT' # ok\n---\n", "mit"),
    ("# no front matter\nlicense: mit\n", "unknown"),
    ("---\nname: x\n---\n", "unknown"), ("", "unknown"),
])
def test_the_licence_is_read_from_the_front_matter(tmp_path: Path, text: str, licence: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == licence


def test_a_joined_licence_is_allowed_only_when_every_part_is(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0 and mit\n---\n")
    assert licences_of(tmp_path) == ["apache-2.0", "mit"]
    (tmp_path / "README.md").write_text("---\nlicense: [mit, llama2]\n---\n")
    assert licences_of(tmp_path) == ["mit", "llama2"]


def test_models_that_no_path_can_be_laid_through_are_named_with_the_reason(pair: list[Path], tmp_path: Path) -> None:
    assert path_problems(pair) == []
    edit(pair[1] / "config.json", rms_norm_eps=1e-3)
    (different,) = map(str, path_problems(pair))
    assert f"no path can be laid through both: against {pair[0]}: rms_norm_eps is 0.001, not 1e-06" in different
    edit(pair[1] / "config.json", model_type="olmo2", rms_norm_eps=1e-6)
    kinds = [str(problem) for problem in path_problems(pair)]
    assert "no path can be laid through layers of model_type 'olmo2': known are" in kinds[0]
    assert path_problems([tmp_path / "none"]) == []
