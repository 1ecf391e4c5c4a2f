"""What makes a task and an item, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from safety.yardstick.items import Item, TaskError, TaskSpec, item_id

GOOD: dict[str, Any] = {
    "name": "sums", "role": "target", "source": {"kind": "jsonl", "path": "sums.jsonl"}, "vault_items": 5,
    "guard_items": 0, "verifier": "exact",
}


def test_a_task_survives_its_json() -> None:
    assert TaskSpec.from_json(GOOD).to_json() == GOOD
    twice = GOOD | {"second_verifier": "numeric"}
    assert TaskSpec.from_json(twice).to_json() == twice


def test_an_item_survives_its_json_with_and_without_an_origin() -> None:
    for item in (Item.of("a b", "c"), Item.of("a b", "c", 17)):
        assert Item.from_json(item.to_json()) == item


def test_case_and_white_space_do_not_make_another_item() -> None:
    assert item_id("What  is\n2?") == item_id("what is 2?") != item_id("what is 3?")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../x"}, "task name"), ({"name": "pooled"}, "pooled"), ({"role": "gard"}, "role"),
        ({"verifier": "fuzzy"}, "verifier"), ({"vault_items": -1}, "vault_items"),
        ({"vault_items": True}, "vault_items"),
        ({"source": {"kind": "csv"}}, "source kind"), ({"source": {"kind": "jsonl"}}, "'path'"),
        ({"source": {"kind": "jsonl", "path": "x", "pth": 1}}, "'pth'"), ({"source": "x"}, "source"),
        ({"verifier": "reasoning_gym"}, "reasoning_gym"), ({"second_verifier": "exact"}, "second_verifier"),
        ({"second_verifier": "reasoning_gym"}, "reasoning_gym"), ({"wault_items": 3}, "'wault_items'"),
    ],
)
def test_a_bad_task_is_refused_in_one_line_that_names_the_setting(change: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said) as refusal:
        TaskSpec.from_json(GOOD | change)
    assert "\n" not in str(refusal.value)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(TaskError, match="'role' is missing"):
        TaskSpec.from_json({"name": "sums", "source": {}})
