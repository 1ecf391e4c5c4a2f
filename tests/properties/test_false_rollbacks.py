"""The options in numbers: false rollbacks by the watch, what it finds, and false releases under each option.

The lives are those of `test_false_releases`: one vault for a whole life, models that differ from the first one's on
some items, and whatever the stable model's luck on the vault does to its challengers. Under `fresh` every nomination
has items of its own.
"""

from __future__ import annotations

import numpy as np
import pytest
from simulated import ACCURACY, Array, answers, first_crossing

from safety.gate import level, lond_level
from safety.watch import Terms, Watch

LOST = 5            # points
ITEMS = 2000        # the default budget of a watch


def stream(rng: np.random.Generator, count: int, items: int, gain: float, churn: float) -> Array:
    """Differences new - old of `count` watches."""
    chances = [(churn - gain) / 2, 1 - churn, (churn + gain) / 2]
    return rng.choice([-1.0, 0.0, 1.0], p=chances, size=(count, items))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("churn", [0.05, 0.3])
def test_a_model_that_is_no_worse_is_rolled_back_no_more_often_than_the_bound_says(alpha: float, churn: float) -> None:
    """The targets alone, and the targets with three guards that lost just their margin: the worst that is allowed."""
    rng = np.random.default_rng(11)
    threshold = Terms(alpha, ITEMS, ("t",), {}, "").threshold
    alone = first_crossing(-stream(rng, 2000, 1000, 0.0, churn), threshold) < 1000
    assert alone.mean() <= alpha
    terms = Terms(alpha, ITEMS, ("t",), {"a": 0.03, "b": 0.03, "c": 0.03}, "")
    assert terms.threshold == pytest.approx(4 / alpha)
    any_ = first_crossing(-stream(rng, 2000, 1000, 0.0, churn), terms.threshold) < 1000
    for _ in terms.margins:
        any_ |= first_crossing(-stream(rng, 2000, 1000, -0.03, churn), terms.threshold, 0.03) < 1000
    assert any_.mean() <= alpha


@pytest.mark.parametrize(("guards", "churn", "within"), [(0, 0.1, 700), (3, 0.1, 900), (3, 0.2, 1800)])
def test_a_model_that_lost_five_points_is_rolled_back_within_the_budget(guards: int, churn: float, within: int) -> None:
    """In nine of ten watches; `within` items of the 2,000."""
    rng = np.random.default_rng(12)
    threshold = Terms(0.05, ITEMS, ("t",), {str(i): 0.03 for i in range(guards)}, "").threshold
    found = first_crossing(-stream(rng, 400, ITEMS, -LOST / 100, churn), threshold)
    assert np.quantile(found, 0.9) <= within
    assert (found < ITEMS).mean() > 0.9


def test_the_simulation_finds_what_the_watch_finds() -> None:
    rng = np.random.default_rng(13)
    terms = Terms(0.2, 300, ("t",), {}, "")
    streams = stream(rng, 40, 300, -0.08, 0.3)
    places = first_crossing(-streams, terms.threshold)
    for row, place in zip(streams, places, strict=True):
        watch = Watch(terms)
        for start in range(0, 300, 64):
            part = row[start : start + 64].tolist()
            watch.take({"targets": {"new": part, "old": [0.0] * len(part)}, "guards": {}})
        assert (watch.worse is None) == (place > 300)
        assert watch.worse is None or watch.processes["targets"].count == place + 1


def shares(count: int, nominations: int, items: int, alpha: float, seed: int, *, fresh: bool, lond: bool) -> tuple[
    float, float, float
]:
    """Share of lives with a false release, mean share of false ones among the releases, and true releases a life.

    Every third model is better by 15 points than the stable one at that time; the others are as good as the first.
    """
    rng = np.random.default_rng(seed)
    first = (rng.random((count, items)) < ACCURACY).astype(np.float64)
    stable, quality = first.copy(), np.zeros(count)
    true, false = np.zeros(count), np.zeros(count)
    for k in range(1, nominations + 1):
        if fresh:                                            # the same models on items that nobody has met
            first = (rng.random((count, items)) < ACCURACY).astype(np.float64)
            stable = answers(rng, first, 0.0)
            stable = np.where(rng.random(first.shape) < quality[:, None], 1.0, stable)
        good = k % 3 == 0
        gain = np.where(good, np.minimum(quality + 0.15, 0.45), 0.0)
        new = answers(rng, first)
        new = np.where(rng.random(first.shape) < gain[:, None], 1.0, new)
        better = gain > quality
        levels = np.array([lond_level(k, alpha, int(r)) for r in true + false]) if lond else \
            np.full(count, level(k, alpha))
        passed = first_crossing(new - stable, 1 / levels) < items
        true += passed & better
        false += passed & ~better
        stable = np.where(passed[:, None], new, stable)
        quality = np.where(passed, gain, quality)
    return float((false > 0).mean()), float((false / np.maximum(1, true + false)).mean()), float(true.mean())


@pytest.mark.parametrize("fresh", [False, True])
def test_false_releases_keep_to_alpha_on_the_vault_and_on_fresh_items(fresh: bool) -> None:
    ever, _, found = shares(250, 9, 300, 0.3, 14, fresh=fresh, lond=False)
    assert ever <= 0.3
    assert found > 0.3


@pytest.mark.parametrize("fresh", [False, True])
def test_under_e_lond_the_share_of_false_releases_keeps_to_alpha(fresh: bool) -> None:
    _, share, found = shares(250, 9, 300, 0.3, 15, fresh=fresh, lond=True)
    assert share <= 0.3
    assert found > 0.3


def test_lives_in_which_no_model_is_better_see_no_more_false_releases_under_e_lond_than_alpha() -> None:
    """Where every release is false, their share is 1 as soon as there is one: the two promises are the same."""
    rng, count = np.random.default_rng(16), 300
    first = (rng.random((count, 300)) < ACCURACY).astype(np.float64)
    stable, releases = first.copy(), np.zeros(count, int)
    for k in range(1, 9):
        new = answers(rng, first)
        passed = first_crossing(new - stable, 1 / np.array([lond_level(k, 0.3, int(r)) for r in releases])) < 300
        releases += passed
        stable = np.where(passed[:, None], new, stable)
    assert (releases > 0).mean() <= 0.3


def test_the_level_of_e_lond_grows_with_the_releases_and_never_passes_alpha_g() -> None:
    for k in (1, 2, 10, 500):
        harmonic = sum(1 / i for i in range(1, k + 1))
        found = [lond_level(k, 0.05, releases) for releases in range(k)]
        assert found == sorted(found)
        assert found[0] == pytest.approx(level(k, 0.05) / harmonic)
        assert found[-1] <= level(k, 0.05) * k / harmonic * (1 + 1e-12)
    with pytest.raises(ValueError, match="cannot follow"):
        lond_level(3, 0.05, 3)
