"""The archive of M2N2 and how its members are mated."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from loops.architecture.population import M2n2, _drawn, complement, fitness
from loops.architecture.search import Told
from loops.architecture.settings import Objective
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
    assert search.keep(state, Told(1.0, 0.5, "1111"))
    assert not search.keep(state, Told(0.0, -0.5, "0000"))
    state = search.tell(state, search.ask(state), Told(1.0, 0.5, "1111", "child"))
    assert [member["digest"] for member in state["members"]] == ["a", "b", "child"]


def test_a_twin_finds_no_room() -> None:
    search, state = filled("1110", "1001", capacity=5)
    assert not search.keep(state, Told(0.75, 0.2, "1110"))


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


def measured(scores: str, size: float, digest: str | None = None) -> Told:
    return Told(scores.count("1") / len(scores), 0.0, scores, digest, measures={"size": size})


def sized(*members: tuple[str, float], capacity: int = 3) -> tuple[M2n2, JsonObject]:
    search = M2n2(tuple("abcdef"[: len(members)]), capacity, 1, (Objective.QUALITY, Objective.SIZE))
    state = search.start()
    for digest, (row, size) in zip("abcdef", members, strict=False):
        state = search.tell(state, search.ask(state), measured(row, size, digest))
    return search, state


def digests(state: JsonObject) -> list[str]:
    return [member["digest"] for member in state["members"]]


def test_a_smaller_member_stays_although_it_solves_less() -> None:
    search, state = sized(("1110", 4), ("1011", 4), ("0010", 1))
    state = search.tell(state, search.ask(state), measured("1111", 4, "child"))
    assert digests(state) == ["b", "c", "child"]            # of the two that are alike the first goes
    plain, other = filled("1110", "1011", "0010")
    other = plain.tell(other, plain.ask(other), Told(1.0, 0.5, "1111", "child"))
    assert "c" not in digests(other)


def test_a_child_that_every_objective_speaks_against_is_not_kept() -> None:
    search, state = sized(("1110", 4), ("1011", 4), ("0010", 1))
    assert not search.keep(state, measured("0100", 5))
    assert search.keep(state, measured("1111", 4))


def test_a_twin_in_its_scores_has_room_where_it_is_smaller() -> None:
    search, state = sized(("1110", 4), ("1011", 4), capacity=5)
    assert not search.keep(state, measured("1110", 4))
    assert not search.keep(state, measured("1110", 5))
    assert search.keep(state, measured("1110", 3))


def test_parents_are_never_what_loses_every_tournament() -> None:
    search, state = sized(("1110", 2), ("1011", 2), ("0000", 9))
    for place in range(30):
        parents = replace(search, seed=place).ask(state)["parents"]
        assert parents[0] != "c"
        assert len(set(parents)) == 2


def test_attention_has_a_split_point_of_its_own_where_the_settings_say_so() -> None:
    search, state = filled("1110", "1001")
    child = search.ask(state)
    apart = replace(search, separate_splits=True).ask(state)
    assert "attention_split" not in child
    assert 0 <= apart["attention_split"] <= 1
    assert {key: apart[key] for key in ("split", "mix")} == {key: child[key] for key in ("split", "mix")}


def sketched(*members: tuple[str, list[float]]) -> tuple[M2n2, JsonObject]:
    search = M2n2(tuple("abcdef"[: len(members)]), 5, 1, most_alike=0.99)
    state = search.start()
    for digest, (row, direction) in zip("abcdef", members, strict=False):
        told = Told(row.count("1") / len(row), 0.0, row, digest, sketch=direction)
        state = search.tell(state, search.ask(state), told)
    return search, state


def asked(search: M2n2, state: JsonObject, times: int = 40, **changes: Any) -> list[list[str]]:
    return [replace(search, seed=seed, **changes).ask(state)["parents"] for seed in range(times)]


def test_parents_whose_weights_are_nearly_equal_are_spared() -> None:
    search, state = sketched(("1110", [1.0, 0.0]), ("1101", [1.0, 0.01]), ("0011", [0.0, 1.0]))
    assert all("c" in parents for parents in asked(search, state))
    assert not all("c" in parents for parents in asked(search, state, most_alike=1.0))


def test_a_second_parent_that_solves_nothing_beyond_the_first_is_spared() -> None:
    search, state = sketched(("1111", [1.0, 0.0]), ("0110", [0.0, 1.0]), ("0011", [-1.0, 1.0]))
    pairs = asked(search, state)
    assert all(first != "a" for first, _ in pairs)
    assert any(first == "a" for first, _ in asked(search, state, most_alike=1.0))


def test_where_every_pair_is_hopeless_one_of_them_is_asked_for_all_the_same() -> None:
    search, state = sketched(("1110", [1.0]), ("1100", [1.0]))
    assert sorted(search.ask(state)["parents"]) == ["a", "b"]


def test_a_child_nearly_equal_to_one_that_was_tried_or_is_in_flight_is_not_asked_again() -> None:
    search = replace(filled("1110", "1001")[0], novelty=0.3)
    state = filled("1110", "1001")[1]
    points: list[JsonObject] = []
    for _ in range(3):
        child = search.ask(state, points)
        points.append(child)
    state = search.tell(state, points[0], Told())
    points.append(search.ask(state, points[1:]))
    spots = [(change["split"], change["mix"] if change["parents"] == ["a", "b"] else 1 - change["mix"])
             for change in points]
    for place, one in enumerate(spots):
        for other in spots[:place]:
            assert max(abs(one[0] - other[0]), abs(one[1] - other[1])) >= 0.3 - 1e-9
