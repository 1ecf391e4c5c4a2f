"""What holds of every merge operator, whatever the tensors: one table of laws, which every operator has to be in."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loops.architecture.genome import Definition, Operator
from loops.work import joining, merge, sparse
from loops.work.build import composed
from safety.operators import OPERATORS

NAMES = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight",
         "model.layers.1.input_layernorm.weight", "lm_head.weight")
SHAPES = ((6, 5), (6, 5), (4, 6), (6,), (6, 5))
Model = dict[str, Tensor]
Genes = dict[str, float]


@dataclass(frozen=True)
class Law:
    """What is true of an operator. `whole` are the genes at which a parent alone is itself, `exact` if to the bit.

    `plain` lists operators that it becomes at some genes, to the bit or not; `zero` says that it gives the base back,
    to the bit, at weights 0; `chance` that it draws; `mirror` the genes that turn round with two swapped parents.
    """

    whole: Genes
    exact: bool = False
    plain: tuple[tuple[Operator, Genes, bool], ...] = ()
    zero: bool = False
    chance: bool = False
    mirror: tuple[str, ...] = ()


ONE, FULL = {"weights": 1.0}, {"weights": 1.0, "density": 1.0}
ALL_OF_IT: Genes = {"density": 1.0}
LAWS: Mapping[Operator, Law] = {
    Operator.LINEAR: Law(ONE, exact=True),
    Operator.TASK_ARITHMETIC: Law(ONE, exact=True, zero=True),
    Operator.SLERP: Law({}, mirror=("t",)),
    Operator.TIES: Law(FULL, zero=True),
    Operator.DARE_LINEAR: Law(FULL, False, ((Operator.TASK_ARITHMETIC, ALL_OF_IT, False),), zero=True, chance=True),
    Operator.DARE_TIES: Law(FULL, False, ((Operator.TIES, ALL_OF_IT, True),), zero=True, chance=True),
    Operator.MULTI_SLERP: Law(ONE, exact=True),
    Operator.MULTI_SLERP_DELTAS: Law(ONE, exact=True, zero=True),
    Operator.KARCHER: Law(ONE, exact=True),
    Operator.DELLA_LINEAR: Law(FULL, False, (
        (Operator.TASK_ARITHMETIC, ALL_OF_IT, False), (Operator.DARE_LINEAR, {"epsilon": 0.0}, True),
    ), zero=True, chance=True),
    Operator.DELLA_TIES: Law(FULL, False, (
        (Operator.TIES, ALL_OF_IT, True), (Operator.DARE_TIES, {"epsilon": 0.0}, True),
    ), zero=True, chance=True),
    Operator.BREADCRUMBS: Law(FULL, False, ((Operator.TASK_ARITHMETIC, ALL_OF_IT, False),), zero=True),
    Operator.BREADCRUMBS_TIES: Law(FULL, False, (
        (Operator.TIES, ALL_OF_IT, True), (Operator.TIES, {"gamma": 0.0}, True),
    ), zero=True),
    Operator.SCE: Law({}),
    Operator.MODEL_STOCK: Law({}, exact=True),
    Operator.PASSTHROUGH: Law({"scales": 1.0}, exact=True, mirror=("source",)),
}
seeds = st.integers(0, 2**32 - 1)
weights = st.floats(0.0, 2.5, allow_subnormal=False)
quick = settings(max_examples=15, deadline=None)
every = pytest.mark.parametrize("operator", list(Operator))


def some_model(seed: int, dtype: torch.dtype = torch.float32) -> Model:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator).to(dtype)
            for name, shape in zip(NAMES, SHAPES, strict=True)}


def models(seed: int, parents: str, dtype: torch.dtype = torch.float32) -> dict[str, Model]:
    return {digest: some_model(seed + place, dtype) for place, digest in enumerate("b" + parents)}


def made(change: dict[str, Any], known: dict[str, Model]) -> Model:
    return dict(composed(change, known))


def alike(left: Model, right: Model) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def near(left: Model, right: Model) -> bool:
    return all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)


def parents_of(operator: Operator, most: int = 3) -> str:
    return "xyz"[: min(most, OPERATORS[operator].most)]


def set_to(definition: Definition, vector: list[float], genes: Genes) -> dict[str, Any]:
    """The change at a point, with single genes set to one value wherever they stand."""
    change = definition.change(vector)
    for name, value in genes.items():
        if name in change:
            change[name] = _all(change[name], value)
    return change


def _all(value: Any, to: float) -> Any:
    return [_all(entry, to) for entry in value] if isinstance(value, list) else to


def point(data: st.DataObject, definition: Definition) -> list[float]:
    return [data.draw(st.floats(low, high, allow_subnormal=False)) for low, high in definition.limits()]


def test_every_operator_has_its_laws() -> None:
    assert LAWS.keys() == OPERATORS.keys() == merge.JOINS.keys() == set(Operator)


@every
@quick
@given(seeds, st.data())
def test_one_parent_alone_is_itself(operator: Operator, seed: int, data: st.DataObject) -> None:
    known, law = models(seed, "x"), LAWS[operator]
    definition = Definition(operator, "b", ("x",) * OPERATORS[operator].fewest)
    single = made(set_to(definition, point(data, definition), law.whole), known)
    assert alike(single, known["x"]) if law.exact else near(single, known["x"])


@every
@quick
@given(seeds, st.data())
def test_parents_that_are_all_the_same_are_that_parent(operator: Operator, seed: int, data: st.DataObject) -> None:
    known, parents = models(seed, "x"), ("x",) * min(3, OPERATORS[operator].most)
    definition, share = Definition(operator, "b", parents), {"weights": 1.0 / 3}
    genes = {**LAWS[operator].whole, **(share if "elected" not in _joins(operator) else {})}
    assert near(made(set_to(definition, point(data, definition), genes), known), known["x"])


def _joins(operator: Operator) -> str:
    return "elected" if operator.endswith("ties") else "sum"


@pytest.mark.parametrize("operator", [each for each in Operator if LAWS[each].zero])
@quick
@given(seeds, st.data())
def test_the_base_comes_back_bit_for_bit_at_weight_zero(operator: Operator, seed: int, data: st.DataObject) -> None:
    known, definition = models(seed, "xy"), Definition(operator, "b", ("x", "y"))
    assert alike(made(set_to(definition, point(data, definition), {"weights": 0.0}), known), known["b"])


@pytest.mark.parametrize("operator", [each for each in Operator if OPERATORS[each].symmetric])
@quick
@given(seeds, st.data(), st.permutations(range(3)))
def test_the_order_in_which_parents_are_named_changes_no_bit(
    operator: Operator, seed: int, data: st.DataObject, order: list[int]
) -> None:
    known, first = models(seed, "xyz"), Definition(operator, "b", ("x", "y", "z"))
    change = first.change(point(data, first))
    swapped = {**change, "parents": ["xyz"[place] for place in order]} | {
        gene.name: [change[gene.name][place] for place in order] for gene in first.genes if gene.per_parent}
    assert alike(made(change, known), made(swapped, known))


@pytest.mark.parametrize("operator", [each for each in Operator if not OPERATORS[each].symmetric])
@quick
@given(seeds, st.data(), st.integers(1, 99))
def test_where_the_order_counts_swapped_parents_mean_the_mirrored_gene(
    operator: Operator, seed: int, data: st.DataObject, share: int
) -> None:
    known, law, mark = models(seed, "xy"), LAWS[operator], (share + 0.5) / 100
    assert law.mirror
    definition, mirrored = (Definition(operator, "b", parents) for parents in (("x", "y"), ("y", "x")))
    vector = point(data, definition)
    one = made(set_to(definition, vector, dict.fromkeys(law.mirror, mark)), known)
    assert near(one, made(set_to(mirrored, vector, dict.fromkeys(law.mirror, 1.0 - mark)), known))


@pytest.mark.parametrize(("operator", "plain", "genes", "exact"), [
    (operator, *case) for operator, law in LAWS.items() for case in law.plain])
@quick
@given(seeds, st.data())
def test_at_some_genes_an_operator_is_its_parent_method(
    operator: Operator, plain: Operator, genes: Genes, exact: bool, seed: int, data: st.DataObject
) -> None:
    known, definition = models(seed, "xy"), Definition(operator, "b", ("x", "y"), seed=seed)
    change = set_to(definition, point(data, definition), genes)
    one, other = made(change, known), made({**change, "operator": plain}, known)
    assert alike(one, other) if exact else near(one, other)


@every
@quick
@given(seeds, st.data())
def test_what_is_drawn_depends_on_the_seed_the_tensor_and_the_parent_only(
    operator: Operator, seed: int, data: st.DataObject
) -> None:
    parents = parents_of(operator)
    known, definition = models(seed, parents), Definition(operator, "b", tuple(parents), seed=seed)
    change = definition.change(point(data, definition))
    shuffled = {digest: dict(reversed(tensors.items())) for digest, tensors in reversed(known.items())}
    torch.manual_seed(seed)                                 # the global generator is not drawn from
    first = made(change, known)
    assert alike(first, made(change, shuffled))
    other = made({**set_to(definition, definition.centre([0.7] * len(parents)), {"density": 0.5}), "seed": 1}, known)
    again = made({**set_to(definition, definition.centre([0.7] * len(parents)), {"density": 0.5}), "seed": 2}, known)
    assert alike(other, again) is not LAWS[operator].chance


def digest_of_everything() -> str:
    """Of what every operator makes of some models, in the process that asks."""
    found = hashlib.sha256()
    for operator in Operator:
        parents = parents_of(operator)
        definition = Definition(operator, "b", tuple(parents), seed=3)
        result = made(definition.change(definition.centre([0.7, 0.4, 0.2])), models(5, parents))
        found.update(b"".join(result[name].numpy().tobytes() for name in sorted(result)))
    return found.hexdigest()


def test_another_process_makes_the_same_bits() -> None:
    here = Path(__file__)
    code = (f"import sys; sys.path[:0] = [{str(here.parent)!r}]; import {here.stem} as laws; "
            "print(laws.digest_of_everything())")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here.parents[2], check=True)
    assert told.stdout.strip() == digest_of_everything()


@every
@quick
@given(seeds, st.data())
def test_bfloat16_is_read_in_float32_and_rounded_once(operator: Operator, seed: int, data: st.DataObject) -> None:
    parents = parents_of(operator)
    known, definition = models(seed, parents, torch.bfloat16), Definition(operator, "b", tuple(parents), seed=seed)
    change = definition.change(point(data, definition))
    exact = made(change, {digest: {name: tensor.float() for name, tensor in model.items()}
                          for digest, model in known.items()})
    assert alike(made(change, known), {name: tensor.bfloat16() for name, tensor in exact.items()})


ODD_SHAPES = ((), (1,), (7,), (0, 3), (1, 1), (5, 1), (1, 5), (3, 2, 4))


@every
@quick
@given(seeds, st.data(), st.sampled_from(ODD_SHAPES))
def test_odd_shapes_zeros_and_opposites_come_out_finite(
    operator: Operator, seed: int, data: st.DataObject, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kinds = st.sampled_from(("random", "zero", "first", "opposite"))
    first = torch.randn(shape, generator=generator)
    parents = parents_of(operator)
    known = {digest: {"w": {
        "random": torch.randn(shape, generator=generator), "zero": torch.zeros(shape), "first": first.clone(),
        "opposite": -first,
    }[data.draw(kinds)]} for digest in "b" + parents}
    definition = Definition(operator, "b", tuple(parents), seed=seed)
    result = made(definition.change(point(data, definition)), known)["w"]
    assert result.shape == shape
    assert result.isfinite().all()


@every
@quick
@given(seeds, st.data(), st.integers(1, 40))
def test_the_size_of_the_blocks_changes_no_bit(
    operator: Operator, seed: int, data: st.DataObject, entries: int
) -> None:
    parents = parents_of(operator)
    known, definition = models(seed, parents), Definition(operator, "b", tuple(parents), seed=seed)
    change = definition.change(point(data, definition))
    whole = made(change, known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joining, "BLOCK", entries)
        assert alike(made(change, known), whole)


@every
@quick
@given(seeds, st.data())
def test_a_split_definition_with_equal_genes_builds_what_the_shared_one_builds(
    operator: Operator, seed: int, data: st.DataObject
) -> None:
    parents = parents_of(operator)
    known, coarse = models(seed, parents), Definition(operator, "b", tuple(parents), seed=seed)
    vector = point(data, coarse)
    fine, spread = coarse.refine(vector, 2)
    assert alike(made(coarse.change(vector), known), made(fine.change(spread), known))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@every
def test_a_candidate_keeps_the_dtype_of_its_template(operator: Operator, dtype: torch.dtype) -> None:
    definition = Definition(operator, "b", ("x", "y"))
    change = definition.change(definition.centre([0.5, 0.5]))
    assert {tensor.dtype for tensor in made(change, models(1, "xy", dtype)).values()} == {dtype}


def test_masks_differ_between_tensors_and_between_parents() -> None:
    known = models(1, "xy")
    for operator in (Operator.DARE_LINEAR, Operator.DELLA_LINEAR):
        definition = Definition(operator, "b", ("x", "y"))
        change = set_to(definition, definition.centre([1.0, 1.0]), {"density": 0.5})
        left, right = (made(replace_weights(change, share), known) for share in ([1.0, 0.0], [0.0, 1.0]))
        gone = {digest: {name: each[name] == known["b"][name] for name in NAMES} for digest, each in
                (("x", left), ("y", right))}
        assert not torch.equal(gone["x"][NAMES[0]], gone["y"][NAMES[0]])
        assert not torch.equal(gone["x"][NAMES[0]], gone["x"][NAMES[1]])


@pytest.mark.parametrize("density", [0.03, 0.5, 0.9999])
@pytest.mark.parametrize("prune", [sparse.dropped, sparse.dropped_by_rank])
def test_masks_keep_each_column_as_often_as_the_density_says(
    prune: Callable[[joining.Inputs], joining.Prune], density: float
) -> None:
    rows, columns = 30_000, 7
    ones = torch.ones(rows, columns)
    kept = prune(joining.Inputs(torch.zeros_like(ones), [ones], {"density": [density], "epsilon": 0.0}, [1]))(ones, 0)
    error = (density * (1.0 - density) / rows) ** 0.5 / density
    assert torch.allclose(kept.mean(0), torch.ones(columns), rtol=0.0, atol=4.5 * error + 2.0**-16 / density)
    assert float(kept.max()) == pytest.approx(1.0 / density)


def replace_weights(change: dict[str, Any], share: list[float]) -> dict[str, Any]:
    return {**change, "weights": [_all(table, part) for table, part in zip(change["weights"], share, strict=True)]}


@quick
@given(seeds, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_crossover_of_a_model_with_itself_is_that_model(seed: int, split: float, mix: float) -> None:
    known = models(seed, "x")
    assert near(made({"kind": "crossover", "parents": ["x", "x"], "split": split, "mix": mix}, known), known["x"])


@quick
@given(seeds, st.integers(0, 120))
def test_a_crossover_at_mix_zero_takes_the_first_parent_below_the_split_and_the_second_above(
    seed: int, point: int
) -> None:
    known = models(seed, "xy")
    child = made({"kind": "crossover", "parents": ["x", "y"], "split": (point + 0.5) / 120.5, "mix": 0.0}, known)
    flat, x, y = (torch.cat([held[name].flatten() for name in child]) for held in (child, known["x"], known["y"]))
    cut = int((point + 0.5) / 120.5 * 120)
    assert torch.equal(flat[:cut], x[:cut])
    assert torch.equal(flat[cut:], y[cut:])
