"""Paths through layers as models: scales folded into weights, loadable without code, cached as uncached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save, tiny_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from loops.architecture.paths import PathDefinition
from loops.work.build import build, composed, read_tensors
from loops.work.paths import path_config
from loops.work.screen import Bed
from safety.layers import PRE_NORM
from safety.yardstick.scoring import load_model
from state.jobs import Desk, JobSpec
from state.records import JsonObject

pytest_plugins = ("zoo",)
Make = Callable[..., Desk]
ROW = PathDefinition(("one", "two"), (2, 2), repeats=2)
WORDS = [f"w{place}" for place in range(40)]
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "pad_token_id": 0, "eos_token_id": 1,
}
OTHERWISE: Mapping[str, JsonObject] = {
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "n_inner": 48},
    "gptj": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "n_inner": 48, "rotary_dim": 4},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_ff_dim": 48},
    "qwen2": {
        "use_sliding_window": True, "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
}


def family(kind: str, folder: Path, seed: int = 0, **more: Any) -> Path:
    """A tiny model of a kind, weights large enough that every layer matters."""
    tokenizer = tiny_tokenizer(WORDS)
    kept = {key: value for key, value in SIZES.items() if kind not in ("gpt2", "gptj") or key.endswith("_id")}
    config = CONFIG_MAPPING[kind](**{**kept, "vocab_size": len(tokenizer), **OTHERWISE.get(kind, {}), **more})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0.0, 0.15) if weight.ndim > 1 else weight.add_(torch.randn_like(weight) * 0.1)
    return save(model, tokenizer, folder)


def path(layers: Sequence[tuple[int, int]], scales: Sequence[float], parents: Sequence[str] = ("one",)) -> JsonObject:
    return {"kind": "path", "parents": list(parents), "layers": [list(layer) for layer in layers],
            "scales": list(scales), "places": list(range(len(layers)))}


def built(change: JsonObject, folder: Path, models: Mapping[str, Path]) -> Path:
    desk = Desk(folder, {f"model:{name}": where for name, where in models.items()}, cache={})
    folder.mkdir(exist_ok=True)
    return Path(build(JobSpec("build", {}, {"change": change}), desk).outputs["model"])


def scaled_by_hand(model: Any, scales: Sequence[float]) -> None:
    """The definition itself: the input of each layer is multiplied by its scale."""
    inner = model.base_model
    layers = inner.layers if hasattr(inner, "layers") else inner.h

    def scaling(scale: float) -> Callable[..., Any]:
        def before(module: Any, words: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if words:
                return (words[0] * scale, *words[1:]), named
            return words, {**named, "hidden_states": named["hidden_states"] * scale}
        return before

    assert len(layers) == len(scales)
    for layer, scale in zip(layers, scales, strict=True):
        layer.register_forward_pre_hook(scaling(scale), with_kwargs=True)


REPEATED = [(0, 0), (0, 1), (0, 2), (0, 1), (0, 2), (0, 3)]
SCALES = [1.0, 1.0, 1.0, 0.7, 1.0, 1.6]


@pytest.mark.parametrize("kind", sorted(PRE_NORM))
def test_scales_folded_into_weights_compute_what_scaling_the_residual_stream_does(kind: str, tmp_path: Path) -> None:
    """In float32, at an eps so small that it does not count; the plain path without scales is far off."""
    small = {"rms_norm_eps": 1e-12, "layer_norm_eps": 1e-12, "layer_norm_epsilon": 1e-12, "norm_eps": 1e-12}
    where = family(kind, tmp_path / "one", **{k: v for k, v in small.items() if hasattr(CONFIG_MAPPING[kind](), k)})
    folded = load_model(built(path(REPEATED, SCALES), tmp_path / "a", {"one": where}), "cpu").model
    by_hand = load_model(built(path(REPEATED, [1.0] * 6), tmp_path / "b", {"one": where}), "cpu").model
    ids = torch.randint(3, 40, (3, 11), generator=torch.Generator().manual_seed(1))
    plain = by_hand(input_ids=ids, use_cache=False).logits
    scaled_by_hand(by_hand, SCALES)
    wanted = by_hand(input_ids=ids, use_cache=False).logits
    size = float(wanted.std())
    tolerance = 1e-2 if kind == "olmo" else 1e-4                           # olmo's eps is in its code
    assert float((folded(input_ids=ids, use_cache=False).logits - wanted).abs().max()) < tolerance * size
    assert float((plain - wanted).abs().max()) > 0.02 * size


@pytest.mark.parametrize(("eps", "least", "most"), [(1e-5, 1e-6, 1e-2), (1e-6, 1e-7, 1e-3), (1e-8, 0.0, 1e-5)])
def test_what_folding_costs_is_the_eps_of_the_norms_and_shrinks_with_it(
    eps: float, least: float, most: float, tmp_path: Path
) -> None:
    """In float64, relative to the logits' deviation: the norms add eps (w_0 .. w_k)^2 instead of eps."""
    where = family("llama", tmp_path / "one", rms_norm_eps=eps)
    folded = load_model(built(path(REPEATED, SCALES), tmp_path / "a", {"one": where}), "cpu").model.double()
    by_hand = load_model(built(path(REPEATED, [1.0] * 6), tmp_path / "b", {"one": where}), "cpu").model.double()
    scaled_by_hand(by_hand, SCALES)
    ids = torch.randint(3, 40, (3, 11), generator=torch.Generator().manual_seed(1))
    wanted = by_hand(input_ids=ids, use_cache=False).logits
    off = float((folded(input_ids=ids, use_cache=False).logits - wanted).abs().max() / wanted.std())
    assert least <= off <= most


