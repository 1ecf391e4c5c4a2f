"""Sealing: once, disjoint, without contents for the loops, and never with items that are trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from safety.yardstick import verifiers
from safety.yardstick.items import Item, TaskError, TaskSpec
from safety.yardstick.sealed import load_guard, load_vault, overlapping, seal_tasks
from safety.yardstick.tasks import Seal, draw, pinned, read_jsonl, unplaced
from state.files import manifest_of
from state.jobs import Desk, JobSpec, Produced
from state.records import Split


def tasks_of(folder: Path) -> list[TaskSpec]:
    path = folder / "pool.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"what is {i} + 1", "answer": str(i + 1)}) + "\n" for i in range(80)))
    pool = {"kind": "jsonl", "path": str(path)}
    return [
        TaskSpec("sums", "target", pool, vault_items=20),
        TaskSpec("old", "guard", pool, guard_items=15),
        TaskSpec("naming", "guard", {"kind": "bilingual", "family": "naming2"}, guard_items=12),
    ]


def sealed(folder: Path, inputs: dict[str, Path] | None = None, seed: int = 1) -> tuple[Produced, list[TaskSpec]]:
    folder.mkdir(exist_ok=True)
    tasks = tasks_of(folder)
    spec = JobSpec("seal", dict.fromkeys(inputs or {}, "x"), {"tasks": [task.to_json() for task in tasks]}, seed)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return seal_tasks(spec, Desk(scratch, inputs or {})), tasks


def test_sealed_splits_have_the_asked_sizes_and_share_nothing_even_from_one_pool(tmp_path: Path) -> None:
    produced, tasks = sealed(tmp_path)
    vault = load_vault(produced.outputs["vault"], tasks[0])
    guards = [load_guard(produced.outputs["guard"], task) for task in tasks[1:]]
    assert [len(vault), *map(len, guards)] == [20, 15, 12]
    assert len({item.id for items in (vault, *guards) for item in items}) == 47
    assert produced.values["vault"]["sums"]["items"] == 20 and len(produced.values["guard"]["naming"]["digest"]) == 64


def test_the_seal_keeps_every_sealed_item_out_of_search_and_holds_none(tmp_path: Path) -> None:
    produced, tasks = sealed(tmp_path)
    seal = Seal.of(produced.outputs)
    assert len(seal.ids) == 47
    kept = [item for task in tasks[:1] for item in load_vault(produced.outputs["vault"], task)]
    kept += [item for task in tasks[1:] for item in load_guard(produced.outputs["guard"], task)]
    held = b"".join(path.read_bytes() for path in produced.outputs["seal"].iterdir())
    assert not [item.prompt for item in kept if f'"{item.prompt}"'.encode() in held]
    for task in tasks:
        assert not seal.ids & {item.id for item in draw(task, Split.SEARCH, 40, 1, seal)}


def test_the_pools_are_the_rest_of_the_file_whichever_task_sealed_the_others(tmp_path: Path) -> None:
    produced, tasks = sealed(tmp_path)
    seal, whole = Seal.of(produced.outputs), {item.id for item in read_jsonl(tmp_path / "pool.jsonl")}
    for task in tasks[:2]:
        assert {item.id for item in seal.pool(task)} == whole - seal.ids
    assert not (produced.outputs["seal"] / "naming.jsonl").exists()


def test_search_draws_are_those_from_before_there_were_pools(tmp_path: Path) -> None:
    """The order is of the items and the seed alone: taken down when draws read the whole file."""
    produced, tasks = sealed(tmp_path)
    for task in (unplaced(pinned(task)) for task in tasks[:2]):
        drawn = {seed: draw(task, Split.SEARCH, 6, seed, Seal.of(produced.outputs)) for seed in (5, 6)}
        assert [int(item.answer) - 1 for item in drawn[5]] == [21, 38, 48, 55, 16, 52]
        assert [int(item.answer) - 1 for item in drawn[6]] == [17, 12, 1, 18, 57, 27]


def test_an_earlier_seal_is_completed_by_the_pools_and_nothing_else(tmp_path: Path) -> None:
    produced, tasks = sealed(tmp_path)
    earlier = tmp_path / "earlier"
    shutil.copytree(produced.outputs["seal"], earlier, ignore=shutil.ignore_patterns("*.jsonl"))
    (tmp_path / "again").mkdir()
    spec = JobSpec("seal", {"seal": "s"}, {"tasks": [task.to_json() for task in tasks[:2]]})
    again = seal_tasks(spec, Desk(tmp_path / "again", {"seal": earlier}))
    assert set(again.outputs) == {"seal"}
    contents = [{file.name: file.read_bytes() for file in made.outputs["seal"].iterdir()} for made in (produced, again)]
    assert contents[0] == contents[1]


def test_sealing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    first, _ = sealed(tmp_path)
    before = {path: path.read_bytes() for out in first.outputs.values() for path in out.iterdir()}
    sealed(tmp_path)
    assert before == {path: path.read_bytes() for out in first.outputs.values() for path in out.iterdir()}


def test_a_life_without_guards_seals_what_the_registry_can_keep(tmp_path: Path) -> None:
    target = TaskSpec("naming", "target", {"kind": "bilingual", "family": "naming2"}, vault_items=5)
    spec = JobSpec("seal", {}, {"tasks": [target.to_json()]}, 1)
    produced = seal_tasks(spec, Desk(tmp_path, {}))
    assert all(manifest_of(path) for path in produced.outputs.values())
    with pytest.raises(ValueError, match="the guard holds no items of task naming"):
        load_guard(produced.outputs["guard"], target)


def test_a_verifier_that_refuses_references_or_pays_for_junk_is_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"spell {i}", "answer": f"word {i}"}) + "\n" for i in range(30)))
    task = TaskSpec("words", "target", {"kind": "jsonl", "path": str(file)}, verifier="numeric", vault_items=20)
    spec = JobSpec("seal", {}, {"tasks": [task.to_json()]}, 1)
    with pytest.raises(TaskError, match=r"task words: the verifier numeric cannot be trusted: .* is not right"):
        seal_tasks(spec, Desk(tmp_path, {}))
    monkeypatch.setattr(verifiers, "numeric", lambda item, text: int(item.answer in text))
    with pytest.raises(TaskError, match=r"cannot be trusted: .* the prompt and the answer counts as right"):
        seal_tasks(spec, Desk(tmp_path, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["words.jsonl"]


def test_a_task_without_sealed_items_is_named(tmp_path: Path) -> None:
    produced, tasks = sealed(tmp_path)
    with pytest.raises(ValueError, match="the vault holds no items of task old"):
        load_vault(produced.outputs["vault"], tasks[1])


@pytest.mark.parametrize("as_folder", [False, True])
def test_training_data_that_holds_vault_items_is_refused_with_file_and_number(tmp_path: Path, as_folder: bool) -> None:
    produced, tasks = sealed(tmp_path)
    leaked = load_vault(produced.outputs["vault"], tasks[0])[:3]
    data = tmp_path / "data" / "train.jsonl"
    data.parent.mkdir()
    data.write_text("".join(json.dumps({"prompt": item.prompt.upper(), "answer": "?"}) + "\n" for item in leaked))
    with pytest.raises(ValueError, match=r"data source 'web' \(train\.jsonl\): 3 of 20 vault items of task sums"):
        sealed(tmp_path, {"data:web": data.parent if as_folder else data})


def test_clean_training_data_passes(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "what is 900 + 1", "answer": "901"}\n{"text": "nothing of the kind"}\n')
    assert sealed(tmp_path, {"data:web": data})[0].values["vault"]["sums"]["items"] == 20


def test_malformed_training_data_is_refused_with_file_and_line(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "a"}\nnot json\n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: not JSON"):
        sealed(tmp_path, {"data:web": data})


def test_thirteen_words_in_a_row_betray_an_item_but_a_template_does_not() -> None:
    frame = "please read the following short story about a merchant with care and then tell me how many apples"
    names = ["anna", "bert", "carl", "dora", "emil", "fred", "gina", "hans", "ines", "jonas"]
    items = [Item.of(f"{frame} {name} sold to each of the {n} towns on the long old road by the sea", str(n))
             for n, name in enumerate(names)]
    copied = f"a blog: bert sold to each of the 1 towns on the long old road by the sea, {'and so on ' * 3}"
    assert overlapping(items, [[copied.replace(',', ' ')]]) == [items[1].id]
    assert overlapping(items, [[f"{frame} the queen has"]]) == []


def test_a_word_in_common_after_a_long_template_betrays_no_item() -> None:
    ask = "Give the answer as a list of words, each with a comma after it. Now reverse this list of words:"
    words = [[f"{letter}{n}" for letter in "abc"] for n in range(60)]
    items = [Item.of(f"{ask} {', '.join(three)}", ", ".join(reversed(three))) for three in words]
    others = [[f"{ask} {a}, x{n}, y{n}", f"y{n}, x{n}, {a}"] for n, (a, _, _) in enumerate(words)]
    assert overlapping(items, others) == []
    assert overlapping(items, [*others, [f"and then: {items[7].prompt} - I do not know"]]) == [items[7].id]


def test_a_short_item_is_found_inside_a_longer_row() -> None:
    items = [Item.of("donu la sumon de 7 kaj 9 nun", "16 dek ses")]
    assert overlapping(items, [["once more donu la sumon de 7 kaj 9 nun 16 dek ses and more"]]) == [items[0].id]
    assert overlapping(items, [["donu la sumon de 7 kaj 8 nun 15 dek kvin"]]) == []
