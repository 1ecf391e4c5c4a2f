"""A search whose state goes through JSON after every step takes the path of one that is left alone."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from cmaes import CMA
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loops.architecture import novelty
from loops.architecture.catcma import CatCma
from loops.architecture.genome import Definition, Operator
from loops.architecture.paths import PathDefinition
from loops.architecture.population import M2n2
from loops.architecture.search import Cloud, CmaEs, RandomSearch, Search, Told, _frozen, _thawed
from loops.architecture.settings import Objective
from loops.architecture.stages import CoarseToFine
from state.records import JsonObject, canonical, seed_from

COARSE = Definition(Operator.TASK_ARITHMETIC, "b", ("x", "y"))
ROW = PathDefinition(("x", "y"), (3, 2), repeats=2, deepest=8)
WIDE = Definition(Operator.TASK_ARITHMETIC, "b", ("x", "y"), groups=26, shared=False)


KINDS = ["cma", "random", "coarse to fine", "m2n2", "catcma", "paths at random"]


def cloud(definition: Definition) -> Cloud:
    return Cloud(tuple(definition.centre([0.5, 0.5])), 1 / 6)


def searches(seed: int) -> dict[str, Search]:
    both = (COARSE, Definition(Operator.TIES, "b", ("x", "y")))
    return {
        "cma": CmaEs(COARSE, cloud(COARSE), seed),
        "sep-cma": CmaEs(WIDE, cloud(WIDE), seed),
        "random": RandomSearch(COARSE, cloud(COARSE), seed),
        "coarse to fine": CoarseToFine(CmaEs, both, (0.5, 0.5), 1 / 6, 2, 1 / 12, 9, seed),
        "m2n2": M2n2(("x", "y", "z"), 4, seed),
        "cma, new points": CmaEs(COARSE, cloud(COARSE), seed, 0.05),
        "random, new points": RandomSearch(COARSE, cloud(COARSE), seed, 0.05),
        "coarse to fine, new points": CoarseToFine(CmaEs, both, (0.5, 0.5), 1 / 6, 2, 1 / 12, 9, seed, 0.02),
        "m2n2, hopeless pairs spared": M2n2(("x", "y", "z"), 4, seed, most_alike=0.9, novelty=0.1),
        "nsga-ii": M2n2(("x", "y", "z"), 4, seed, tuple(Objective), separate_splits=True, novelty=0.05),
        "catcma": CatCma(ROW, 3.0, 0.1, seed),
        "paths at random": CatCma(ROW, 3.0, 0.1, seed, learns=False),
    }


KINDS = sorted(searches(0).keys() - {"sep-cma"})


def told(change: JsonObject, noise: int) -> Told:
    """A verdict that depends on the change, now and then without a fitness or with a promotion."""
    draw = seed_from(canonical(change), noise)
    if draw % 11 == 0:
        return Told()
    scores = "".join(str(draw >> bit & 1) for bit in range(16))
    fitness = scores.count("1") / 16
    measures = {"size": draw % 5, "latency": 1 + draw % 7 / 10, "forgetting": draw % 9 / 10}
    sketch = [float((draw >> bit) % 3 - 1) for bit in range(6)]
    member = f"m{draw % 1000}" if draw % 3 else None
    return Told(fitness, fitness - 0.5, scores, member, draw % 13 == 0, measures, sketch)


@settings(max_examples=16, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32), st.sampled_from(KINDS))
def test_the_path_is_the_same_whether_or_not_the_state_is_kept_as_text(seed: int, noise: int, kind: str) -> None:
    search = searches(seed)[kind]
    alone, kept = search.start(), search.start()
    for _ in range(60):
        kept = json.loads(json.dumps(kept))
        change = search.ask(kept)
        assert change == search.ask(alone) == search.ask(kept)
        before = copy.deepcopy(alone)
        after = search.tell(alone, change, told(change, noise))
        assert alone == before, "tell left the state it was given as it was"
        alone, kept = after, searches(seed)[kind].tell(kept, change, told(change, noise))
    assert canonical(alone) == canonical(kept)


def test_sep_cma_takes_over_above_150_genes_and_resumes_exactly() -> None:
    search = searches(1)["sep-cma"]
    assert WIDE.dimensions == 156
    alone, kept = search.start(), search.start()
    assert kept["optimiser"]["kind"] == "SepCMA"
    for _ in range(50):
        kept = json.loads(json.dumps(kept))
        change = search.ask(alone)
        alone, kept = (search.tell(state, change, told(change, 0)) for state in (alone, kept))
        assert alone == json.loads(json.dumps(kept))


def test_a_thawed_optimiser_freezes_to_the_same_text_and_goes_on_as_the_one_that_was_never_frozen() -> None:
    first = CMA(mean=np.full(3, 0.5), sigma=0.2, bounds=np.array([[0.0, 2.5]] * 3), seed=1)
    first._funhist_values[:] = 0.0
    for generation in range(8):
        text = canonical(_frozen(first))
        second = _thawed(json.loads(text))
        assert canonical(_frozen(second)) == text
        for optimiser in (first, second):
            optimiser.reseed_rng(generation)
        points = [first.ask() for _ in range(first.population_size)]
        assert np.allclose(points, [second.ask() for _ in points], rtol=0, atol=1e-12)    # cmaes keeps half of C
        values = [(point, float(((point - 0.9) ** 2).sum())) for point in points]
        first.tell(list(values))
        second.tell(list(values))
        assert np.allclose(first.mean, second.mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_telling_a_change_twice_or_a_stale_one_alters_nothing(kind: str) -> None:
    search = searches(5)[kind]
    state = search.start()
    change = search.ask(state)
    once = search.tell(state, change, Told(0.5, 0.1, "10", "m"))
    assert search.tell(once, change, Told(0.9, 0.4, "11", "n")) == once
    assert search.tell(once, {"kind": "keep"}, Told()) == once


def test_every_point_of_a_generation_meets_the_same_items_and_the_next_generation_others() -> None:
    search = searches(2)["cma"]
    state, seeds = search.start(), []
    for _ in range(12):
        change = search.ask(state)
        seeds.append(change["search"]["items_seed"])
        state = search.tell(state, change, Told(0.1))
    assert len(set(seeds[:6])) == len(set(seeds[6:])) == 1
    assert len(set(seeds)) == 2


def test_states_stay_small_enough_for_a_row() -> None:
    search = CmaEs(*(lambda fine: (fine, cloud(fine), 1))(COARSE.refine([0.5, 0.5], 4)[0]))
    state = search.start()
    for place in range(400):
        state = search.tell(state, search.ask(state), Told((place * 37 % 100) / 100))
    assert len(canonical(state)) < 20_000


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(2, 9), st.lists(st.integers(0, 8), min_size=60, max_size=60),
    st.sampled_from(KINDS),
)
def test_with_several_in_flight_no_change_is_asked_twice_and_every_answer_counts(
    seed: int, workers: int, order: list[int], kind: str
) -> None:
    """Answers come in any order, some of them long after their generation's others."""
    search, asked = searches(seed)[kind], []
    state, in_flight, told_of = search.start(), [], 0
    for draw in order:
        while len(in_flight) < workers:
            change = search.ask(state, in_flight)
            assert change == search.ask(json.loads(json.dumps(state)), in_flight)
            mark = {key: change["search"][key] for key in ("generation", "point")} | {
                "stage": change["search"].get("stage")}
            assert mark not in asked
            asked.append(mark)
            in_flight.append(change)
        change = in_flight.pop(draw % workers)
        after = search.tell(state, change, told(change, 1))
        told_of += after != state
        state = after
    late = 2 * (workers - 1) if kind.startswith("coarse to fine") else 0       # from a stage that closed meanwhile
    assert len(order) - told_of <= late


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.permutations(range(12)), st.sampled_from([("cma", 6), ("catcma", 12)]))
def test_the_order_in_which_a_generation_comes_in_does_not_matter(
    seed: int, places: list[int], of: tuple[str, int]
) -> None:
    search, order = searches(seed)[of[0]], [place for place in places if place < of[1]]
    state, changes = search.start(), list[JsonObject]()
    for _ in order:
        changes.append(search.ask(state, changes))
    one = other = state
    for place in range(len(order)):
        one = search.tell(one, changes[place], told(changes[place], 2))
        other = search.tell(other, changes[order[place]], told(changes[order[place]], 2))
    assert one["open"] == other["open"] == []
    assert canonical(one) == canonical(other)


