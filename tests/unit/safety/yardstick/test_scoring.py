"""Scoring: one pass without decoding says the same as decoding, and nothing depends on the company an item keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import teach, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import (
    Scored,
    encode,
    expected_success,
    generate_scores,
    generate_texts,
    load_model,
    score_items,
    teacher_forced,
)
from safety.yardstick.verifiers import exact

WORDS = ["what", "is", "plus", "and", "then", "it", *map(str, range(40))]


def sums() -> list[Item]:
    """Questions of several lengths with answers of several lengths."""
    pairs = [(f"what is {a} plus {b}", f"{a + b}") for a in range(9) for b in range(9)]
    pairs += [(f"and then what is it and what is {a} plus {b} and then", f"it is {a + b} and then 1") for a in range(7)
              for b in range(4)]
    return [Item.of(prompt, answer) for prompt, answer in pairs]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """A model that was trained briefly on half of the sums: right on some, wrong on others."""
    folder = tmp_path_factory.mktemp("models")
    half = [(item.prompt, item.answer) for item in sums()[::2]]
    model = teach(tiny_model(folder / "new", WORDS), half, folder / "taught", steps=100)
    return load_model(model, "cpu")


def decoded(scored: Scored, item: Item) -> list[int]:
    """What the library's own greedy decoding writes for one item alone, without padding or batches."""
    prompt, answer = encode(scored.tokenizer, item.prompt, item.answer)
    ids = scored.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=len(answer) + 2)
    return [int(i) for i in ids[0, len(prompt) :]]


def test_one_pass_equals_greedy_decoding_on_right_and_wrong_items(taught: Scored) -> None:
    items = sums()
    by_pass = teacher_forced(taught.model, taught.tokenizer, items, batch=16)
    references = [encode(taught.tokenizer, i.prompt, i.answer)[1] for i in items]
    by_decoding = [float(decoded(taught, i) == r) for i, r in zip(items, references, strict=True)]
    assert by_pass.tolist() == by_decoding
    assert 0.2 < by_pass.mean() < 0.98


def test_batched_generation_with_a_verifier_agrees_too(taught: Scored) -> None:
    items = sums()
    by_pass = teacher_forced(taught.model, taught.tokenizer, items, batch=16)
    assert generate_scores(taught.model, taught.tokenizer, items, exact, batch=16).tolist() == by_pass.tolist()


def test_an_answer_that_does_not_stop_is_wrong(taught: Scored) -> None:
    right = [i for i, s in zip(sums(), teacher_forced(taught.model, taught.tokenizer, sums()), strict=True) if s]
    shorter = [Item.of(i.prompt, i.answer.rsplit(" ", 1)[0]) for i in right if " " in i.answer]
    assert shorter and teacher_forced(taught.model, taught.tokenizer, shorter).sum() == 0
    longer = [Item.of(i.prompt, i.answer + " 1") for i in right]
    assert teacher_forced(taught.model, taught.tokenizer, longer).sum() == 0


def test_scores_keep_the_order_of_the_items_and_do_not_depend_on_batch_mates(taught: Scored) -> None:
    items = sums()
    whole = expected_success(taught.model, taught.tokenizer, items, batch=8)
    order = np.random.default_rng(0).permutation(len(items))
    shuffled = expected_success(taught.model, taught.tokenizer, [items[i] for i in order], batch=8)
    alone = np.array([expected_success(taught.model, taught.tokenizer, [i], batch=8)[0] for i in items[:20]])
    assert np.array_equal(whole[order], shuffled)
    assert np.array_equal(whole[:20], alone)


