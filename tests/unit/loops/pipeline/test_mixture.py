"""Shares follow what the sources pay, and nothing is forgotten."""

from __future__ import annotations

import pytest

from loops.pipeline.mixture import LEAST_SHARE, learned, shares


def trials(count: int, **drops: float):
    payoffs: dict = {}
    for _ in range(count):
        payoffs = learned(payoffs, {name: {"tokens": 1000, "loss_drop": drop} for name, drop in drops.items()})
    return payoffs


def test_before_any_trial_all_sources_are_alike():
    assert shares({}, ["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert shares({}, []) == {}


def test_the_source_that_pays_gets_the_larger_share():
    found = shares(trials(5, a=1.0, b=0.1), ["a", "b"])
    assert found["a"] > 0.6
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_source_that_pays_nothing_keeps_a_floor():
    assert shares(trials(5, a=1.0, b=-3.0), ["a", "b"])["b"] >= LEAST_SHARE / 4


def test_an_untried_source_gets_the_benefit_of_the_doubt():
    found = shares(trials(5, a=1.0), ["a", "b"])
    assert found["b"] == pytest.approx(found["a"])


def test_the_bound_shrinks_with_tokens_so_that_of_two_equal_payers_the_less_tried_one_is_preferred():
    payoffs = learned(trials(9, a=0.5), {"b": {"tokens": 10, "loss_drop": 0.5}})
    found = shares(payoffs, ["a", "b"])
    assert found["b"] > found["a"]


def test_a_tilt_moves_shares():
    assert shares({}, ["a", "b"], {"a": 1.0})["a"] > 0.7


def test_what_is_no_number_teaches_nothing():
    assert learned({}, {"a": {"tokens": 10, "loss_drop": float("nan")}, "b": {"tokens": 0, "loss_drop": 1.0}}) == {}
