"""Training data in every format: read alike by what trains and by what seals, or refused by file, line and field."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from safety.yardstick.training import RowError, answered, are_preferences, files_in, rows_in, rows_of, texts_of

ROWS = [{"prompt": "2 + 2?", "answer": "4"}, {"prompt": 'say "a,b"', "answer": "a,\nb"}, {"prompt": "", "answer": "é"}]
PAIRS = [(row["prompt"], row["answer"]) for row in ROWS]
TALK = [
    {"role": "system", "content": "be short"}, {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"}, {"role": "user", "content": "and 1?"},
    {"role": "assistant", "content": "5"},
]


def written(file: Path, bodies: list[dict[str, Any]]) -> Path:
    if file.suffix == ".parquet":
        Dataset.from_list(bodies).to_parquet(str(file))
    elif file.suffix == ".csv":
        Dataset.from_list(bodies).to_csv(str(file))
    else:
        file.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return file


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_format_gives_the_rows_that_datasets_reads_also_without_its_ending(tmp_path: Path, ending: str) -> None:
    file = written(tmp_path / f"rows.{ending}", ROWS)
    builder = "json" if ending == "jsonl" else ending
    theirs = load_dataset(builder, data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(rows_of(file)) == PAIRS == [(row["prompt"] or "", row["answer"]) for row in theirs]
    assert list(rows_of(file.rename(tmp_path / "0a1b2c"))) == PAIRS


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_conversation_is_all_that_precedes_the_last_answer(tmp_path: Path, ending: str) -> None:
    (row,) = rows_of(written(tmp_path / f"talk.{ending}", [{"messages": TALK}]))
    assert row == (tuple((turn["role"], turn["content"]) for turn in TALK[:-1]), "5")
    assert answered(row) == [row]
    assert texts_of(row) == [turn["content"] for turn in TALK]


def test_completions_and_texts_are_rows_too_and_every_line_of_a_text_is_one(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("one line\n\n  another, with a comma\n")
    written(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c", "more": 1}, {"text": "t"}])
    (tmp_path / "notes.md").write_text("no data")
    assert list(rows_in(tmp_path)) == [("p", "c"), ("", "t"), ("", "one line"), ("", "another, with a comma")]
    assert [file.name for file in files_in(tmp_path)] == ["a.jsonl", "b.txt"]


PREFERENCES = [{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, {"prompt": "é", "chosen": "a,\nb", "rejected": ""}]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_preference_is_a_prompt_with_two_answers_in_every_format(tmp_path: Path, ending: str) -> None:
    bodies = PREFERENCES[:1] if ending == "csv" else PREFERENCES
    file = written(tmp_path / f"rows.{ending}", bodies)
    assert list(rows_of(file)) == [(row["prompt"], row["chosen"], row["rejected"]) for row in bodies]
    assert are_preferences(file)
    assert not are_preferences(written(tmp_path / f"others.{ending}", ROWS))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_preference_may_be_a_conversation_and_counts_with_either_answer(tmp_path: Path, ending: str) -> None:
    said = [{"role": "assistant", "content": "6"}]
    body = {"prompt": TALK[:-1], "chosen": TALK[-1:], "rejected": said}
    (row,) = rows_of(written(tmp_path / f"talk.{ending}", [body]))
    assert row == (tuple((turn["role"], turn["content"]) for turn in TALK[:-1]), "5", "6")
    before = [turn["content"] for turn in TALK[:-1]]
    assert list(map(texts_of, answered(row))) == [[*before, "5"], [*before, "6"]]


def test_a_source_holds_preferences_or_other_rows_and_not_both(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", PREFERENCES)
    written(tmp_path / "b.jsonl", ROWS)
    with pytest.raises(RowError, match=r"^b\.jsonl, line 1: no preference, as those before it are$"):
        list(rows_in(tmp_path))


def test_a_row_with_an_answer_is_no_preference_whatever_else_it_has(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [{**PREFERENCES[0], "answer": "4"}])
    assert list(rows_of(file)) == [("2 + 2?", "4")]


@pytest.mark.parametrize(("body", "said"), [
    ('{"prompt": "a"}', "prompt without answer or completion"),
    ('{"prompt": "a", "answer": 3}', "answer must be text, it is int"),
    ('{"prompt": null, "answer": "b"}', "prompt must be text, it is missing"),
    ('{"question": "a"}', "it needs prompt with answer or completion, or with chosen and rejected, or messages, or "
     "text, and has 'question'"),
    ('{"prompt": "a", "chosen": "b"}', "rejected must be text, it is missing"),
    ('{"chosen": "a", "rejected": "b"}', "it needs prompt with answer"),
    ('{"prompt": "a", "chosen": "b", "rejected": 1}', "rejected must be text, it is int"),
    ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "chosen and rejected are the same"),
    ('{"prompt": [], "chosen": "b", "rejected": "c"}', "prompt must not be an empty list"),
    ('{"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}', r"prompt\[0\]: content must be text"),
    ('{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}', "chosen must be text or"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "a preference among rows that are none"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "messages must be a list of at least two"),
    ('{"messages": [{"role": "human", "content": "a"}, 1]}', r"messages\[0\]\.role must be one of"),
    ('{"messages": [{"role": "user", "content": 1}, 1]}', r"messages\[0\]: content must be text, it is int"),
    ('{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}', "the last of messages"),
    ('{"prompt": "a\\ud800", "answer": "b"}', "prompt holds half a character"),
    ("[1]", "not an object"), ("{", "not JSON"), ("{" * 100_000, "not JSON"),
])
def test_what_is_no_row_is_refused_by_file_line_and_field(tmp_path: Path, body: str, said: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "fine"}\n\n' + body + "\n")
    with pytest.raises(RowError, match=rf"^bad\.jsonl, line 3: {said}|^bad\.jsonl, line 3: .*{said}"):
        list(rows_of(file))


def test_broken_tables_are_refused_by_file_and_place(tmp_path: Path) -> None:
    table, parquet = tmp_path / "bad.csv", written(tmp_path / "bad.parquet", ROWS)
    table.write_text('prompt,answer\na,b\n"a,b,c\n')
    with pytest.raises(RowError, match=r"^bad\.csv, line 3: not CSV"):
        list(rows_of(table))
    table.write_text("prompt,answer\na,b,c\n")
    with pytest.raises(RowError, match=r"^bad\.csv, line 2: more fields than the first line names"):
        list(rows_of(table))
    table.write_text("prompt,answer\na\n")
    with pytest.raises(RowError, match=r"^bad\.csv, line 2: .*prompt without answer"):
        list(rows_of(table))
    parquet.write_bytes(parquet.read_bytes()[:-20])
    with pytest.raises(RowError, match=r"^bad\.parquet: not readable as Parquet"):
        list(rows_of(parquet))
    Dataset.from_list([{"prompt": "a", "answer": 3}]).to_parquet(str(parquet))
    with pytest.raises(RowError, match=r"^bad\.parquet, row 1: answer must be text, it is int"):
        list(rows_of(parquet))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match=r"no file in this folder ends in \.jsonl"):
        list(rows_in(tmp_path / "empty"))
    with pytest.raises(RowError, match="cannot be read"):
        list(rows_of(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.json", '\n[{"prompt": "a", "answer": "b"},\n{"prompt": "c", "answer": "d"}]', "a.json, line 2: not JSON lines"),
    ("0a1b2c", '[\n {"prompt": "a", "answer": "b"}\n]', "0a1b2c, line 1: not JSON lines"),
    ("a.jsonl", "a prompt\tan answer\n", "a.jsonl, line 1: not JSON lines"),
    ("a.CSV", "prompt;answer\na;b\n", "a.CSV, line 1: the first line must name fields, with commas between them"),
    ("a.csv", "question,reply\na,b\n", "a.csv, line 1: the first line must name fields"),
    ("a.parquet", "prompt,answer\na,b\n", "a.parquet: not a Parquet table"),
])
def test_a_table_that_is_not_understood_is_refused_and_never_learned_as_text(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(RowError) as refused:
        list(rows_of(file))
    assert str(refused.value).startswith(said)


def test_a_file_that_is_not_utf_8_is_refused_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(RowError, match=r"^a\.jsonl: cannot be read: not UTF-8 at byte 30, in line 2$"):
        list(rows_of(file))


def test_a_table_without_any_field_that_counts_is_refused_by_the_fields_it_has(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet", [{"question": "a", "reply": "b"}])
    with pytest.raises(RowError, match=r"^a\.parquet: it needs prompt .*, and has 'question', 'reply'$"):
        list(rows_of(file))


line_breaks = st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")


@given(st.lists(st.tuples(st.text(line_breaks), st.text(line_breaks, min_size=1)), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_from_json_and_csv_as_it_was(tmp_path_factory: Any, pairs: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_text("".join(
        json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False) + "\n" for prompt, answer in pairs
    ), encoding="utf-8", newline="")
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerows([("prompt", "answer"), *pairs])
    (folder / "b.csv").write_text(out.getvalue(), encoding="utf-8", newline="")
    assert list(rows_of(folder / "a.jsonl")) == pairs
    assert list(rows_of(folder / "b.csv")) == pairs


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_rows_or_one_line(tmp_path_factory: Any, content: bytes) -> None:
    file = tmp_path_factory.mktemp("bytes") / "any"
    file.write_bytes(content)
    try:
        rows = [each for row in rows_of(file) for each in answered(row)]
        assert all(text.encode() or not text for row in rows for text in texts_of(row))
    except RowError as error:
        assert str(error).startswith("any")
