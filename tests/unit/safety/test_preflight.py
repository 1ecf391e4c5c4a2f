"""Preflight: every way in which a model folder can be wrong is found without reading a weight, and named."""

import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_model

from safety.bounds import Bounds
from safety.headers import HeaderError, facts_of, layers_of, tensor_headers
from safety.preflight import mismatches, path_problems, preflight, rotary_in_words
from safety.tokenizer import read_tokenizer, same_files

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


def more_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ x }}")


def new_token(folder: Path) -> None:
    file = folder / "tokenizer.json"
    body = json.loads(file.read_text())
    body["model"]["vocab"]["seven"] = body["model"]["vocab"].pop("three")
    file.write_text(json.dumps(body))


def merges(*pairs: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "tokenizer.json"
        body = json.loads(file.read_text())
        body["model"] = {**body["model"], "merges": list(pairs)}
        file.write_text(json.dumps(body))
    return spoil


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
    (lambda f: (f / "README.md").unlink(), "licence", ["'unknown'", "README.md names none"]),
    (lambda f: edit(f / "config.json", tie_word_embeddings=True), "config", ["tie_word_embeddings"]),
    (new_token, "tokenizer", ["2 tokens differ", "'seven'", "'three'"]),
    (lambda f: edit(f / "tokenizer_config.json", eos_token="two"), "tokenizer", ["special tokens"]),
    (lambda f: edit(f / "tokenizer_config.json", chat_template="{{ x }}"), "tokenizer", ["chat template"]),
    (lambda f: (f / "chat_template.jinja").write_text("{{ x }}"), "tokenizer", ["chat template"]),
    (lambda f: (f / "chat_template.json").write_text('{"chat_template": "{{ x }}"}'), "tokenizer", ["chat template"]),
    (more_templates, "tokenizer", ["chat template"]),
    (lambda f: (f / "special_tokens_map.json").write_text('{"bos_token": "two"}'), "tokenizer", ["special tokens"]),
    (merges(["o", "ne"]), "tokenizer", ["merges differ"]),
    (lambda f: edit(f / "tokenizer.json", normalizer={"type": "Lowercase"}), "tokenizer", ["normalizer"]),
    (lambda f: edit(f / "tokenizer.json", pre_tokenizer={"type": "Whitespace"}), "tokenizer", ["pre_tokenizer"]),
    (lambda f: edit(f / "config.json", num_attention_heads=4), "config", ["num_attention_heads is 4, not 2"]),
    (lambda f: edit(f / "config.json", hidden_act="relu"), "config", ["hidden_act is 'relu'"]),
])
def test_what_is_wrong_with_a_folder_is_named(
    pair: list[Path], spoil: Callable[[Path], object], check: str, words: list[str]
) -> None:
    spoil(pair[1])
    problems = found(pair)
    assert check in problems, problems
    assert all(word in problems[check] for word in [str(pair[1]), *words]), problems
    assert "\n" not in problems[check]


def test_merges_are_the_same_however_a_version_of_the_library_wrote_them(pair: list[Path]) -> None:
    for folder, pairs in zip(pair, (["o ne", "t wo"], [["o", "ne"], ["t", "wo"]]), strict=True):
        merges(*pairs)(folder)
    assert preflight(pair, Bounds()) == []
    merges(["t", "wo"], ["o", "ne"])(pair[1])
    assert "the merges differ" in found(pair)["tokenizer"]
    merges(7, None)(pair[1])
    assert "its tokens cannot be read" in found(pair)["tokenizer"]


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


def test_the_same_template_in_another_place_is_the_same(pair: list[Path]) -> None:
    edit(pair[0] / "tokenizer_config.json", chat_template=[{"name": "default", "template": "{{ x }}"}])
    (pair[1] / "chat_template.jinja").write_text("{{ x }}")
    assert preflight(pair, Bounds()) == []


@pytest.mark.parametrize(("keys", "said"), [
    ({"rope_theta": 5e5}, "its rope_theta is 500000, what is merged has 10000"),
    ({"text_config": {"rope_parameters": {"rope_theta": 5e5}}}, "its rope_theta is 500000, what is merged has 10000"),
    ({"rope_theta": 10000}, ""), ({"rope_parameters": {"full_attention": {}}}, ""), ({"rope_parameters": 7}, ""),
    ({"rope_theta": "5"}, ""), ({"rope_theta": 10**400}, ""), ({"rope_theta": float("nan")}, ""),
])
def test_another_rotary_base_is_told_however_a_version_of_the_library_wrote_it(
    pair: list[Path], keys: dict[str, object], said: str
) -> None:
    edit(pair[0] / "config.json", rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    edit(pair[1] / "config.json", **keys)
    assert rotary_in_words(*pair) == said


def test_embeddings_are_tied_where_the_config_says_so_or_there_is_no_head(pair: list[Path]) -> None:
    file = pair[1] / "config.json"
    body = json.loads(file.read_text())
    del body["tie_word_embeddings"]
    file.write_text(json.dumps(body))
    assert preflight(pair, Bounds()) == []                    # both have a head of their own, whoever says so


def test_sentencepiece_models_are_compared_by_their_bytes(pair: list[Path]) -> None:
    for folder in pair:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"pieces")
    assert preflight(pair, Bounds()) == []
    (pair[1] / "tokenizer.model").write_bytes(b"others")
    assert "sentencepiece models differ" in found(pair)["tokenizer"]


