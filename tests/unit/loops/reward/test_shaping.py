"""The ridge rule, the switch, and how evidence is kept."""

from __future__ import annotations

import random

import pytest

from loops.reward.shaping import (
    SUCCESS_DECAY,
    ZERO,
    Evidence,
    Shaping,
    Switch,
    annealed,
    rank_correlation,
    score,
    shaped_reward,
)

NAMES = ("places", "overlap", "varied")


def told(groups: int, reference: bool = True, seed: int = 0) -> Evidence:
    """Groups in which only `places` tells right from wrong; `overlap` speaks against, `varied` is noise."""
    draw = random.Random(seed)
    evidence = Evidence.empty(NAMES)
    for _ in range(groups):
        rows = []
        for place in range(8):
            r0 = 0.0 if reference else float(place < 2)
            places, overlap = 0.2 + 0.6 * r0 + 0.1 * draw.random(), 0.8 - 0.5 * r0 + 0.1 * draw.random()
            rows.append(([places, overlap, draw.random()], r0))
        evidence = evidence.add_group(rows, [1.0, 0.2, 0.5] if reference else None)
    return evidence


def test_the_feature_that_tells_right_from_wrong_gets_the_weight():
    weights = told(20).weights()
    assert weights["places"] > 0.8
    assert "overlap" not in weights


@pytest.mark.parametrize(("reference", "needed"), [(True, 8), (False, 3)])
def test_weights_are_zero_until_enough_groups_have_spoken(reference, needed):
    assert told(needed - 1, reference).weights() == {}
    assert told(needed, reference).weights() != {}


def test_a_group_without_a_reference_in_which_all_are_wrong_says_nothing_but_counts_for_the_success_average():
    evidence = Evidence.empty(NAMES).add_group([([0.1, 0.2, 0.3], 0.0), ([0.4, 0.2, 0.3], 0.0)])
    assert evidence.groups == 0
    assert evidence.success == 0.0
    assert Evidence.empty(NAMES).success is None


def test_the_success_average_fades_by_group():
    evidence = Evidence.empty(NAMES).add_group([([0, 0, 0], 1.0)]).add_group([([0, 0, 0], 0.0)])
    assert evidence.success == pytest.approx(SUCCESS_DECAY / (1 + SUCCESS_DECAY))


def test_decay_fades_statistics_but_neither_weights_nor_the_count_of_groups():
    before = told(10)
    after = before.decay()
    assert after.rows == pytest.approx(0.95 * before.rows)
    assert after.groups == before.groups
    assert after.weights() == pytest.approx(before.weights())


def test_only_allowed_features_get_a_weight():
    assert told(20).weights(allowed=()) == {}
    assert set(told(20).weights(allowed={"varied", "overlap"})) <= {"varied", "overlap"}


def test_evidence_survives_json():
    assert Evidence.from_json(told(5).to_json()) == told(5)


def test_evidence_over_no_features_still_counts_success():
    evidence = Evidence.empty(()).add_group([((), 0.0), ((), 1.0)])
    assert (evidence.success, evidence.weights()) == (0.5, {})


def test_unknown_features_and_too_many_are_refused():
    with pytest.raises(ValueError, match="unknown feature 'beauty'"):
        Evidence.empty(["beauty"])
    with pytest.raises(ValueError, match="at most 8"):
        Evidence.empty(["places"] * 9)


def test_a_strength_above_the_cap_counts_as_the_cap():
    phis = {"places": 1.0}
    assert shaped_reward(0, phis, Shaping({"places": 9.0}, 40.0)) == pytest.approx(0.25)
    assert shaped_reward(1, phis, Shaping({"places": 9.0}, 40.0)) == 1.0
    assert shaped_reward(1, {}, ZERO) == 1.0


def test_the_switch_is_on_under_1_percent_and_off_for_good_above_5():
    assert Switch.OFF.after(None) is Switch.OFF
    assert Switch.OFF.after(0.03) is Switch.OFF
    assert Switch.OFF.after(0.009) is Switch.ON
    assert Switch.ON.after(0.03) is Switch.ON
    assert Switch.ON.after(0.06) is Switch.CLOSED
    assert Switch.CLOSED.after(0.0) is Switch.CLOSED


def test_strength_is_annealed_to_zero_and_no_further():
    assert annealed(0.4, 0, 100) == 0.4
    assert annealed(0.4, 50, 100) == pytest.approx(0.2)
    assert annealed(0.4, 150, 100) == 0.0


def test_rank_correlation_sees_order_ties_and_constants():
    assert rank_correlation([0.1, 0.2, 0.9], [0, 0, 1]) > 0.8
    assert rank_correlation([0.9, 0.2, 0.1], [0, 0, 1]) < 0
    assert rank_correlation([0.5, 0.5], [0, 1]) is None


def test_the_monitors_score_ignores_classes_so_that_partial_credit_ranks_right_answers_high():
    shaping = Shaping({"places": 1.0}, 0.4)
    assert score({"places": 1.0}, shaping) > score({"places": 0.9}, shaping)
