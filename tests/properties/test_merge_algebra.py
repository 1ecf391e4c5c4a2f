"""What holds of every merge operator, whatever the tensors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loops.architecture.genome import Definition, Operator
from loops.work import merge
from loops.work.build import composed

NAMES = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight",
         "model.layers.1.input_layernorm.weight", "lm_head.weight")
OVER_A_BASE = (Operator.TASK_ARITHMETIC, Operator.TIES, Operator.DARE_LINEAR, Operator.DARE_TIES)
SYMMETRIC = (Operator.LINEAR, *OVER_A_BASE)
seeds = st.integers(0, 2**32 - 1)
weights = st.floats(0.0, 2.5, allow_subnormal=False)
densities = st.floats(0.1, 1.0, allow_subnormal=False)
quick = settings(max_examples=30, deadline=None)


def some_model(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(6, 5, generator=generator).to(dtype) for name in NAMES}


def models(seed: int, parents: str, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, Tensor]]:
    return {digest: some_model(seed + place, dtype) for place, digest in enumerate("b" + parents)}


def made(change: dict[str, Any], known: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return dict(composed(change, known))


def alike(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def near(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)


@quick
@given(seeds, st.sampled_from((Operator.LINEAR, Operator.TASK_ARITHMETIC)))
def test_one_parent_at_weight_one_is_that_parent_bit_for_bit(seed: int, operator: Operator) -> None:
    known = models(seed, "x")
    assert alike(made(Definition(operator, "b", ("x",)).change([1.0]), known), known["x"])


@quick
@given(seeds, st.sampled_from((Operator.TIES, Operator.DARE_LINEAR, Operator.DARE_TIES)))
def test_one_parent_at_weight_and_density_one_is_that_parent_up_to_rounding(seed: int, operator: Operator) -> None:
    known = models(seed, "x")
    assert near(made(Definition(operator, "b", ("x",)).change([1.0, 1.0]), known), known["x"])


@quick
@given(seeds, st.sampled_from(OVER_A_BASE), densities)
def test_the_base_comes_back_bit_for_bit_at_weight_zero(seed: int, operator: Operator, density: float) -> None:
    known = models(seed, "xy")
    definition = Definition(operator, "b", ("x", "y"))
    genes = [0.0, 0.0] + [density, density] * (definition.dimensions > 2)
    assert alike(made(definition.change(genes), known), known["b"])


@quick
@given(seeds, st.sampled_from(SYMMETRIC), st.lists(weights, min_size=3, max_size=3),
       st.lists(densities, min_size=3, max_size=3), st.permutations(range(3)))
def test_the_order_in_which_parents_are_named_changes_no_bit(
    seed: int, operator: Operator, w: list[float], d: list[float], order: list[int]
) -> None:
    known = models(seed, "xyz")
    first = Definition(operator, "b", ("x", "y", "z"))
    second = Definition(operator, "b", tuple("xyz"[place] for place in order))
    sparse = first.dimensions > 3
    swapped = [w[place] for place in order] + [d[place] for place in order] * sparse
    assert alike(made(first.change(w + d * sparse), known), made(second.change(swapped), known))


@quick
@given(seeds, st.floats(0.0, 1.0, allow_subnormal=False))
def test_slerp_of_swapped_parents_runs_the_same_arc_backwards(seed: int, t: float) -> None:
    a, b = some_model(seed)[NAMES[0]], some_model(seed + 1)[NAMES[0]]
    assert torch.allclose(merge.slerp(a, b, t), merge.slerp(b, a, 1.0 - t), atol=1e-5)


@quick
@given(seeds)
def test_slerp_starts_and_ends_at_its_parents_bit_for_bit(seed: int) -> None:
    a, b = some_model(seed)[NAMES[0]], some_model(seed + 1)[NAMES[0]]
    assert torch.equal(merge.slerp(a, b, 0.0), a)
    assert torch.equal(merge.slerp(a, b, 1.0), b)


@quick
@given(seeds, st.floats(0.0, 1.0, allow_subnormal=False), st.floats(0.1, 3.0))
def test_slerp_of_parallel_tensors_is_linear_and_finite(seed: int, t: float, scale: float) -> None:
    a = some_model(seed)[NAMES[0]]
    assert torch.allclose(merge.slerp(a, a * scale, t), a * (1 - t + t * scale), atol=1e-4)
    assert torch.equal(merge.slerp(torch.zeros(3), torch.zeros(3), t), torch.zeros(3))


@quick
@given(seeds, weights, weights)
def test_dare_at_density_one_is_its_parent_method(seed: int, v: float, w: float) -> None:
    known = models(seed, "xy")
    genes = [v, w, 1.0, 1.0]
    plain = made(Definition(Operator.TASK_ARITHMETIC, "b", ("x", "y")).change([v, w]), known)
    assert near(made(Definition(Operator.DARE_LINEAR, "b", ("x", "y")).change(genes), known), plain)
    ties = made(Definition(Operator.TIES, "b", ("x", "y")).change(genes), known)
    assert alike(made(Definition(Operator.DARE_TIES, "b", ("x", "y")).change(genes), known), ties)


@quick
@given(seeds, densities)
def test_top_magnitudes_keeps_the_share_it_was_asked_for_and_the_largest(seed: int, density: float) -> None:
    delta = some_model(seed)[NAMES[0]]
    kept = merge.top_magnitudes(delta, density)
    assert int((kept != 0).sum()) == max(1, math.ceil(density * delta.numel()))
    if (kept == 0).any():
        assert delta[kept != 0].abs().min() >= delta[kept == 0].abs().max()


@quick
@given(seeds, seeds)
def test_dare_depends_on_the_seed_and_the_tensor_name_only(seed: int, other: int) -> None:
    known = models(seed, "xy")
    change = Definition(Operator.DARE_LINEAR, "b", ("x", "y"), seed=other).change([0.7, 0.9, 0.5, 0.5])
    shuffled = {digest: dict(reversed(tensors.items())) for digest, tensors in known.items()}
    torch.manual_seed(other)                                # the global generator is not drawn from
    first = made(change, known)
    assert alike(first, made(change, shuffled))
    reseeded = Definition(Operator.DARE_LINEAR, "b", ("x", "y"), seed=other + 1).change([0.7, 0.9, 0.5, 0.5])
    assert not alike(first, made(reseeded, known))
    assert not torch.equal(*(first[name] - known["b"][name] == 0 for name in NAMES[:2]))


@quick
@given(seeds, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_crossover_of_a_model_with_itself_is_that_model(seed: int, split: float, mix: float) -> None:
    known = models(seed, "x")
    assert near(made({"kind": "crossover", "parents": ["x", "x"], "split": split, "mix": mix}, known), known["x"])


@quick
@given(seeds, st.integers(0, 150))
def test_a_crossover_at_mix_zero_takes_the_first_parent_below_the_split_and_the_second_above(
    seed: int, point: int
) -> None:
    known = models(seed, "xy")
    child = made({"kind": "crossover", "parents": ["x", "y"], "split": (point + 0.5) / 150.5, "mix": 0.0}, known)
    flat, x, y = (torch.cat([held[name].flatten() for name in child]) for held in (child, known["x"], known["y"]))
    cut = int((point + 0.5) / 150.5 * 150)
    assert torch.equal(flat[:cut], x[:cut])
    assert torch.equal(flat[cut:], y[cut:])


@quick
@given(seeds, st.lists(weights, min_size=12, max_size=12))
def test_a_split_definition_with_equal_genes_builds_what_the_shared_one_builds(seed: int, w: list[float]) -> None:
    known = models(seed, "xy")
    coarse = Definition(Operator.TASK_ARITHMETIC, "b", ("x", "y"))
    fine, vector = coarse.refine(w[:2], 2)
    assert alike(made(coarse.change(w[:2]), known), made(fine.change(vector), known))
    assert fine.vector(fine.change(w)) == w


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("operator", list(Operator))
def test_a_candidate_keeps_the_dtype_of_its_template(operator: Operator, dtype: torch.dtype) -> None:
    definition = Definition(operator, "b", ("x", "y"))
    change = definition.change(definition.centre([0.5, 0.5]))
    assert {tensor.dtype for tensor in made(change, models(1, "xy", dtype)).values()} == {dtype}


def test_ties_takes_the_mean_of_those_that_agree_with_the_heavier_sign() -> None:
    base = torch.zeros(3)
    a, b, c = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([3.0, 3.0, 0.0]), torch.tensor([-1.0, -1.0, 2.0])
    assert merge.sign_elected(base, [a, b, c], [1.0, 1.0, 1.0], lambda delta, place: delta).tolist() == [2.0, 3.0, 2.0]
