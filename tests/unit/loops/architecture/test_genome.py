"""Definitions, genotypes and changes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops.architecture.genome import SPARSE, Definition, Operator, models_of
from state.records import canonical


@st.composite
def points(draw: st.DrawFn) -> tuple[Definition, list[float]]:
    operator = draw(st.sampled_from(list(Operator)))
    count = 2 if operator is Operator.SLERP else draw(st.integers(1, 4))
    definition = Definition(operator, "base", tuple(f"p{place}" for place in range(count)),
                            draw(st.integers(1, 4)), draw(st.booleans()), draw(st.integers(0, 9)))
    return definition, [draw(st.floats(low, high, allow_subnormal=False)) for low, high in definition.limits()]


@settings(max_examples=60, deadline=None)
@given(points())
def test_a_genotype_survives_its_change_and_a_definition_its_json(point: tuple[Definition, list[float]]) -> None:
    definition, vector = point
    assert definition.vector(definition.change(vector)) == vector
    assert Definition.from_json(definition.to_json()) == definition
    canonical(definition.change(vector))


def test_the_coarse_definition_has_one_gene_per_parent_and_the_fine_one_three_per_block() -> None:
    coarse = Definition(Operator.TASK_ARITHMETIC, "b", ("x", "y"))
    fine, vector = coarse.refine([0.25, 0.75], 2)
    assert (coarse.dimensions, fine.dimensions) == (2, 12)
    assert vector == [0.25] * 6 + [0.75] * 6


@pytest.mark.parametrize("operator", sorted(SPARSE))
def test_sparse_operators_have_one_density_per_parent_that_refining_keeps(operator: Operator) -> None:
    coarse = Definition(operator, "b", ("x", "y"))
    fine, vector = coarse.refine([0.5, 0.5, 0.3, 0.9], 2)
    assert fine.change(vector)["density"] == coarse.change([0.5, 0.5, 0.3, 0.9])["density"] == [0.3, 0.9]


def test_genes_outside_the_limits_or_of_the_wrong_number_are_refused() -> None:
    definition = Definition(Operator.TASK_ARITHMETIC, "b", ("x",))
    with pytest.raises(ValueError, match="limits"):
        definition.change([2.6])
    with pytest.raises(ValueError, match="2 genes, the definition 1"):
        definition.change([1.0, 1.0])


def test_slerp_asks_for_two_parents() -> None:
    with pytest.raises(ValueError, match="exactly two"):
        Definition(Operator.SLERP, "b", ("x", "y", "z"))


def test_the_models_of_a_change_are_named_once_each_in_order() -> None:
    change = Definition(Operator.TASK_ARITHMETIC, "m", ("z", "a", "m")).change([1, 1, 1])
    assert models_of(change) == ["a", "m", "z"]
    assert models_of({"kind": "crossover", "parents": ["b", "a"], "split": 0.5, "mix": 0.5}) == ["a", "b"]
