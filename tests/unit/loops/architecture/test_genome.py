"""Definitions, genotypes and changes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops.architecture.genome import MODULES, Definition, Operator, genes_at, models_of
from safety.operators import MOST_PARENTS, OPERATORS
from state.records import canonical


@st.composite
def points(draw: st.DrawFn) -> tuple[Definition, list[float]]:
    operator = draw(st.sampled_from(list(Operator)))
    count = draw(st.integers(OPERATORS[operator].fewest, OPERATORS[operator].most))
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


@settings(max_examples=60, deadline=None)
@given(points())
def test_a_cell_has_a_number_of_each_gene_within_its_limits(point: tuple[Definition, list[float]]) -> None:
    definition, vector = point
    change, places = definition.change(vector), list(range(len(definition.parents)))
    for group in range(definition.groups):
        for module in range(len(MODULES)):
            found, turned = (genes_at(change, group, module, order) for order in (places, places[::-1]))
            assert found.keys() == {gene.name for gene in definition.genes}
            for gene in definition.genes:
                numbers = found[gene.name] if gene.per_parent else [found[gene.name]]
                assert len(numbers) == (len(places) if gene.per_parent else 1)
                assert all(gene.low <= number <= gene.high for number in numbers)
                assert turned[gene.name] == (numbers[::-1] if gene.per_parent else numbers[0])


@pytest.mark.parametrize("operator", list(Operator))
def test_a_search_begins_within_the_limits_at_the_weights_it_is_given(operator: Operator) -> None:
    definition = Definition(operator, "b", ("x", "y"), 2, shared=False)
    change = definition.change(definition.centre([0.25, 0.75]))
    if "weights" in change:
        assert change["weights"] == [[[0.25] * 3] * 2, [[0.75] * 3] * 2]


def test_the_coarse_definition_has_one_gene_per_parent_and_the_fine_one_three_per_block() -> None:
    coarse = Definition(Operator.TASK_ARITHMETIC, "b", ("x", "y"))
    fine, vector = coarse.refine([0.25, 0.75], 2)
    assert (coarse.dimensions, fine.dimensions) == (2, 12)
    assert vector == [0.25] * 6 + [0.75] * 6


@pytest.mark.parametrize("operator", [each for each in Operator if "density" in str(OPERATORS[each].genes)])
def test_sparse_operators_have_one_density_per_parent_that_refining_keeps(operator: Operator) -> None:
    coarse = Definition(operator, "b", ("x", "y"))
    vector = [0.5, 0.5, 0.3, 0.9, 0.1][: coarse.dimensions]
    fine, spread = coarse.refine(vector, 2)
    assert fine.change(spread)["density"] == coarse.change(vector)["density"] == [0.3, 0.9]


def test_genes_outside_the_limits_or_of_the_wrong_number_are_refused() -> None:
    definition = Definition(Operator.TASK_ARITHMETIC, "b", ("x",))
    with pytest.raises(ValueError, match="limits"):
        definition.change([2.6])
    with pytest.raises(ValueError, match="2 genes, the definition 1"):
        definition.change([1.0, 1.0])


@pytest.mark.parametrize(("operator", "parents", "words"), [
    (Operator.SLERP, 3, "slerp joins exactly 2 parents, not 3"),
    (Operator.SLERP, 1, "slerp joins exactly 2 parents, not 1"),
    (Operator.KARCHER, MOST_PARENTS + 1, "karcher joins 1 to 8 parents, not 9"),
    (Operator.TIES, 0, "ties joins 1 to 8 parents, not 0"),
])
def test_a_number_of_parents_that_an_operator_does_not_join_is_refused(
    operator: Operator, parents: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Definition(operator, "b", tuple(f"p{place}" for place in range(parents)))


def test_the_models_of_a_change_are_named_once_each_in_order() -> None:
    change = Definition(Operator.TASK_ARITHMETIC, "m", ("z", "a", "m")).change([1, 1, 1])
    assert models_of(change) == ["a", "m", "z"]
    assert models_of({"kind": "crossover", "parents": ["b", "a"], "split": 0.5, "mix": 0.5}) == ["a", "b"]