def test_while_a_generation_is_out_the_next_one_begins_and_each_is_told_with_its_own_points() -> None:
    search = searches(3)["cma"]
    state, out = search.start(), list[JsonObject]()
    for _ in range(8):
        out.append(search.ask(state, out))
    assert [change["search"]["generation"] for change in out] == [0] * 6 + [1] * 2
    for change in (*out[6:], *out[1:6]):
        state = search.tell(state, change, Told(0.5))
    unchanged = state["optimiser"]
    assert unchanged == search.start()["optimiser"]
    state = search.tell(state, out[0], Told(0.9))
    assert state["optimiser"] != unchanged
    assert [(entry["generation"], sorted(entry["told"])) for entry in state["open"]] == [(1, ["0", "1"])]


@pytest.mark.parametrize("kind", ["cma", "random", "catcma"])
def test_every_generation_draws_points_of_its_own(kind: str) -> None:
    search, out = searches(3)[kind], list[JsonObject]()
    for _ in range(18):
        out.append(search.ask(search.start(), out))
    drawn = [canonical({name: value for name, value in change.items() if name != "search"}) for change in out]
    generations = [change["search"]["generation"] for change in out]
    assert max(generations) > 0
    first = {point for point, generation in zip(drawn, generations, strict=True) if generation == 0}
    assert not {point for point, generation in zip(drawn, generations, strict=True) if generation == 1} <= first


