"""Which arm of a segment is kept."""

from __future__ import annotations

import random

import pytest

from loops.reward.arms import advantage, improvement, paired, weigh


def arm(before: float, after: float, seed: int = 0, **values):
    draw = random.Random(seed)
    noise = [draw.gauss(0, 0.02) for _ in range(64)]
    return {"model": "m", "checkpoint": "c", "values": {
        "q_before": [before + n for n in noise], "q_after": [after + n + draw.gauss(0, 0.02) for n in noise],
        "truth": [before] * 10, "proxy": [before] * 10, "rank_correlation": 0.5, "mixed_groups": 5, **values,
    }}


def test_without_a_shaping_a_segment_is_accepted_only_if_q_rose_clearly():
    assert weigh({"zero": arm(0.2, 0.3)}, None, []).accepted
    assert not weigh({"zero": arm(0.2, 0.2, seed=3)}, None, []).accepted
    assert not weigh({"zero": arm(0.2, 0.1)}, None, []).accepted


def test_a_shaping_is_kept_only_when_clearly_better_than_zero():
    better = weigh({"zero": arm(0.2, 0.3), "shaped": arm(0.2, 0.4)}, None, [])
    assert (better.arm, better.accepted) == ("shaped", True)


def test_a_tie_is_zero():
    same = arm(0.2, 0.3)
    weighing = weigh({"zero": same, "shaped": same}, None, [])
    assert (weighing.arm, weighing.accepted, weighing.over_zero.mean) == ("zero", True, 0.0)


def test_an_alarm_puts_the_shaped_arm_out_and_may_keep_its_control():
    weighing = weigh({"zero": arm(0.2, 0.3), "shaped": arm(0.2, 0.9, rank_correlation=-0.5)}, None, [])
    assert (weighing.arm, weighing.accepted, [a.name for a in weighing.alarms]) == ("zero", True, ["rank"])


def test_a_collapse_below_half_the_best_q_puts_the_shaped_arm_out():
    weighing = weigh({"zero": arm(0.2, 0.3), "shaped": arm(0.2, 0.01)}, 0.25, [])
    assert weighing.arm == "zero"
    assert weighing.guard is not None
    assert weighing.accepted


def test_what_stays_under_half_of_the_best_is_not_accepted_even_if_it_rose():
    assert not weigh({"zero": arm(0.1, 0.2)}, 0.5, []).accepted


def test_a_shaped_arm_that_failed_leaves_its_control():
    failed = {"failed": "diverged", "verdict": "CRASHED"}
    assert weigh({"zero": arm(0.2, 0.3), "shaped": failed}, None, []).arm == "zero"


def test_without_q_sampled_success_decides():
    values = {"truth": [0.1, 0.12, 0.11, 0.1, 0.3, 0.31, 0.33, 0.32]}
    assert improvement(values).clear
    assert not improvement({"truth": [0.1] * 8}).clear
    assert not improvement({"truth": []}).clear
    assert advantage({"truth": [0.5, 0.6, 0.7]}, {"truth": [0.1, 0.2, 0.2, 0.9]}).clear


def test_arms_that_tokens_cut_off_at_different_steps_are_compared_over_the_steps_that_both_did():
    shaped, control = arm(0.2, 0.4), arm(0.2, 0.3, truth=[0.2] * 6, cut=4)
    assert advantage(shaped["values"], control["values"]).mean == pytest.approx(0.0)
    assert weigh({"zero": control, "shaped": shaped}, None, []).arm == "zero"
    learned = arm(0.2, 0.4, truth=[0.2] + [0.3, 0.4, 0.5] * 3)
    assert weigh({"zero": control, "shaped": learned}, None, []).arm == "shaped"
    assert advantage(learned["values"], control["values"]).n == 6


def test_arms_of_equal_length_and_arms_that_stopped_by_themselves_are_compared_by_q():
    for steps, cut in ((10, 4), (6, 0)):
        values = advantage(arm(0.2, 0.4)["values"], arm(0.2, 0.3, truth=[0.2] * steps, cut=cut)["values"])
        assert (values.n, values.clear) == (64, True)


def test_scores_of_different_lengths_cannot_be_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([0.1], [0.1, 0.2])