def test_the_templates_own_path_is_the_template_bit_for_bit(zoo: dict[str, Path], tmp_path: Path) -> None:
    folder = built(ROW.change(ROW.own, {}), tmp_path / "a", zoo)
    made, template = read_tensors(folder), read_tensors(zoo["one"])
    assert made.keys() == template.keys()
    assert all(torch.equal(made[name], template[name]) for name in made)
    assert json.loads((folder / "config.json").read_text()) == json.loads((zoo["one"] / "config.json").read_text())


def test_each_layer_is_its_parents_and_embeddings_norm_and_head_are_the_templates(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    change = path([(1, 1), (0, 0), (1, 1)], [1.0, 0.5, 1.0], ("one", "two"))
    models = {name: read_tensors(where) for name, where in zoo.items()}
    made = read_tensors(built(change, tmp_path / "a", zoo))
    assert list(made) == [name for name, _ in composed(change, models)]
    for place, (parent, layer, factor) in enumerate([("two", 1, 1.0), ("one", 0, 2.0), ("two", 1, 2.0)]):
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm"):
            by = factor if part in ("self_attn.o_proj", "mlp.down_proj") else 1.0
            wanted = models[parent][f"model.layers.{layer}.{part}.weight"] * by
            assert torch.equal(made[f"model.layers.{place}.{part}.weight"], wanted)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(made[name], models["one"][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_path_in_memory_is_the_model_that_is_built_and_loaded_again(
    dtype: torch.dtype, zoo: dict[str, Path], tmp_path: Path
) -> None:
    stored = {}
    for name in ("one", "two"):
        held = load_model(zoo[name], "cpu")
        stored[name] = save(held.model.to(dtype), held.tokenizer, tmp_path / name)
    change = path([(0, 0), (1, 0), (0, 1), (1, 1), (0, 1)], [1.0, 0.8, 1.3, 1.1, 0.6], ("one", "two"))
    desk = Desk(tmp_path / "scratch", {f"model:{name}": where for name, where in stored.items()}, cache={})
    spec = JobSpec("screen", {f"model:{name}": name for name in stored}, {"change": change, "batch": 8})
    first = Bed.of(spec, desk).candidate(change).shell.model
    again = Bed.of(spec, desk).candidate(change).shell.model
    loaded = load_model(built(change, tmp_path / "built", stored), "cpu").model
    ids = torch.arange(3, 14)[None]
    for held in (first, again):
        assert held.state_dict().keys() == loaded.state_dict().keys()
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in held.state_dict().items())
        assert torch.equal(held(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert held.config.num_hidden_layers == loaded.config.num_hidden_layers == 5


@pytest.mark.parametrize("kind", ["llama", "qwen2", "lfm2", "gpt2"])
def test_cached_generation_writes_what_uncached_generation_does(kind: str, tmp_path: Path) -> None:
    """A path with repeats, in the right order of layer types, of another depth than its parents."""
    models = {name: family(kind, tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    layers = [(0, 0), (0, 1), (1, 2), (0, 1), (1, 2), (0, 1), (0, 3)]
    change = path(layers, [1.0, 1.0, 0.8, 1.2, 1.0, 1.0, 0.9], ("one", "two"))
    folder = built(change, tmp_path / "built", models)
    held = load_model(folder, "cpu")
    if kind in ("qwen2", "lfm2"):
        types = OTHERWISE[kind]["layer_types"]
        assert held.model.config.layer_types == [types[layer] for _, layer in layers]
        assert len(set(held.model.config.layer_types)) == 2
    for seed in range(4):
        ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(seed))
        cached, uncached = (
            held.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=cache,
                                min_new_tokens=16, max_new_tokens=16)
            for cache in (True, False)
        )
        assert torch.equal(cached, uncached)
        assert len(cached[0].unique()) > 3                        # not one token over and over


def test_the_built_model_is_loaded_by_plain_transformers_and_brings_no_code(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    folder = built(path([(0, 0), (0, 1), (0, 0), (0, 1)], [1.0, 1.0, 0.9, 1.0]), tmp_path / "a", zoo)
    model, told = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(zoo["one"]).get_vocab()
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_tied_embeddings_stay_tied_and_as_they_are(tmp_path: Path) -> None:
    where = family("llama", tmp_path / "one", tie_word_embeddings=True)
    folder = built(path(REPEATED, SCALES), tmp_path / "a", {"one": where})
    assert "lm_head.weight" not in read_tensors(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, read_tensors(where)["model.embed_tokens.weight"])


def test_building_twice_gives_the_same_bytes(zoo: dict[str, Path], tmp_path: Path) -> None:
    change = path([(0, 1), (1, 0), (0, 1)], [0.7, 1.1, 0.9], ("one", "two"))
    first, second = ({file.name: file.read_bytes() for file in built(change, tmp_path / name, zoo).iterdir()}
                     for name in ("a", "b"))
    assert first == second


def changed(folder: Path, into: Path, **keys: Any) -> Path:
    shutil.copytree(folder, into)
    config = json.loads((into / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({**config, **keys}))
    return into


@pytest.mark.parametrize(("keys", "said"), [
    ({"model_type": "gemma2"}, "no path can be laid through layers of model_type 'gemma2'"),
    ({"rope_theta": 5.0}, "one config cannot serve both models: rope_theta is 5.0, not None"),
    ({"layer_types": ["full_attention"]}, "layer_types in config.json is no list of 2"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scales attention by a layer's place"),
    ({"use_sliding_window": True}, "use_sliding_window without layer_types"),
])
def test_what_no_path_can_be_laid_through_is_refused_in_one_line(
    keys: JsonObject, said: str, zoo: dict[str, Path], tmp_path: Path
) -> None:
    folders = {"one": zoo["one"], "two": changed(zoo["two"], tmp_path / "two", **keys)}
    with pytest.raises(ValueError, match=said) as refusal:
        path_config(path([(0, 0), (1, 0)], [1.0, 1.0], ("one", "two")), folders)
    assert "\n" not in str(refusal.value)


def test_a_layer_that_is_not_there_or_cannot_be_scaled_is_named(zoo: dict[str, Path]) -> None:
    models = {"one": read_tensors(zoo["one"])}
    with pytest.raises(ValueError, match="model one has no layer 7"):
        dict(composed(path([(0, 7)], [1.0]), models))
    odd = {name.replace("o_proj", "out").replace("down_proj", "down"): t for name, t in models["one"].items()}
    assert dict(composed(path([(0, 1)], [1.0]), {"one": odd}))
    with pytest.raises(ValueError, match="layer 1 of model one cannot be scaled"):
        dict(composed(path([(0, 1)], [0.5]), {"one": odd}))
    two = {**models["one"], "vision.encoder.layers.0.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="2 stacks of layers"):
        dict(composed(path([(0, 1)], [1.0]), {"one": two}))
