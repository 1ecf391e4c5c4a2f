"""Which part of a larger model a text model is, by names and shapes alone."""

from __future__ import annotations

import pytest

from safety.scope import ScopeError, kept, scope_of

Shapes = dict[str, tuple[int, ...]]
LAYER = {"self_attn.q_proj.weight": (8, 8), "mlp.up_proj.weight": (16, 8), "input_layernorm.weight": (8,)}


def text_model(layers: int = 2, vocabulary: int = 10, *, head: bool = True) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, 8), "model.norm.weight": (8,)}
    shapes |= {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in LAYER.items()}
    return shapes | ({"lm_head.weight": (vocabulary, 8)} if head else {})


def tower(prefix: str, layers: int = 3) -> Shapes:
    return {f"{prefix}.layers.{n}.{name}": shape for n in range(layers) for name, shape in LAYER.items()} | {
        "multi_modal_projector.linear_1.weight": (8, 8), "vision_tower.norm.weight": (8,)
    }


def under(body: str, head: str) -> Shapes:
    """A text model's tensors as they stand in a larger one."""
    return {
        (f"{head}lm_head.weight" if name.startswith("lm_head") else body + name.removeprefix("model.")): shape
        for name, shape in text_model().items()
    }


CONVENTIONS = {
    "LLaVA on disk": ("language_model.model.", "language_model."), "Qwen3-VL": ("model.language_model.", ""),
    "SmolVLM": ("model.text_model.", ""), "Qwen2-VL on disk": ("model.", ""),
}


@pytest.mark.parametrize(("body", "head"), CONVENTIONS.values(), ids=CONVENTIONS)
def test_the_language_part_is_found_by_its_prefix_and_everything_else_is_kept(body: str, head: str) -> None:
    senses = tower("vision_tower.encoder")
    whole, part = {**under(body, head), **senses}, text_model()
    scope = scope_of(whole, part)
    assert sorted(scope.values()) == sorted(part)
    assert whole.keys() - scope.keys() == senses.keys()
    assert scope[f"{body}layers.1.mlp.up_proj.weight"] == "model.layers.1.mlp.up_proj.weight"
    assert scope[f"{head}lm_head.weight"] == "lm_head.weight"
    assert kept(whole, scope) == {"multi_modal_projector": 1, "vision_tower": 10}


def test_a_model_of_the_same_build_is_the_whole() -> None:
    whole = text_model()
    assert scope_of(whole, dict(reversed(whole.items()))) == {name: name for name in whole}
    assert kept(whole, scope_of(whole, whole)) == {}


LLAVA = {**under("language_model.model.", "language_model."), **tower("vision_tower.encoder")}


@pytest.mark.parametrize(("whole", "part", "words"), [
    (LLAVA, text_model(layers=1), "nothing for the tensor 'language_model.model.layers.1"),
    (LLAVA, text_model(layers=3), "under no prefix"),
    (LLAVA, text_model(vocabulary=11), "'lm_head.weight' is 11x8, 'language_model.lm_head.weight' there is 10x8"),
    (LLAVA, text_model(head=False), "nothing for the tensor 'language_model.lm_head.weight'"),
    (LLAVA, {}, "no tensors"),
    ({**LLAVA, **under("second.", "second.")}, text_model(), "more than one prefix"),
    ({name: shape for name, shape in LLAVA.items() if "lm_head" not in name}, text_model(), "has 0 places"),
    (text_model(layers=3), text_model(), "nothing for the tensor 'model.layers.2"),
    (text_model(), text_model(vocabulary=9), "is 9x8"),
    (text_model(), LLAVA, "under no prefix"),
])
def test_what_is_no_whole_part_is_refused_with_the_tensor(whole: Shapes, part: Shapes, words: str) -> None:
    with pytest.raises(ScopeError) as raised:
        scope_of(whole, part)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
