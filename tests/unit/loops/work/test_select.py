"""The job "select" keeps the rows that a recipe's selection asks for, says why others went, and is pure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from coaching import make_classroom
from hypothesis import given
from hypothesis import strategies as st

from loops.work.duplicates import exact, near
from loops.work.quality import quality
from loops.work.select import inside, select
from safety.yardstick import bilingual
from safety.yardstick.training import Row, RowError, rows_in
from state.files import manifest_of
from state.jobs import Desk, JobSpec, Produced

WORDS = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]), min_size=0, max_size=12)
LONG = "the quick brown fox jumps over the lazy dog and runs through the wide green fields until the evening comes down"


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(tmp_path: Path, selection: dict[str, Any], **inputs: Path) -> Produced:
    (tmp_path / "desk").mkdir(exist_ok=True)
    data = {name if name == "model" else f"data:{name}": path for name, path in inputs.items()}
    return select(JobSpec("select", {}, {"selection": selection}), Desk(tmp_path / "desk", data))


def pair(answer: str, prompt: str = "say it") -> dict[str, str]:
    return {"prompt": prompt, "answer": answer}


def test_repeated_rows_go_but_for_the_first_whatever_their_case_and_spaces(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", [pair("one two"), pair("One  TWO"), pair("one two", "another"), pair("three")])
    made = run(tmp_path, {"deduplicate": "exact"}, a=folder)
    assert made.values == {"sources": {"a": {"rows": 4, "kept": 3, "dropped": {"duplicate": 1}}}}
    assert [answer for _, answer in rows_in(made.outputs["data:a"])] == ["one two", "one two", "three"]


def test_nearly_the_same_long_texts_go_and_different_ones_with_a_common_frame_stay(tmp_path: Path) -> None:
    texts = [LONG, LONG.replace("down", "in"), LONG.upper() + " at last", " ".join(reversed(LONG.split()))]
    assert near([("say it", text) for text in texts]) == [False, True, True, False]
    sums = [("give the sum of 7 and 9 now", "16 it is"), ("give the sum of 7 and 8 now", "15 it is")]
    assert near(sums) == [False, False]


@given(st.lists(st.tuples(WORDS, WORDS), max_size=12))
def test_what_is_near_one_that_was_kept_shares_most_with_it_and_every_repetition_is_near(drawn: Any) -> None:
    rows: list[Row] = [(" ".join(asked), " ".join(answer)) for asked, answer in drawn]
    assert all(gone for gone, same in zip(near(rows), exact(rows), strict=True) if same)
    assert near(rows) == near(rows)
    if rows:
        assert not near(rows)[0]


@given(st.lists(st.integers(0, 5).map(float), min_size=1), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_band_keeps_equal_values_together_and_its_part(values: list[float], ends: tuple[float, float]) -> None:
    low, high = sorted(ends)
    kept = inside(values, (low, high))
    chosen = {value for value, keep in zip(values, kept, strict=True) if keep}
    assert all(keep == (value in chosen) for value, keep in zip(values, kept, strict=True))
    assert sum(kept) >= max(1, (high - low) * len(values) - 1e-5)


def test_length_and_quality_keep_a_band_and_the_best(tmp_path: Path) -> None:
    rows = [pair(" ".join(f"w{word}" for word in range(count))) for count in range(1, 101)]
    kept = run(tmp_path, {"length": [0.1, 0.9]}, a=written(tmp_path / "a", rows))
    lengths = [len(answer.split()) for _, answer in rows_in(kept.outputs["data:a"])]
    assert (min(lengths), max(lengths)) == (11, 90)
    good = [pair(f"answer number {n} in plain words") for n in range(6)]
    poor = [pair("\u2593\u2593 x " * n) for n in range(1, 5)]
    best = run(tmp_path, {"quality": 0.6}, a=written(tmp_path / "b", [*poor, *good]))
    assert best.values["sources"]["a"] == {"rows": 10, "kept": 6, "dropped": {"quality": 4}}
    assert all("plain" in answer for _, answer in rows_in(best.outputs["data:a"]))


@pytest.mark.parametrize(("better", "worse"), [
    (("say it", "a plain answer"), ("say it", "")),
    (("say it", "a plain answer"), ("a plain answer", "A plain  answer")),
    (("", "one two three four five six"), ("", "one two three one two three one two three")),
    (("", "plain words"), ("", "plain \u25a0\u25a0\u25a0\u25a0")), (("", "plain words"), ("", "x" * 400)),
])
def test_quality_ranks_plain_varied_answers_above_empty_repeating_and_odd_ones(better: Row, worse: Row) -> None:
    assert 0 <= quality(worse) < quality(better) <= 1


def test_a_band_of_perplexity_leaves_out_what_surprises_the_model_most(tmp_path: Path) -> None:
    classroom = make_classroom(tmp_path / "classroom")
    known = bilingual.items("maths2", "search", 96, 4)[:60]
    odd = [(prompt, " ".join(reversed(prompt.split()))) for prompt, _ in known[:20]]
    folder = written(tmp_path / "a", [pair(answer, prompt) for prompt, answer in [*odd, *known]])
    made = run(tmp_path, {"perplexity": [0.0, 0.75]}, a=folder, model=classroom / "model")
    assert made.values["sources"]["a"]["dropped"] == {"perplexity": 20}
    assert set(rows_in(made.outputs["data:a"])) == set(known)


def test_what_was_selected_has_one_digest_from_whatever_file_and_reads_back_as_it_was(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "hé\u2028llo"}, {"role": "assistant", "content": "yes"}]
    rows = [pair("one"), {"messages": said}, {"text": "a text alone"}]
    other = [{**row, "more": 1} for row in rows]
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    one = run(tmp_path / "1", {"deduplicate": "exact"}, a=written(tmp_path / "a", rows))
    two = run(tmp_path / "2", {"deduplicate": "exact"}, b=written(tmp_path / "b", other))
    assert manifest_of(one.outputs["data:a"]) == manifest_of(two.outputs["data:b"])
    assert list(rows_in(one.outputs["data:a"])) == list(rows_in(tmp_path / "a"))


def test_a_source_of_which_nothing_is_left_has_no_output_and_a_torn_file_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    made = run(tmp_path, {"length": [0.2, 0.8]}, a=empty, b=written(tmp_path / "b", [pair("one")]))
    assert set(made.outputs) == {"data:b"}
    assert made.values["sources"]["a"] == {"rows": 0, "kept": 0, "dropped": {}}
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"prompt": "a", "answ')
    with pytest.raises(RowError, match=r"torn\.jsonl, line 1"):
        run(tmp_path, {"length": [0.2, 0.8]}, a=torn)
