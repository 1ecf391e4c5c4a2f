"""The archive of M2N2 and how its members are mated."""

from __future__ import annotations

import random

from loops.architecture.population import M2n2, _drawn, complement, fitness
from loops.architecture.search import Told
from state.records import JsonObject


def filled(*scores: str, capacity: int = 3) -> tuple[M2n2, JsonObject]:
    search = M2n2(tuple("abcdef"[: len(scores)]), capacity, 1)
    state = search.start()
    for digest, row in zip("abcdef", scores, strict=False):
        state = search.tell(state, search.ask(state), Told(row.count("1") / len(row), 0.0, row, digest))
    return search, state


def test_every_founder_is_scored_by_itself_before_anything_is_mated() -> None:
    search = M2n2(("a", "b"), 3, 1)
    state, asked = search.start(), []
    for digest in ("a", "b"):
        change = search.ask(state)
        asked.append(change["parents"])
        state = search.tell(state, change, Told(0.5, 0.0, "10" if digest == "a" else "01", digest))
    assert asked == [["a"], ["b"]]
    assert sorted(search.ask(state)["parents"]) == ["a", "b"]


def test_an_item_that_few_solve_is_worth_more() -> None:
    common, rare = fitness(["1100", "1100", "0010"])[1:]
    assert rare > common / 2
    assert abs(rare - 1.0) < 1e-3
    assert abs(common - 1.0) < 1e-3


def test_the_second_parent_is_valued_for_what_the_first_cannot() -> None:
    assert complement(["1100", "1110", "0011"], 0) == [0.0, fitness(["10", "10"])[0], 1 / (1 + 1e-6) + 1 / (2 + 1e-6)]


def test_when_nobody_solves_anything_parents_are_drawn_evenly() -> None:
    draw = random.Random(0)
    assert {_drawn([0.0, 0.0, 0.0], draw) for _ in range(50)} == {0, 1, 2}
    assert {_drawn([0.0, 0.0, 0.0], draw, banned=1) for _ in range(50)} == {0, 2}


def test_a_better_child_takes_the_place_of_the_worst_and_a_worse_one_is_not_kept() -> None:
    search, state = filled("1110", "1001", "1000")
    assert search.keep(state, "1111")
    assert not search.keep(state, "0000")
    state = search.tell(state, search.ask(state), Told(1.0, 0.5, "1111", "child"))
    assert [member["digest"] for member in state["members"]] == ["a", "b", "child"]


def test_a_twin_finds_no_room() -> None:
    search, state = filled("1110", "1001", capacity=5)
    assert not search.keep(state, "1110")


def test_a_child_without_a_score_leaves_the_archive_as_it_was() -> None:
    search, state = filled("1110", "1001")
    after = search.tell(state, search.ask(state), Told())
    assert after["members"] == state["members"]
    assert after["next"] == state["next"] + 1


def test_a_trained_model_waits_to_be_scored_and_then_joins() -> None:
    search, state = filled("1110", "1001")
    state = search.welcome(state, "trained")
    change = search.ask(state)
    assert change["parents"] == ["trained"]
    state = search.tell(state, change, Told(1.0, 0.5, "1111", "trained"))
    assert "trained" in [member["digest"] for member in state["members"]]
    assert len(search.ask(state)["parents"]) == 2