def test_every_forward_pass_of_a_length_has_one_shape(taught: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    inner = taught.model.base_model.forward

    def recorded(*args: Any, **named: Any) -> Any:
        shapes.append(tuple(named["input_ids"].shape))
        return inner(*args, **named)

    monkeypatch.setattr(taught.model.base_model, "forward", recorded)
    teacher_forced(taught.model, taught.tokenizer, sums(), batch=32)
    teacher_forced(taught.model, taught.tokenizer, sums()[:3], batch=32)
    assert {rows for rows, _ in shapes} == {32} and {length for _, length in shapes} <= {16, 24}


def test_expected_success_is_the_product_of_the_reference_probabilities(taught: Scored) -> None:
    item = sums()[-1]
    prompt, answer = encode(taught.tokenizer, item.prompt, item.answer)
    with torch.no_grad():
        log_p = taught.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = sum(float(log_p[len(prompt) + n - 1, token]) for n, token in enumerate(answer))
    assert expected_success(taught.model, taught.tokenizer, [item])[0] == pytest.approx(np.exp(expected), rel=1e-4)


def test_an_answer_with_an_unknown_word_is_never_right(taught: Scored) -> None:
    tokenizer = tiny_tokenizer(WORDS)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
                                         num_hidden_layers=1, num_attention_heads=1))
    torch.nn.init.zeros_(model.lm_head.weight)               # always writes token 0
    item = Item.of("what is", "zebra")
    assert teacher_forced(model.eval(), tokenizer, [item]).tolist() == [0.0]
    assert teacher_forced(taught.model, taught.tokenizer, [item]).tolist() == [0.0]


def test_a_model_that_changes_its_logits_after_the_head_is_scored_on_what_it_really_says(taught: Scored) -> None:
    plain = expected_success(taught.model, taught.tokenizer, sums(), batch=16)
    taught.model.config.logits_scaling = 1.5                 # Llama ignores it, so its own head must give the same
    try:
        own = expected_success(taught.model, taught.tokenizer, sums(), batch=16)
    finally:
        del taught.model.config.logits_scaling
    np.testing.assert_allclose(plain, own, rtol=1e-4)


def test_bfloat16_gives_equal_verdicts_by_pass_and_by_decoding(taught: Scored) -> None:
    half = Scored(AutoModelForCausalLM.from_pretrained(taught.model.name_or_path, dtype=torch.bfloat16).eval(),
                  taught.tokenizer)
    half.model.generation_config = taught.model.generation_config
    items = sums()[:40]
    by_pass = teacher_forced(half.model, half.tokenizer, items, batch=16)
    assert np.mean(by_pass == generate_scores(half.model, half.tokenizer, items, exact, batch=16)) >= 0.95


def test_a_numeric_task_is_scored_by_what_is_written(taught: Scored) -> None:
    items = sums()[:20]
    source = {"kind": "jsonl", "path": "x"}
    written = generate_texts(taught.model, taught.tokenizer, items)
    by_task = score_items(taught, TaskSpec("n", "target", source, verifier="numeric"), items)
    assert by_task.tolist() == [float(text == i.answer) for text, i in zip(written, items, strict=True)]


def test_prompt_and_answer_are_tokenised_apart_and_the_end_is_part_of_the_answer(taught: Scored) -> None:
    prompt, answer = encode(taught.tokenizer, "what is 1", "2 and")
    assert taught.tokenizer.convert_ids_to_tokens(prompt) == ["what", "is", "1"]
    assert taught.tokenizer.convert_ids_to_tokens(answer) == ["2", "and", "<eos>"]


def test_no_items_have_no_scores(taught: Scored) -> None:
    assert teacher_forced(taught.model, taught.tokenizer, []).shape == (0,)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", WORDS)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no safetensors"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("harm", ["no config", "torn weights", "torn tokenizer", "missing tensor"])
def test_a_folder_that_cannot_be_loaded_whole_is_refused_in_one_line(tmp_path: Path, harm: str) -> None:
    folder = tiny_model(tmp_path / "m", WORDS)
    weights = folder / "model.safetensors"
    if harm == "no config":
        (folder / "config.json").unlink()
    elif harm == "torn weights":
        weights.write_bytes(weights.read_bytes()[:5_000])
    elif harm == "torn tokenizer":
        (folder / "tokenizer.json").write_text("{")
    else:
        tensors = load_file(weights)
        del tensors["model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=str(folder)) as refusal:
        load_model(folder, "cpu")
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_models_are_scored_in_bfloat16(tmp_path: Path) -> None:
    scored = load_model(tiny_model(tmp_path / "m", WORDS), "cuda")
    assert scored.model.dtype is torch.bfloat16
    items = sums()
    by_pass = teacher_forced(scored.model, scored.tokenizer, items)
    assert np.mean(by_pass == generate_scores(scored.model, scored.tokenizer, items, exact)) >= 0.99
