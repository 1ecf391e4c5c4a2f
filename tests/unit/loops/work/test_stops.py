"""A segment ends early only for a reason that lasted, and says which."""

from __future__ import annotations

from loops.work.stops import PATIENCE, reason_to_stop

CALM = [0.5] * 30


def test_a_healthy_run_goes_on() -> None:
    assert reason_to_stop(CALM, CALM, CALM, [0.1, 0.7]) is None
    assert reason_to_stop([], [], [], []) is None


def test_groups_without_spread_stop_it_only_after_twenty_steps() -> None:
    assert reason_to_stop([1.0] * (PATIENCE - 1), [], [], []) is None
    assert "no spread" in str(reason_to_stop([1.0] * PATIENCE, [], [], []))
    assert reason_to_stop([1.0] * (PATIENCE - 1) + [0.9], [], [], []) is None


def test_answers_that_are_cut_off_stop_it() -> None:
    assert "cut off" in str(reason_to_stop(CALM, [0.9] * PATIENCE, CALM, []))


def test_entropy_far_below_its_start_stops_it() -> None:
    assert "entropy" in str(reason_to_stop(CALM, CALM, [1.0] * 15 + [0.2] * 10, []))
    assert reason_to_stop(CALM, CALM, [1.0] * 10 + [0.2] * 3, []) is None


def test_too_far_from_the_start_stops_it() -> None:
    assert "KL" in str(reason_to_stop(CALM, CALM, CALM, [0.1, 4.5]))
