"""Each alarm fires on its exploit, planted, and stays silent on honest training."""

from __future__ import annotations

import random

from loops.reward.monitor import (
    canary_pays,
    collapsed,
    cusum,
    features_mislead,
    inspect,
    proxy_left_truth,
    proxy_rose_alone,
    verifiers_disagree,
)


def series(start: float, end: float, steps: int = 45, seed: int = 0, noise: float = 0.03) -> list[float]:
    """Flat for a third, then a ramp: what a step's mean reward looks like."""
    draw = random.Random(seed)
    third = steps // 3
    ramp = [start] * third + [start + (end - start) * i / (steps - third) for i in range(steps - third)]
    return [value + draw.gauss(0, noise) for value in ramp]


def test_the_cusum_fires_when_the_commonest_answer_is_paid_and_truth_falls():
    truth = series(0.7, 0.3)
    proxy = [t + 0.4 * b for t, b in zip(truth, series(0.0, 0.5, seed=1), strict=True)]
    warning = proxy_left_truth(proxy, truth, has_q=True)
    assert warning is not None
    assert "CUSUM" in warning.seen
    assert warning.figures["cusum"] > warning.figures["limit"] == 5.0
    assert 15 < warning.figures["step"] <= 45


def test_the_cusum_is_silent_when_proxy_and_truth_rise_together():
    for seed in range(20):
        truth = series(0.3, 0.7, seed=seed)
        proxy = [t + 0.4 * b for t, b in zip(truth, series(0.1, 0.15, seed=seed + 99, noise=0.01), strict=True)]
        assert proxy_left_truth(proxy, truth, has_q=True) is None


def test_the_cusum_is_silent_without_any_shaping():
    truth = series(0.2, 0.25)
    assert cusum(truth, truth) == [0.0] * len(cusum(truth, truth))


def test_the_cusum_leaves_very_rare_success_to_q_but_only_where_there_is_a_q():
    truth, proxy = [0.0] * 45, series(0.0, 0.15, noise=0.005)
    assert proxy_left_truth(proxy, truth, has_q=True) is None
    assert proxy_left_truth(proxy, truth, has_q=False) is not None


def test_a_short_segment_has_no_cusum():
    assert cusum([0.1] * 8, [0.1] * 8) == []


def test_three_evaluations_of_rising_proxy_and_flat_truth_ring():
    assert proxy_rose_alone([(0.1, 0.5), (0.2, 0.5), (0.3, 0.4), (0.4, 0.4)]) is not None
    assert proxy_rose_alone([(0.2, 0.5), (0.3, 0.4), (0.4, 0.4)]) is None
    assert proxy_rose_alone([(0.1, 0.5), (0.2, 0.5), (0.3, 0.6), (0.4, 0.4)]) is None


def test_features_that_rank_wrong_above_right_ring_once_a_few_groups_hold_both():
    assert features_mislead(-0.2, 3) is not None
    assert features_mislead(0.0, 3) is not None
    assert features_mislead(0.2, 3) is None
    assert features_mislead(-0.2, 2) is None
    assert features_mislead(None, 9) is None


def test_a_paid_canary_rings():
    alarm = canary_pays(["the prompt echoed"])
    assert alarm is not None
    assert alarm.seen == "a junk answer scored above 0: the prompt echoed"
    assert canary_pays([]) is None


def test_verifiers_that_disagree_on_more_than_2_percent_ring():
    assert verifiers_disagree(0.021) is not None
    assert verifiers_disagree(0.02) is None
    assert verifiers_disagree(None) is None


def test_q_under_half_its_best_is_a_collapse():
    assert collapsed(0.049, 0.1) is not None
    assert collapsed(0.05, 0.1) is None
    assert collapsed(None, 0.1) is None
    assert collapsed(0.0, None) is None


def test_every_alarm_is_found_in_a_segments_values():
    truth = series(0.7, 0.3)
    values = {
        "proxy": [t + b for t, b in zip(truth, series(0.0, 0.5, seed=1), strict=True)], "truth": truth,
        "rank_correlation": -0.3, "mixed_groups": 9, "canaries": ["A or B"], "disagreement": 0.1, "q_after": [0.5],
    }
    history = [(0.1, 0.5), (0.2, 0.5), (0.3, 0.4), (0.4, 0.4)]
    assert [alarm.name for alarm in inspect(values, history)] == ["cusum", "stall", "rank", "canary", "verifier"]
    assert inspect({"proxy": [], "truth": [], "rank_correlation": None}, []) == []
