"""Shares follow what the sources do to the target, and nothing is forgotten."""

from __future__ import annotations

import random

import pytest

from loops.pipeline.mixture import LEAST_SHARE, learned, shares


def weighed(error: float = 0.001, tokens: int = 1000, **gains: float) -> dict[str, dict[str, float]]:
    return {name: {"gain": gain, "error": error, "tokens": tokens} for name, gain in gains.items()}


def trials(count: int, error: float = 0.001, **gains: float) -> dict:
    payoffs: dict = {}
    for _ in range(count):
        payoffs = learned(payoffs, weighed(error, **gains))
    return payoffs


def test_before_any_trial_all_sources_are_alike():
    assert shares({}, ["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert shares({}, []) == {}


@pytest.mark.parametrize("count", [1, 5])
def test_the_source_that_pays_gets_the_larger_share_and_one_that_harms_under_a_tenth(count):
    found = shares(trials(count, useful=0.04, useless=0.0, harmful=-0.1), ["useful", "useless", "harmful"])
    assert found["useful"] > 0.8 > found["useless"] > found["harmful"]
    assert found["harmful"] < 0.1
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_source_that_harms_falls_under_a_tenth_also_where_no_gain_is_clear():
    payoffs = trials(1, error=0.015, useful=0.009, useless=-0.016, harmful=-0.104)
    found = shares(payoffs, ["useful", "useless", "harmful"])
    assert found["harmful"] < 0.1 < found["useless"] < found["useful"]


def test_gains_within_their_error_leave_the_shares_as_they_were():
    assert shares(trials(3, error=0.1, a=0.02, b=-0.02), ["a", "b"]) == {"a": 0.5, "b": 0.5}
    before = trials(1, a=0.1, b=0.0)
    after = learned(before, weighed(error=0.1, a=-0.02, b=0.02))
    assert {name: entry["payoff"] for name, entry in after.items()} == {
        name: entry["payoff"] for name, entry in before.items()
    }


@pytest.mark.parametrize("seed", range(20))
def test_the_clearer_the_sources_differ_the_further_their_shares_are_apart(seed):
    draw = random.Random(seed)
    gap, names = draw.uniform(0.01, 0.1), ["a", "b"]
    errors = sorted(draw.uniform(0.0, 2.0 * gap) for _ in range(6))
    found = [shares(trials(1, error=error, a=gap, b=0.0), names) for error in errors]
    shared = [each["a"] for each in found]
    assert shared == sorted(shared, reverse=True)
    assert all(0.5 <= share <= 1 - LEAST_SHARE / 4 for share in shared)
    assert shares(trials(1, error=gap, a=gap, b=0.0), names)["a"] == 0.5          # less than 1.5 standard errors apart
    assert shares(trials(1, error=gap / 4, a=gap, b=0.0), names)["a"] > 0.75      # 2.8 of them


def test_of_a_noisy_source_less_is_believed_than_of_the_others():
    report = {**weighed(a=0.05), **weighed(b=0.0), **weighed(error=0.05, c=-0.1)}
    told = learned({}, report)
    sure = learned({}, {**report, **weighed(c=-0.1)})
    assert sure["c"]["payoff"] < told["c"]["payoff"] < told["b"]["payoff"]


def test_sources_that_pay_alike_share_alike_whatever_the_scale_of_a_trial():
    payoffs = learned(learned({}, weighed(a=1e-4, b=1e-4, error=1e-6)), weighed(a=0.5, b=0.5))
    assert shares(payoffs, ["a", "b"]) == pytest.approx({"a": 0.5, "b": 0.5})


def test_what_is_paid_is_paid_per_token():
    sure = {"error": 0.0}
    payoffs = learned({}, {**weighed(short=0.05, tokens=500, **sure), **weighed(long=0.05, tokens=1000, **sure)})
    assert payoffs["long"]["payoff"] == pytest.approx(0.5 * payoffs["short"]["payoff"])


def test_a_source_that_pays_nothing_keeps_a_floor():
    assert shares(trials(5, a=1.0, b=-3.0), ["a", "b"])["b"] >= LEAST_SHARE / 4


def test_an_untried_source_gets_the_benefit_of_the_doubt():
    found = shares(trials(5, a=1.0), ["a", "b"])
    assert found["b"] == pytest.approx(found["a"])


def test_the_bound_shrinks_with_trials_so_that_of_two_equal_payers_the_less_tried_one_is_preferred():
    payoffs = learned(trials(9, a=0.5), weighed(b=0.5))
    found = shares(payoffs, ["a", "b"])
    assert found["b"] > found["a"]


def test_what_a_source_did_later_counts_more_than_what_it_did_first():
    turned = trials(5, a=0.1, b=-0.1)
    for _ in range(8):
        turned = learned(turned, weighed(a=-0.1, b=0.1))
    assert shares(turned, ["a", "b"])["b"] > 0.5


def test_a_tilt_moves_shares():
    assert shares({}, ["a", "b"], {"a": 1.0})["a"] > 0.7


def test_what_is_no_number_teaches_nothing():
    assert learned({}, {**weighed(a=float("nan")), **weighed(b=1.0, tokens=0)}) == {}


def test_payoffs_by_the_loss_on_own_rows_are_forgotten():
    old = {"a": {"payoff": 3.0, "tokens": 1000.0}, "b": {"payoff": 0.1, "tokens": 10.0}}
    assert shares(old, ["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert learned(old, weighed(a=0.1)).keys() == {"a"}
