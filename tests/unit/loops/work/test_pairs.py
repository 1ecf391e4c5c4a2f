"""The job "pairs" sets the model's own right answers against its own wrong ones, and never asks what is sealed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from coaching import TASK, desk, make_classroom

from loops.work.pairs import MOST_PAIRS, pairs
from safety.yardstick import bilingual
from safety.yardstick.items import Item, TaskSpec, write_items
from safety.yardstick.tasks import draw
from state.jobs import JobSpec
from state.records import Split


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classroom(tmp_path_factory.mktemp("classroom"))


def spec(seed: int = 7, **changes: Any) -> JobSpec:
    return JobSpec("pairs", {}, {"tasks": [TASK], "prompts": 48, "samples": 6, "temperature": 1.0, **changes}, seed)


@pytest.fixture(scope="module")
def made(classroom: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pairs(spec(), desk(classroom, tmp_path_factory.mktemp("made")))


def rows(made: Any) -> list[dict[str, str]]:
    return [json.loads(line) for line in made.outputs["pairs"].read_text().splitlines()]


def items_by_prompt() -> dict[str, Item]:
    """Every search item of the task."""
    count = bilingual.population("maths2", "search")
    return {item.prompt: item for item in draw(TaskSpec.from_json(TASK), Split.SEARCH, count, 3)}


def test_every_pair_is_a_right_answer_and_a_wrong_one_to_the_same_prompt(made: Any) -> None:
    items = items_by_prompt()
    for row in rows(made):
        assert row["chosen"].split() == items[row["prompt"]].answer.split()
        assert row["rejected"].split() != row["chosen"].split()


def test_it_counts_what_it_asked_and_got(made: Any) -> None:
    values, found = made.values, rows(made)
    prompts = [row["prompt"] for row in found]
    assert (values["prompts"], made.items, values["stopped"]) == (48, 288, None)
    assert values["pairs"] == len(found) > 0
    assert 0 < values["mixed"] == len(set(prompts)) < 48
    assert values["from_references"] == 0
    assert 0 < values["success"] < 1
    assert made.tokens == values["tokens"] > 288
    assert len({(row["prompt"], row["rejected"]) for row in found}) == len(found)
    assert max(map(prompts.count, prompts)) <= MOST_PAIRS


def test_the_same_spec_gives_the_same_pairs_and_another_seed_others(
    classroom: Path, made: Any, tmp_path: Path
) -> None:
    again, other = (pairs(spec(seed), desk(classroom, tmp_path / str(seed))) for seed in (7, 8))
    assert (again.values, rows(again)) == (made.values, rows(made))
    assert {row["prompt"] for row in rows(other)} != {row["prompt"] for row in rows(made)}


def test_no_prompt_is_a_sealed_item(classroom: Path, tmp_path: Path) -> None:
    sealed = draw(TaskSpec.from_json(TASK), Split.SEARCH, 3000, 1)
    seal = tmp_path / "seal"
    seal.mkdir()
    (seal / "maths2.json").write_text(json.dumps([item.id for item in sealed]))
    made = pairs(spec(), desk(classroom, tmp_path / "made", seal=seal))
    assert made.values["pairs"] > 0
    assert not {row["prompt"] for row in rows(made)} & {item.prompt for item in sealed}


def test_an_all_wrong_group_gives_a_pair_only_where_references_may_be_trained_on(
    classroom: Path, made: Any, tmp_path: Path
) -> None:
    allowed = pairs(spec(references=True), desk(classroom, tmp_path))
    items, without = items_by_prompt(), {row["prompt"] for row in rows(made)}
    more = [row for row in rows(allowed) if row["prompt"] not in without]
    assert allowed.values["from_references"] == len(more) > 0
    assert allowed.values["mixed"] == made.values["mixed"]
    assert all(row["chosen"] == items[row["prompt"]].answer != row["rejected"] for row in more)


def test_a_cap_on_tokens_is_kept_and_cuts_whole_prompts_off(classroom: Path, made: Any, tmp_path: Path) -> None:
    cap = made.tokens
    capped = pairs(spec(max_tokens=cap), desk(classroom, tmp_path / "some"))
    assert capped.tokens <= cap
    assert 0 < capped.values["prompts"] < 48
    assert capped.values["stopped"] == f"the {cap} tokens it may use do not suffice for another step"
    assert rows(capped) == rows(made)[: capped.values["pairs"]]
    none = pairs(spec(max_tokens=10), desk(classroom, tmp_path / "none"))
    assert (none.values["prompts"], none.values["success"], none.outputs, none.tokens) == (0, None, {}, 0)


def test_a_task_with_too_few_items_is_asked_fewer(classroom: Path, tmp_path: Path) -> None:
    seal = tmp_path / "seal"
    seal.mkdir()
    write_items(seal / "few.jsonl", draw(TaskSpec.from_json(TASK), Split.SEARCH, 9, 1))
    few = {"name": "few", "role": "target", "source": {"kind": "jsonl", "sha256": "0" * 64}}
    made = pairs(spec(tasks=[few]), desk(classroom, tmp_path / "made", seal=seal))
    assert made.values["prompts"] == 6


@pytest.mark.parametrize("changes", [{"prompts": 0}, {"samples": 1}, {"temperature": 0.0}])
def test_what_cannot_give_a_pair_is_refused(classroom: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is"):
        pairs(spec(**changes), desk(classroom, tmp_path))
