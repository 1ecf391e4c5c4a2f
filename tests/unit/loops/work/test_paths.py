"""Paths through layers as models: scales folded into weights, loadable without code, cached as uncached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer
from tiny import save, tiny_tokenizer

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
