"""Changes in words: what `kaizend show` and `kaizend diff` print of a merge."""

from __future__ import annotations

import json

import pytest

from daemon.words import change_in_words, differences, flat
from loops.architecture.genome import Definition
from safety.operators import OPERATORS, Operator

PARENTS = tuple(letter * 64 for letter in "stuvwxyz")


@pytest.mark.parametrize("operator", list(Operator))
def test_every_number_of_a_merge_is_shown_in_full(operator: Operator) -> None:
    parents = PARENTS[: OPERATORS[operator].most]
    coarse = Definition(operator, "b" * 64, parents)
    fine, vector = coarse.refine(coarse.centre([0.5] * len(parents)), 12)
    vector = [round(number - 0.01 * place / len(vector), 6) for place, number in enumerate(vector)]
    change = fine.change(vector)
    shown = dict(flat(change, by_entry=True))
    assert change_in_words(change) == f"{operator} of {len(parents)}"
    numbers = [number for gene in fine.genes for key, text in shown.items()
               if key.partition("[")[0] == gene.name for number in _numbers(json.loads(text))]
    assert numbers == vector


def test_two_merges_that_differ_in_their_last_weight_differ() -> None:
    fine = Definition(Operator.KARCHER, "b", PARENTS, groups=6, shared=False)
    one, other = ([0.5] * (fine.dimensions - 1) + [last] for last in (0.5, 0.6))
    changes = fine.change(one), fine.change(other)
    assert differences(*changes) == [("weights", *(json.dumps(change["weights"]) for change in changes))]


def test_two_merges_of_other_parents_differ_in_the_parent() -> None:
    one, other = (Definition(Operator.LINEAR, "b", parents).change([1.0] * 3)
                  for parents in (PARENTS[:3], (*PARENTS[:2], PARENTS[5])))
    assert [key for key, _, _ in differences(one, other)] == ["parents"]


def _numbers(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]


def test_a_recipe_says_how_far_it_goes_and_whose_child_it_is() -> None:
    recipe = {"stage": "sft", "learning_rate": 2e-4, "adapter": {"kind": "lora"}}
    change = {"recipe": recipe, "from_step": 34, "to_step": 100}
    assert change_in_words(change) == "sft lr 0.0002 lora, steps 34-100"
    assert change_in_words({**change, "parent": "0123456789ab"}) == (
        "sft lr 0.0002 lora, steps 34-100, child of 0123456789ab"
    )


def test_a_segment_says_what_it_is_shaped_by_and_at_which_levels_it_asks() -> None:
    change = {"shaping": {"weights": {"places": 1.0}, "strength": 0.4}, "levels": {"sums": {"level": 2, "of": 3}}}
    assert change_in_words(change) == "segment, shaping by places 1.00, sums at level 2 of 3"
    assert change_in_words({"shaping": {"weights": {}, "strength": 0.0}}) == "segment, zero shaping"
    assert change_in_words({**change, "levels": ["tampered"]}) == "segment, shaping by places 1.00"
