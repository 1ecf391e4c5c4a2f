"""CatCMA over paths: where it starts, what it learns, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest

from loops.architecture.catcma import CatCma
from loops.architecture.paths import PathDefinition
from loops.architecture.search import Told, unpacked
from state.records import JsonObject, canonical

ROW = PathDefinition(("x", "y"), (4, 4), repeats=1, deepest=8)
WANTED = [True, True, False, True, False, False, True, True]
SCALE = 1.4


def search(seed: int = 1, flips: float = 2.0, learns: bool = True) -> CatCma:
    return CatCma(ROW, flips, 0.1, seed, learns)


def worth(change: JsonObject) -> float:
    """How many places are as wanted, less how far the scales of the seams are from the wanted one."""
    included, scales = ROW.genes(change)
    right = sum(inside == wanted for inside, wanted in zip(included, WANTED, strict=True)) / len(WANTED)
    return right - 0.2 * float(np.mean([abs(scale - SCALE) for scale in scales.values()] or [1.0]))


def drive(search: CatCma, count: int) -> tuple[JsonObject, list[JsonObject]]:
    state, changes = search.start(), []
    for _ in range(count):
        changes.append(search.ask(state))
        state = search.tell(state, changes[-1], Told(worth(changes[-1])))
    return state, changes


def test_the_first_draws_are_near_the_templates_own_path() -> None:
    _, changes = drive(search(flips=1.0, learns=False), 200)
    flipped = [sum(a != b for a, b in zip(ROW.genes(change)[0], ROW.own, strict=True)) for change in changes]
    assert 0.8 < sum(flipped) / len(flipped) < 1.2


@pytest.mark.parametrize("seed", [1, 2])
def test_it_finds_the_wanted_path_and_scale_where_the_control_does_not(seed: int) -> None:
    def last(learns: bool) -> float:
        _, changes = drive(search(seed, learns=learns), 600)
        return sum(map(worth, changes[-48:])) / 48

    assert last(learns=False) < 0.7
    assert last(learns=True) > 0.93


def test_the_scale_of_a_seam_that_no_path_had_stays_where_it_was() -> None:
    state, changes = drive(search(), 12)
    used = {place for change in changes for place in ROW.genes(change)[1]}
    mean = unpacked(state["optimiser"]["_mean"])
    assert used
    assert {place for place in range(8) if mean[place] != 1.0} <= used
    assert any(mean[place] != 1.0 for place in used)


def test_the_step_does_not_shrink_for_seams_that_nothing_uses() -> None:
    """Equal worth whatever is drawn: the step size stays about where it was."""
    one = CatCma(PathDefinition(("x",), (12,), repeats=1), 0.5, 0.1, 3)
    state = one.start()
    for place in range(13 * 30):
        state = one.tell(state, one.ask(state), Told(place * 37 % 100 / 100))
    assert 0.03 < state["optimiser"]["_sigma"] < 0.3


def test_equal_scores_in_the_first_generation_leave_a_state_of_numbers() -> None:
    one = search()
    state = one.start()
    for _ in range(30):
        state = one.tell(state, one.ask(state), Told(0.5))
    assert "NaN" not in canonical(state)
    assert np.isfinite(unpacked(state["optimiser"]["_mean"])).all()


def test_states_stay_small_enough_for_a_row() -> None:
    one = CatCma(PathDefinition(("x", "y"), (16, 16), repeats=2), 2.0, 0.1, 1)
    state = one.start()
    for place in range(32):                                       # two generations
        state = one.tell(state, one.ask(state), Told(place * 37 % 100 / 100))
    assert len(canonical(state)) < 60_000
