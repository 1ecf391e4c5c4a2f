"""Algebra of the paired comparison and of drawing."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from safety.yardstick.compare import paired, sign_test, wilson
from safety.yardstick.items import item_id, normalised
from safety.yardstick.scoring import _bucket

scores = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=80)


@given(scores)
def test_swapping_the_models_swaps_wins_and_losses_and_negates_the_mean(pairs: list[tuple[float, float]]) -> None:
    new, old = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = paired(new, old), paired(old, new)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert math.isclose(there.mean, -back.mean, abs_tol=1e-12)
    assert there.p_value + back.p_value >= 1.0 - 1e-9


@given(scores, st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(pairs: list[tuple[float, float]], random: object) -> None:
    shuffled = sorted(pairs)
    one = paired([a for a, _ in pairs], [b for _, b in pairs])
    two = paired([a for a, _ in shuffled], [b for _, b in shuffled])
    assert (one.n, one.wins, one.losses, one.p_value) == (two.n, two.wins, two.losses, two.p_value)


@given(st.integers(1, 60), st.data())
def test_the_sign_test_is_the_binomial_tail(n: int, data: st.DataObject) -> None:
    wins = data.draw(st.integers(0, n))
    exact = sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n
    assert math.isclose(sign_test(wins, n), exact, rel_tol=1e-9)


@given(st.integers(1, 10_000), st.data())
def test_wilson_surrounds_the_proportion(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0.0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1.0


@given(st.text(max_size=40))
@settings(max_examples=200)
def test_normalising_white_space_never_changes_an_id(text: str) -> None:
    assert item_id(text) == item_id("  " + text.replace(" ", "\t ") + "\n")
    assert normalised(text) == " ".join(normalised(text).split())


@given(st.integers(0, 5_000))
def test_a_bucket_is_never_too_short_nor_half_too_long(length: int) -> None:
    size = _bucket(length)
    assert length <= size and (size <= 8 or size <= max(length + 8, 1.5 * length))
    assert _bucket(size) == size
