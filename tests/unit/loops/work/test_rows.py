"""Rows are mixed by their shares, place by place, as a function of the seed and the place alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from loops.work.rows import IGNORED, Rows, answer_log_p, answer_loss, mixed, pad_rows, read_rows, tokenise
from safety.yardstick.scoring import encode, load_model


def rows_of(**sizes: int) -> Rows:
    sources, begin = {}, 0
    for name, size in sizes.items():
        sources[name] = range(begin, begin + size)
        begin += size
    return Rows([("a", "b")] * begin, sources)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 0.95), st.integers(0, 2**40), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_run_taken_up_at_any_step_sees_the_rows_it_would_have_seen(
    first: int, second: int, share: float, seed: int, taken_up: int
) -> None:
    rows = rows_of(a=first, b=second)
    whole = mixed(rows, {"a": share, "b": 1 - share}, 7, range(10), seed)
    assert (mixed(rows, {"a": share, "b": 1 - share}, 7, range(taken_up, 10), seed) == whole[taken_up:]).all()


@given(st.floats(0.05, 0.95), st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_sources_take_turns_by_their_shares(share: float, seed: int) -> None:
    places = mixed(rows_of(a=50, b=50), {"a": share, "b": 1 - share}, 20, range(20), seed).reshape(-1)
    assert abs((places < 50).mean() - share) < 0.02


def test_no_row_comes_twice_in_an_epoch_and_epochs_differ() -> None:
    places = mixed(rows_of(a=12), {"a": 1.0}, 12, range(3), seed=1)
    assert all(sorted(epoch) == list(range(12)) for epoch in places.tolist())
    assert places[0].tolist() != places[1].tolist()


def test_a_source_without_rows_has_no_turn_and_no_rows_at_all_is_an_error() -> None:
    assert (mixed(rows_of(a=3, b=0), {"a": 0.1, "b": 0.9}, 4, range(5), 1) < 3).all()
    with pytest.raises(ValueError, match="no rows to train on"):
        mixed(rows_of(b=0), {"b": 1.0}, 4, range(5), 1)


@pytest.mark.parametrize("line", ["{", '{"prompt": "a"}', '["a"]', '{"prompt": "a", "answer": 3}'])
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2"):
        read_rows({"data:x": file})


def test_loss_and_log_p_look_at_the_answer_and_its_end_only(tmp_path: Path) -> None:
    scored = load_model(tiny_model(tmp_path, ["one", "two", "three"]), "cpu")
    pairs = [("one two", "three"), ("one", "two three")]
    tokens = tokenise(Rows(pairs, {"x": range(2)}), [0, 1, 1], scored.tokenizer)
    assert [tokens.rows[place] for place in (0, 1)] == [encode(scored.tokenizer, *pair) for pair in pairs]
    batch = tokens.batch([0, 1])
    assert Counter((batch["labels"] != IGNORED).sum(dim=1).tolist()) == Counter([2, 3])
    log_p = answer_log_p(scored.model, [tokens.rows[0], tokens.rows[1]], tokens.pad, "cpu")
    mean = -sum(sum(row) for row in log_p) / 5
    assert answer_loss(scored.model, batch).item() == pytest.approx(mean, rel=1e-5)


def test_padding_changes_nothing_of_a_row() -> None:
    batch = pad_rows([([5, 6], [7]), ([5], [8, 9, 1])], pad=0)
    assert torch.equal(batch["input_ids"], torch.tensor([[5, 6, 7, 0], [5, 8, 9, 1]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_conversation_is_asked_and_answered_by_the_models_own_template(tmp_path: Path) -> None:
    words = ["user", "assistant", "end", "one", "two", "three"]
    tokenizer = load_model(tiny_model(tmp_path, words), "cpu").tokenizer
    rows = Rows([((("user", "one two"),), "three"), ("one", "two")], {"x": range(2)})
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        tokenise(rows, [0], tokenizer)
    tokenizer.chat_template = TEMPLATE
    tokens = tokenise(rows, [0, 1], tokenizer)
    asked, answer = ("<user>one two<end><assistant>", "three<end>")
    assert tokens.rows[0] == tuple(tokenizer([asked, answer], add_special_tokens=False)["input_ids"])
    assert tokens.rows[1] == encode(tokenizer, "one", "two")
    assert (tokens.batch([0])["labels"] != IGNORED).sum() == len(tokens.rows[0][1])
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %}?{% endif %}"
    with pytest.raises(ValueError, match="does not put an answer behind"):
        tokenise(rows, [0], tokenizer)
