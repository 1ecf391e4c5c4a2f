"""The promise in numbers: simulated lives of nominations against one vault, false releases counted.

A life has a vault of items and one stable model; every nomination brings a model whose answers differ from the first
one's on some items. Where all of them are equally good, every release is false. The vault is the same throughout a
life, so what the stable model's luck on it does to all its challengers is in the simulation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from simulated import ACCURACY, CHURN, Array, answers, first_crossing

from safety.eprocess import EProcess
from safety.gate import Rules, decide, level

FUTILITY = 20.0


def released(differences: Array, k: int, alpha: float, least_gain: float = 0.03) -> npt.NDArray[np.bool_]:
    """Which lives' k-th nomination passes the gate, futility included."""
    better = first_crossing(differences, 1 / level(k, alpha))
    hopeless = first_crossing((least_gain - differences) / (1 + least_gain), FUTILITY)
    return (better < differences.shape[1]) & (better < hopeless)


def lives(count: int, nominations: int, items: int, alpha: float, seed: int) -> tuple[float, float]:
    """Share of lives with at least one release by the gate, and by 'score > champion', where no model is better."""
    rng = np.random.default_rng(seed)
    first = (rng.random((count, items)) < ACCURACY).astype(np.float64)
    gate_stable, greedy_stable = first.copy(), first.copy()
    by_gate, by_score = np.zeros(count, bool), np.zeros(count, bool)
    for k in range(1, nominations + 1):
        new = answers(rng, first)
        passed = released(new - gate_stable, k, alpha)
        by_gate |= passed
        gate_stable = np.where(passed[:, None], new, gate_stable)
        higher = new.mean(axis=1) > greedy_stable.mean(axis=1)
        by_score |= higher
        greedy_stable = np.where(higher[:, None], new, greedy_stable)
    return float(by_gate.mean()), float(by_score.mean())


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_lives_without_a_better_model_see_a_release_no_more_often_than_alpha(alpha: float) -> None:
    by_gate, _ = lives(count=1500, nominations=10, items=300, alpha=alpha, seed=1)
    assert by_gate <= alpha


def test_a_higher_score_than_the_champion_releases_falsely_in_nearly_every_life() -> None:
    by_gate, by_score = lives(count=400, nominations=10, items=300, alpha=0.05, seed=2)
    assert by_score > 0.95
    assert by_gate <= 0.05


def test_looking_after_every_item_is_safe_where_a_repeated_plain_test_is_not() -> None:
    """One comparison watched all along at 5 %: the e-process stays under, a z-test looked at often does not."""
    rng = np.random.default_rng(3)
    moves = rng.choice([-1.0, 0.0, 1.0], p=[CHURN / 2, 1 - CHURN, CHURN / 2], size=(2000, 1000))
    e_alarms = (first_crossing(moves, 20.0) < moves.shape[1]).mean()
    steps = np.arange(1, moves.shape[1] + 1)
    z = np.cumsum(moves, axis=1) / np.sqrt(CHURN * steps)
    z_alarms = (z[:, 50:] > 1.645).any(axis=1).mean()
    assert e_alarms <= 0.05
    assert z_alarms > 0.15


def test_a_gain_of_eight_points_is_released_in_most_lives_on_a_thousand_items() -> None:
    rng = np.random.default_rng(4)
    first = (rng.random((200, 1000)) < ACCURACY).astype(np.float64)
    for k in (1, 10):
        passed = released(answers(rng, first, gain=0.08) - first, k, 0.05)
        assert passed.mean() > 0.8


def test_a_worse_model_is_given_up_after_a_part_of_the_vault() -> None:
    rng = np.random.default_rng(5)
    first = (rng.random((200, 1000)) < ACCURACY).astype(np.float64)
    worse = answers(rng, first, gain=-0.08) - first
    assert released(worse, 1, 0.05).mean() == 0
    assert np.median(first_crossing((0.03 - worse) / 1.03, FUTILITY)) < 400


def test_a_guard_that_lost_its_margin_passes_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(6)
    margin = 0.03
    lost = rng.choice([-1.0, 0.0, 1.0], p=[0.08, 0.87, 0.05], size=(3000, 600))
    assert (first_crossing(lost, 20.0, -margin) < lost.shape[1]).mean() <= 0.05
    held = rng.choice([-1.0, 0.0, 1.0], p=[0.01, 0.98, 0.01], size=(300, 600))
    assert (first_crossing(held, 20.0, -margin) < held.shape[1]).mean() > 0.8


def test_the_simulation_decides_as_the_gate_does() -> None:
    rng = np.random.default_rng(7)
    rules = Rules(2, 0.3, 0.0, 0.03, {})
    streams = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=(40, 150))
    mine = released(streams, 2, 0.3)
    theirs = [str(decide(rules, [row.tolist()], {}).decision) == "release" for row in streams]
    assert mine.tolist() == theirs
    assert 0 < sum(theirs) < 40
    process = EProcess(0.01)
    e = [process.add(d) for d in streams[0].tolist()]
    threshold = max(e) * 0.999
    place = first_crossing(streams[:1], threshold, 0.01)[0]
    assert place == next(i for i, value in enumerate(e) if value >= threshold)
