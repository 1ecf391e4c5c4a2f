"""Drawing items: disjoint, repeatable, and clear about bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sealing import seal_of

from safety.yardstick.items import Item, TaskSpec, read_items, write_items
from safety.yardstick.tasks import Seal, TaskError, draw, pinned, read_jsonl, sealed_ids, take, unplaced
from state.records import Split

Make = Callable[[Path], TaskSpec]


def jsonl_task(folder: Path, rows: int = 60, name: str = "sums") -> TaskSpec:
    path = folder / f"{name}.jsonl"
    lines = [json.dumps({"prompt": f"what is {i} + 1", "answer": str(i + 1)}) for i in range(rows)]
    path.write_text("\n".join(lines))
    return TaskSpec(name, "target", {"kind": "jsonl", "path": str(path)}, vault_items=10, guard_items=10)


def gym_task(folder: Path) -> TaskSpec:
    source = {"kind": "reasoning_gym", "generator": "chain_sum", "config": {"max_terms": 3, "max_digits": 2}}
    return TaskSpec("chain", "target", source, 10, 10, "reasoning_gym")


def bilingual_task(folder: Path) -> TaskSpec:
    return TaskSpec("maths2", "target", {"kind": "bilingual", "family": "maths2"}, 10, 10)


every_source = pytest.mark.parametrize("make", [jsonl_task, gym_task, bilingual_task])


def ids(items: list[Item]) -> set[str]:
    return {item.id for item in items}


def sealed(task: TaskSpec, folder: Path, items: list[Item] | None = None) -> Seal:
    return Seal.of({"seal": seal_of([task], folder / "seal", ids(items or []))})


@every_source
def test_equal_seeds_draw_equal_items_and_other_seeds_draw_others(make: Make, tmp_path: Path) -> None:
    task = make(tmp_path)
    seal = sealed(task, tmp_path)
    first = draw(task, Split.SEARCH, 20, 1, seal)
    assert first == draw(task, Split.SEARCH, 20, 1, seal)
    assert first != draw(task, Split.SEARCH, 20, 2, seal)


@every_source
def test_no_split_shares_an_item_with_another_and_none_repeats(make: Make, tmp_path: Path) -> None:
    task = make(tmp_path)
    vault = take(task, Split.VAULT, 10, 3, frozenset())
    guard = take(task, Split.GUARD, 10, 3, frozenset())
    search = [draw(task, Split.SEARCH, 30, seed, sealed(task, tmp_path, vault + guard)) for seed in range(4)]
    assert len(ids(vault)) == len(ids(guard)) == 10 and all(len(ids(items)) == 30 for items in search)
    assert not ids(vault) & ids(guard)
    assert not any(ids(vault + guard) & ids(items) for items in search)


@every_source
@pytest.mark.parametrize("split", [Split.VAULT, Split.GUARD])
def test_a_sealed_split_cannot_be_drawn(make: Make, split: Split, tmp_path: Path) -> None:
    task = make(tmp_path)
    with pytest.raises(TaskError, match=f"the {split} is drawn once"):
        draw(task, split, 1, 1, sealed(task, tmp_path))


def test_a_pool_holds_nothing_of_its_tasks_vault_even_where_nothing_is_sealed_yet(tmp_path: Path) -> None:
    task = jsonl_task(tmp_path)
    searched = draw(task, Split.SEARCH, 40, 1, sealed(task, tmp_path))
    assert not ids(searched) & ids(take(task, Split.VAULT, 10, 9, frozenset()))


def test_draws_of_a_file_go_by_the_pool_and_never_by_the_file(tmp_path: Path) -> None:
    task = pinned(jsonl_task(tmp_path))
    seal = sealed(task, tmp_path)
    before = draw(task, Split.SEARCH, 40, 1, seal)
    (tmp_path / "sums.jsonl").unlink()
    assert draw(task, Split.SEARCH, 40, 1, seal) == draw(unplaced(task), Split.SEARCH, 40, 1, seal) == before
    assert "path" not in unplaced(task).source
    with pytest.raises(TaskError, match="the seal has no pool of it"):
        draw(task, Split.SEARCH, 1, 1)
    (tmp_path / "seal" / "sums.jsonl").unlink()
    with pytest.raises(TaskError, match="the seal has no pool of it"):
        draw(task, Split.SEARCH, 1, 1, seal)


def test_a_sealed_item_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    task = gym_task(tmp_path)
    first = draw(task, Split.SEARCH, 5, 1)
    again = draw(task, Split.SEARCH, 5, 1, Seal(frozenset({first[0].id})))
    assert again[:4] == first[1:] and len(again) == 5


def test_one_question_written_twice_is_one_item(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"prompt": "a b", "answer": "c"}\n{"prompt": "A  b", "answer": "c"}\n')
    task = TaskSpec("twice", "guard", {"kind": "jsonl", "path": str(path)})
    seal = sealed(task, tmp_path)
    assert len(draw(task, Split.SEARCH, 1, 1, seal)) == 1
    with pytest.raises(TaskError, match=r"twice\.jsonl has 1 search items, 2 are needed"):
        draw(task, Split.SEARCH, 2, 1, seal)
    with pytest.raises(TaskError, match=r"the pool of its file has 1 search items, 2 are needed"):
        draw(unplaced(pinned(task)), Split.SEARCH, 2, 1, seal)


def test_generated_items_come_from_other_numbers_in_every_split(tmp_path: Path) -> None:
    task = gym_task(tmp_path)
    numbers = [{item.origin for item in take(task, split, 20, 5, frozenset())} for split in Split]
    assert not (numbers[0] & numbers[1] or numbers[1] & numbers[2] or numbers[0] & numbers[2])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"bad\.jsonl: the file is empty"),
        (b"\n\n", r"bad\.jsonl: the file is empty"),
        (b'{"prompt": "a", "answer": "b"}\n{"prompt": "a"', r"bad\.jsonl, line 2: not JSON"),
        (b'{"prompt": "a", "answer": "b"}\n\n{"prompt": "c"}', r"bad\.jsonl, line 3: field 'answer' is missing"),
        (b'{"prompt": 7, "answer": "b"}', r"bad\.jsonl, line 1: field 'prompt' must be text"),
        (b'{"prompt": " ", "answer": "b"}', r"bad\.jsonl, line 1: field 'prompt' must be text"),
        (b'["a", "b"]', r"bad\.jsonl, line 1: not an object"),
        (b"\xff\xfe", r"bad\.jsonl, line 1: not UTF-8"),
    ],
)
def test_a_bad_file_is_refused_naming_file_line_and_field(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=said) as refusal:
        read_jsonl(path)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    task = TaskSpec("gone", "guard", {"kind": "jsonl", "path": str(tmp_path / "gone.jsonl")})
    with pytest.raises(TaskError, match=r"gone\.jsonl: No such file"):
        take(task, Split.GUARD, 1, 1, frozenset())


def test_a_pinned_file_that_changed_is_refused(tmp_path: Path) -> None:
    task = pinned(jsonl_task(tmp_path))
    assert len(take(task, Split.VAULT, 5, 1, frozenset())) == 5
    jsonl_task(tmp_path, rows=61)
    with pytest.raises(TaskError, match="has changed"):
        take(task, Split.VAULT, 5, 1, frozenset())


def test_items_survive_their_file_whatever_stands_in_them(tmp_path: Path) -> None:
    items = [Item.of(f"a{mark}b", f"c{mark}d") for mark in "\u2028\u2029\x85\r\n\x0b\x1e"]
    write_items(tmp_path / "items.jsonl", items)
    assert read_items(tmp_path / "items.jsonl") == items


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "reasoning_gym", "generator": "coin_flip"}, "not allowed"),
        ({"kind": "reasoning_gym", "generator": "chain_sun"}, "no generator"),
        ({"kind": "reasoning_gym", "generator": "chain_sum", "config": {"max_term": 3}}, "refuses its config"),
        ({"kind": "reasoning_gym", "generator": "chain_sum", "config": {"seed": 3}}, "seed and size"),
        ({"kind": "bilingual", "family": "maths3"}, "maths3"),
    ],
)
def test_a_source_that_cannot_be_drawn_from_is_refused_in_one_line(source: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError, match=said) as refusal:
        draw(TaskSpec("t", "target", source), Split.SEARCH, 1, 1)
    assert "\n" not in str(refusal.value)


def test_a_seal_gives_the_ids_of_every_task(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["1", "2"]')
    (tmp_path / "b.json").write_text('["3"]')
    assert sealed_ids(tmp_path) == {"1", "2", "3"}