def sharded(folder: Path, shards: int, gib: int) -> int:
    """Weights of `gib` GiB a shard that take no room, with an index. Returns the bytes of their headers."""
    (folder / "model.safetensors").unlink()
    weight_map, bytes_of_headers = {}, 0
    for n in range(shards):
        name = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        entries, rows = {}, gib * 2**30 // 2 // 64 // 2**14
        for i in range(64):
            start = i * rows * 2**14 * 2
            entries[f"model.layers.{n}.part.{i}.weight"] = {
                "dtype": "BF16", "shape": [rows, 2**14], "data_offsets": [start, start + rows * 2**14 * 2],
            }
        text = json.dumps(entries).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + gib * 2**30)
        weight_map |= dict.fromkeys(entries, name)
        bytes_of_headers += 8 + len(text)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return bytes_of_headers


def test_a_folder_of_hundreds_of_gibibytes_is_looked_at_by_its_headers_alone(pair: list[Path]) -> None:
    headers = sum(sharded(folder, shards=24, gib=8) for folder in pair)
    before = read_so_far()
    tracemalloc.start()
    problems = preflight(pair, Bounds())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {problem.check for problem in problems} == {"limits"}             # 192 GiB: larger than the bound
    index = sum((folder / "model.safetensors.index.json").stat().st_size for folder in pair)
    assert read_so_far() - before < 3 * (headers + index) + 2**20
    assert peak < 32 * 2**20


def read_so_far() -> int:
    """Bytes that this process has read from files."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def test_a_shard_that_is_missing_or_holds_other_tensors_than_the_index_says_is_named(pair: list[Path]) -> None:
    for folder in pair:
        sharded(folder, shards=3, gib=1)
    first, second = (pair[1] / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    second.rename(pair[1] / "away")
    assert "names model-00002-of-00003.safetensors, which is missing" in found(pair)["weights"]
    (pair[1] / "away").rename(second)
    assert preflight(pair, Bounds()) == []
    file = pair[1] / "model.safetensors.index.json"
    body = json.loads(file.read_text())
    body["weight_map"]["model.layers.1.part.3.weight"] = first.name
    file.write_text(json.dumps(body))
    assert "'model.layers.1.part.3.weight' is in model-00001-of-00003.safetensors, it is in model-00002" in (
        found(pair)["weights"])


def test_headers_are_read_only_up_to_a_limit_for_all_files_together(
    pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_of_headers = sharded(pair[1], shards=3, gib=1)
    monkeypatch.setattr("safety.headers.MOST_HEADERS", bytes_of_headers - 100)
    assert "the headers of the model are larger than" in found(pair)["weights"]


def test_models_that_no_path_can_be_laid_through_are_named_with_the_reason(pair: list[Path], tmp_path: Path) -> None:
    assert path_problems(pair) == []
    edit(pair[1] / "config.json", rms_norm_eps=1e-3)
    (different,) = map(str, path_problems(pair))
    assert f"no path can be laid through both: against {pair[0]}: rms_norm_eps is 0.001, not 1e-06" in different
    edit(pair[1] / "config.json", model_type="olmo2", rms_norm_eps=1e-6)
    kinds = [str(problem) for problem in path_problems(pair)]
    assert "no path can be laid through layers of model_type 'olmo2': known are" in kinds[0]
    assert path_problems([tmp_path / "none"]) == []


def same_size(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"three"', '"seven"'))


def respaced(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=7))


@pytest.mark.parametrize(("change", "parsed", "words"), [
    (lambda folder: None, 0, []),
    (lambda folder: (folder / "README.md").write_text("another card"), 0, []),
    (respaced, 2, []),
    (same_size, 2, ["2 tokens differ: 'seven', 'three'"]),
    (lambda folder: (folder / "chat_template.jinja").write_text("{{ x }}"), 2, ["the chat template differ"]),
    (more_templates, 2, ["the chat template differ"]),
])
def test_tokenizers_are_parsed_for_a_build_only_where_their_bytes_differ(
    pair: list[Path], change: Callable[[Path], object], parsed: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(
        "safety.preflight.read_tokenizer", lambda folder: (read.append(folder), read_tokenizer(folder))[1])
    change(pair[1])
    assert [problem.text for problem in mismatches(*pair)] == [f"against the template: {line}" for line in words]
    assert len(read) == parsed


def test_tokenizers_that_cannot_be_read_are_not_the_same(pair: list[Path]) -> None:
    assert same_files(*pair)
    for folder in pair:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").symlink_to("/dev/zero")
    assert same_files(*pair)                                     # what is no file is read by nobody
    shutil.rmtree(pair[1])
    assert not same_files(*pair)
