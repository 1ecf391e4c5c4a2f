"""What is kept of earlier studies, and how much it says about a related model."""

from __future__ import annotations

import json
from dataclasses import replace

from loops.pipeline.memory import MOST_OF_ONE, MOST_STUDIES, added, hints, remembered
from loops.pipeline.recipe import SFT, Stage
from loops.pipeline.tuner import Configuration

LINEAGE = {"merge": ["base", "a", "b"], "tuned": ["merge", "base", "a", "b"], "other": ["base", "c"], "alien": []}


def ancestors(model: str) -> list[str]:
    return LINEAGE.get(model, [])


def study(count: int) -> list[Configuration]:
    return [Configuration(f"{i:03d}", SFT, {"x": i}, values=(0.01 * i,)) for i in range(count)]


def test_a_study_is_remembered_from_its_best_to_its_worst_with_failures_at_the_end():
    kept = remembered("m", [*study(40), replace(study(1)[0], id="bad", genes={"x": -1}, values=(), failed="CRASHED")])
    ranks = [rank for _, _, rank in kept["trials"]]
    assert len(ranks) == MOST_OF_ONE
    assert ranks == sorted(ranks, reverse=True)
    assert kept["trials"][0][1] == {"x": 39}
    assert kept["trials"][-1][1:] == [{"x": -1}, 0.0]
    assert [genes["x"] for _, genes, _ in remembered("m", study(3))["trials"]] == [2, 1, 0]


def test_a_study_in_which_nothing_was_measured_is_not_remembered():
    assert remembered("m", []) is None
    begun = Configuration("y", SFT, {})
    assert remembered("m", [Configuration("x", SFT, {}, failed="CRASHED: no data"), begun]) is None


def test_a_nearer_relation_comes_first_and_its_ranks_say_more():
    memories = [remembered(base, study(4)) for base in ("other", "alien", "merge")]
    found = hints("tuned", json.loads(json.dumps(memories)), ancestors)
    assert [hint.genes["x"] for hint in found] == [3, 2, 1, 0, 3, 2, 1, 0]
    near, far = found[0].rank, found[4].rank
    assert 0.5 < far < near < 1.0
    assert found[3].rank == 1.0 - near
    assert found[0].stage is Stage.SFT


def test_a_model_says_nothing_about_itself_nor_about_one_without_a_common_ancestor():
    memories = [remembered(base, study(4)) for base in ("tuned", "alien")]
    assert hints("tuned", memories, ancestors) == []
    assert hints("base", [], ancestors) == []


def test_memories_are_kept_once_a_model_and_not_without_end():
    kept: list = []
    for number in range(20):
        kept = added(kept, remembered(f"m{number % 10}", study(3)))
    assert len(kept) == MOST_STUDIES
    assert [memory["base"] for memory in kept] == [f"m{number}" for number in range(4, 10)]
    assert added(kept, None) == kept