def life(kind: str, seed: int, workers: int, answers: list[int], stops: set[int]) -> tuple[list[str], str]:
    """Every change a search asks for with so many in flight, and its last state.

    `answers` says which of those in flight comes in next. At each of `stops` everything is lost but what a ledger
    keeps as text: the state after the last answer and the changes that are open; before, or after, new ones are asked.
    """
    search, state, in_flight = searches(seed)[kind], searches(seed)[kind].start(), list[JsonObject]()
    asked = []
    for moment, answer in enumerate(answers):
        while len(in_flight) < workers:
            if 2 * moment in stops:
                search, state, in_flight = searches(seed)[kind], *json.loads(canonical([state, in_flight]))
            in_flight.append(search.ask(state, in_flight))
            asked.append(canonical(in_flight[-1]))
        if 2 * moment + 1 in stops:
            search, state, in_flight = searches(seed)[kind], *json.loads(canonical([state, in_flight]))
        change = in_flight.pop(answer % workers)
        state = search.tell(state, change, told(change, 3))
    return asked, canonical(state)


@settings(max_examples=4, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 6), st.lists(st.integers(0, 5), min_size=50, max_size=50),
    st.sets(st.integers(0, 99), max_size=12),
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_that_is_interrupted_anywhere_takes_the_path_of_one_that_is_not(
    kind: str, seed: int, workers: int, answers: list[int], stops: set[int]
) -> None:
    undisturbed = life(kind, seed, workers, answers, set())
    assert life(kind, seed, workers, answers, stops) == undisturbed
    assert len(set(undisturbed[0])) == len(undisturbed[0]) >= 50


def test_sep_cma_that_is_interrupted_takes_the_path_of_one_that_is_not() -> None:
    answers = [seed_from(place) % 4 for place in range(45)]
    undisturbed = life("sep-cma", 6, 4, answers, set())
    assert life("sep-cma", 6, 4, answers, {3, 30, 31, 57, 80}) == undisturbed


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["cma, new points", "random, new points"]))
@example(12082, "cma, new points")
def test_no_point_is_nearly_one_that_was_tried_while_there_is_room_for_others(seed: int, kind: str) -> None:
    search, tolerance = searches(seed)[kind], 0.02
    assert isinstance(search, CmaEs | RandomSearch)
    search = replace(search, novelty=tolerance)
    state, points = search.start(), list[list[float]]()
    with patch.object(novelty, "TRIES", 512):          # so that a distribution that has grown narrow still has room
        for place in range(24):
            out = [search.ask(state)]
            out.append(search.ask(state, out))
            points += [search.definition.vector(change) for change in out]
            for change in out:
                state = search.tell(state, change, told(change, place))
    for place, one in enumerate(points):
        assert all(max(abs(a - b) for a, b in zip(one, two, strict=True)) >= tolerance for two in points[:place])


@pytest.mark.parametrize("kind", ["cma", "random", "m2n2"])
def test_a_search_that_does_not_ask_for_novelty_keeps_nothing_of_what_was_tried(kind: str) -> None:
    search = searches(4)[kind]
    state = search.start()
    for _ in range(9):
        change = search.ask(state)
        state = search.tell(state, change, told(change, 1))
    assert "tried" not in state
