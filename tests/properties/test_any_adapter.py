"""Whatever stands in an adapter's folder: it is refused in one line, or every tensor that it changes can be made."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loops.work.weights import opened
from safety.adapters import CONFIG, WEIGHTS
from safety.bounds import Bounds
from safety.preflight import preflight

PREFIX = "base_model.model."
SHAPES = {"model.embed_tokens.weight": [6, 4], "model.layers.0.mlp.up_proj.weight": [8, 4],
          "model.layers.0.self_attn.o_proj.weight": [4, 4], "model.norm.weight": [4], "lm_head.weight": [6, 4]}
SOUND = {
    "model.layers.0.mlp.up_proj.lora_A.weight": [2, 4], "model.layers.0.mlp.up_proj.lora_B.weight": [8, 2],
    "model.layers.0.self_attn.o_proj.lora_A.weight": [2, 4], "model.layers.0.self_attn.o_proj.lora_B.weight": [4, 2],
    "model.embed_tokens.lora_embedding_A": [2, 6], "model.embed_tokens.lora_embedding_B": [4, 2],
    "lm_head.weight": [6, 4],
}
PARTS = [*SOUND, "model.layers.0.mlp.up_proj.lora_magnitude_vector", "model.norm.weight", "model.layers.7.mlp.x.weight",
         "model.layers.0.mlp.up_proj.lora_A", "model.embed_tokens.base_layer.weight", "lora_A.weight", "", "\x00"]
KEYS = ["peft_type", "r", "lora_alpha", "bias", "use_dora", "use_rslora", "alpha_pattern", "rank_pattern", "auto_map",
        "fan_in_fan_out", "init_lora_weights", "base_model_name_or_path", "layer_replication", "anything"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["LORA", "none", "gaussian", "o_proj", "(", "(a+)+", ".*", "/"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=6) | st.sampled_from(["o_proj", ".*proj", "(a+)+$", "["]), inner, max_size=3),
    max_leaves=6,
)
FORMATS = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I8": 1, "U8": 1}


def write(file: Path, tensors: Mapping[str, tuple[str, list[int]]]) -> None:
    """A safetensors file of ones (of whatever, where the format is not float32)."""
    header, body = {}, b""
    for name, (dtype, shape) in tensors.items():
        count = torch.Size(shape).numel()
        content = struct.pack(f"<{count}f", *[0.5] * count) if dtype == "F32" else bytes(count * FORMATS[dtype])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write(folder / "model.safetensors", {name: ("F32", shape) for name, shape in SHAPES.items()})
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": false}')
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=1),
    st.sets(st.sampled_from(list(SOUND)), max_size=1),
    st.dictionaries(st.sampled_from(PARTS), st.tuples(
        st.sampled_from(list(FORMATS)), st.sampled_from([[2, 4], [8, 2], [6, 4], [8], [0, 4], [4], [], [1, 2, 3]])),
        max_size=1),
)
def test_an_adapter_is_refused_in_one_line_or_can_be_merged(
    base: Path, tmp_path: Path, keys: dict[str, Any], gone: set[str], more: dict[str, tuple[str, list[int]]]
) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": False, **keys}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    parts = {name: ("F32", shape) for name, shape in SOUND.items() if name not in gone} | more
    write(tmp_path / WEIGHTS, {PREFIX + name: part for name, part in parts.items()})
    problems = preflight([base], Bounds(), [tmp_path], base)
    assert all("\n" not in str(problem) and str(problem).startswith(str(tmp_path)) for problem in problems)
    if not problems:
        made = opened(tmp_path, opened(base))
        assert {name: list(made[name].shape) for name in made} == SHAPES


def test_the_adapter_that_the_others_are_made_of_is_accepted(base: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA", "lora_alpha": 4}')
    write(tmp_path / WEIGHTS, {PREFIX + name: ("F32", shape) for name, shape in SOUND.items()})
    assert preflight([base], Bounds(), [tmp_path], base) == []
    made = opened(tmp_path, opened(base))
    assert torch.equal(made["model.layers.0.mlp.up_proj.weight"], torch.full((8, 4), 0.5 + 2 * 0.5))
