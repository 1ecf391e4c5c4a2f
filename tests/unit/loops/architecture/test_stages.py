"""Coarse first, then fine around the best coarse point."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loops.architecture.genome import Definition, Operator
from loops.architecture.loop import coarse_to_fine
from loops.architecture.search import CmaEs, RandomSearch, Told
from loops.architecture.settings import ArchitectureSettings, SearchKind
from loops.architecture.stages import CoarseToFine
from state.records import JsonObject

TASK = Definition(Operator.TASK_ARITHMETIC, "b", ("x", "y"))
TIES = Definition(Operator.TIES, "b", ("x", "y"))


def staged(*coarse: Definition, kind: type = CmaEs, proposals: int = 6) -> CoarseToFine:
    return CoarseToFine(kind, coarse, (0.5, 0.5), 1 / 6, 2, 1 / 12, proposals, 1)


def drive(search: CoarseToFine, count: int, promoted: int = -1) -> tuple[JsonObject, list[JsonObject]]:
    """Tell each candidate how near its first weight is to .9; one may be promoted."""
    state, changes = search.start(), []
    for place in range(count):
        change = search.ask(state)
        changes.append(change)
        near = 1 - abs(change["weights"][0][0][0] - 0.9)
        state = search.tell(state, change, Told(near, near - 0.5, promoted=place == promoted))
    return state, changes


def test_the_fine_stage_starts_around_the_best_coarse_point() -> None:
    search = staged(TASK)
    state, changes = drive(search, 6)
    best = max(changes, key=lambda change: 1 - abs(change["weights"][0][0][0] - 0.9))
    assert state["origin"]["vector"] == TASK.vector(best)
    definition = search.definition(state)
    assert (definition.groups, definition.dimensions) == (2, 12)
    assert len({weight for table in search.ask(state)["weights"] for row in table for weight in row}) > 2


def test_each_operator_has_its_coarse_stage_and_the_better_one_is_split() -> None:
    search = staged(TASK, TIES)
    state = search.start()
    for _ in range(12):
        change = search.ask(state)
        value = 0.6 if change["operator"] == "ties" else 0.4
        state = search.tell(state, change, Told(value, value - 0.5))
    assert search.definition(state).operator is Operator.TIES


def test_a_promoted_point_is_the_best() -> None:
    search = staged(TASK)
    state, changes = drive(search, 6, promoted=5)
    assert state["origin"]["vector"] == TASK.vector(changes[5])


def test_a_later_lead_on_the_shared_items_does_not_replace_a_promoted_point() -> None:
    search = staged(TASK)
    state, changes = drive(search, 6, promoted=0)
    assert any(1 - abs(change["weights"][0][0][0] - 0.9) > 0.5 for change in changes[1:])
    assert state["origin"]["vector"] == TASK.vector(changes[0])


def test_without_any_score_the_fine_stage_starts_at_the_first_mean() -> None:
    search = staged(TASK)
    state = search.start()
    for _ in range(6):
        state = search.tell(state, search.ask(state), Told())
    assert search.definition(state).dimensions == 12
    assert state["origin"]["vector"] == [0.5, 0.5]


def test_the_control_has_the_same_first_and_second_stage() -> None:
    state, _ = drive(staged(TASK, kind=RandomSearch), 6)
    assert state["stage"] == 1
    assert "optimiser" not in state["inner"]


def test_cma_climbs_where_random_search_does_not() -> None:
    def last(kind: type) -> float:
        _, changes = drive(staged(TASK, kind=kind, proposals=120), 120)
        return float(sum(change["weights"][0][0][0] for change in changes[-12:])) / 12

    assert abs(last(CmaEs) - 0.9) < 0.05 < abs(last(RandomSearch) - 0.9)


STOCK = Definition(Operator.MODEL_STOCK, "b", ("x", "y"))


def test_an_operator_without_genes_is_tried_once_and_the_search_goes_on_over_the_others() -> None:
    search = staged(STOCK, TASK, proposals=3)
    state, tried = search.start(), []
    for _ in range(5):
        change = search.ask(state)
        tried.append(change["operator"])
        state = search.tell(state, change, Told(0.9, 0.4, promoted=change["operator"] == "model_stock"))
    assert tried == ["model_stock"] + ["task_arithmetic"] * 4
    assert search.definition(state).operator is Operator.TASK_ARITHMETIC


@pytest.mark.parametrize("operator", list(Operator))
def test_every_operator_can_be_tried_coarse_and_then_fine(operator: Operator) -> None:
    definition = Definition(operator, "b", ("x", "y"))
    search = staged(definition, proposals=2) if definition.dimensions else staged(definition, TASK, proposals=2)
    state = search.start()
    for _ in range(12):
        state = search.tell(state, search.ask(state), Told(0.5, 0.1))
    assert search.definition(state).groups == 2


def test_operators_that_cannot_be_searched_are_named() -> None:
    with pytest.raises(ValueError, match="one with genes to search over beside model_stock"):
        ArchitectureSettings(operators=("model_stock",))
    settings = ArchitectureSettings(operators=("task_arithmetic", "slerp"))
    assert settings.misfit(2) is None
    assert settings.misfit(3) == "slerp joins exactly 2 parents, not 3"
    assert replace(settings, search=SearchKind.M2N2).misfit(3) is None


@pytest.mark.parametrize("name", ["mean", "trained_weight", "beside_weight"])
def test_no_search_begins_outside_the_limits_of_a_weight(name: str) -> None:
    for weight in (-0.01, 2.51):
        with pytest.raises(ValueError, match=f"{name} is {weight}, a weight must be between 0 and 2.5"):
            replace(ArchitectureSettings(), **{name: weight})
    for weight in (0.0, 2.5):
        settings = replace(ArchitectureSettings(), **{name: weight})
        coarse_to_fine(settings, "b", ("x", "y"), ("z",)).start()


def test_where_trained_parents_make_too_many_for_an_operator_it_is_left_out() -> None:
    settings = ArchitectureSettings(operators=("slerp", "model_stock"))
    both = coarse_to_fine(settings, "b", ("x", "y")).coarse
    assert [definition.operator for definition in both] == [Operator.SLERP, Operator.MODEL_STOCK]
    more = coarse_to_fine(settings, "b", ("x", "y"), ("trained",)).coarse
    assert [definition.operator for definition in more] == [Operator.MODEL_STOCK, Operator.TASK_ARITHMETIC]
