"""The gate's decision, its levels, and that anyone can compute them again from the scores."""

import math

import pytest

from safety.eprocess import EProcess
from safety.gate import (
    Decision,
    Rules,
    SequentialTest,
    decide,
    disagreements,
    fewest_guard_items,
    level,
    recompute,
    smallest_gain,
)

RULES = Rules(k=1, alpha=0.05, d0=0.0, least_gain=0.03, margins={"naming": 0.03})
EQUAL = [[0.0] * 400]


def record(new: list[float], old: list[float]) -> dict[str, list[float]]:
    return {"new": new, "old": old}


def test_the_levels_of_a_whole_life_shared_by_every_possible_incumbent_stay_under_alpha() -> None:
    total = sum(k * level(k, 0.05) for k in range(1, 200_000))
    rest = 0.05 * 0.47 / math.log(200_000)                 # integral of the tail
    assert total + rest <= 0.05


def test_levels_fall_with_every_nomination() -> None:
    levels = [level(k, 0.05) for k in range(1, 50)]
    assert levels == sorted(levels, reverse=True)
    assert level(1, 0.05) == pytest.approx(0.05 * 0.47 / (2 * math.log(2) ** 2))


def test_a_level_needs_a_nomination_and_an_alpha() -> None:
    for k, alpha in ((0, 0.05), (1, 0.0), (1, 1.0)):
        with pytest.raises(ValueError, match="level"):
            level(k, alpha)


def test_clear_gains_and_steady_guards_are_released_and_the_test_stops_at_the_item_that_decides() -> None:
    found = decide(RULES, [[1.0] * 64, [1.0] * 64], {"naming": EQUAL})
    assert found.decision is Decision.RELEASE
    assert found.e >= RULES.threshold
    assert found.n == 9
    assert found.guards["naming"]["n"] == fewest_guard_items(0.03)


def test_the_sizes_of_the_batches_do_not_change_the_decision() -> None:
    stream = [1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0] * 30
    whole = decide(RULES, [stream], {"naming": EQUAL})
    for size in (1, 7, 32):
        parts = [stream[i : i + size] for i in range(0, len(stream), size)]
        again = decide(RULES, parts, {"naming": EQUAL})
        assert (again.decision, again.n, again.e) == (whole.decision, whole.n, whole.e)


def test_losses_are_futile_and_no_guard_is_scored() -> None:
    def untouched():  # type: ignore[no-untyped-def]
        raise AssertionError("a guard was scored")
        yield

    found = decide(RULES, [[-1.0] * 100], {"naming": untouched()})
    assert found.decision is Decision.FUTILE
    assert found.n < 20
    assert not found.guards


def test_no_more_batches_are_asked_for_than_the_decision_needs() -> None:
    asked = []

    def batches():  # type: ignore[no-untyped-def]
        for number in range(100):
            asked.append(number)
            yield [1.0] * 10

    decide(RULES, batches(), {"naming": EQUAL})
    assert asked == [0]


def test_too_few_items_leave_it_undecided() -> None:
    assert decide(RULES, [[1.0] * 3], {"naming": EQUAL}).decision is Decision.UNDECIDED
    assert decide(RULES, [], {"naming": EQUAL}).decision is Decision.UNDECIDED


@pytest.mark.parametrize("guard", [[[-1.0, 0.0, 0.0] * 100], [[0.0] * 50], []])
def test_a_guard_that_lost_or_has_too_few_items_keeps_a_better_model_back(guard: list[list[float]]) -> None:
    found = decide(RULES, [[1.0] * 64], {"naming": guard})
    assert found.decision is Decision.GUARD_FAILED
    assert found.guards["naming"]["passed"] is False


def test_every_guard_must_pass() -> None:
    rules = Rules(1, 0.05, 0.0, 0.03, {"a": 0.03, "b": 0.03})
    assert decide(rules, [[1.0] * 64], {"a": EQUAL, "b": EQUAL}).decision is Decision.RELEASE
    assert decide(rules, [[1.0] * 64], {"a": EQUAL, "b": [[-1.0] * 400]}).decision is Decision.GUARD_FAILED


def test_a_guard_without_scores_is_an_error_not_a_pass() -> None:
    with pytest.raises(KeyError):
        decide(RULES, [[1.0] * 64], {})


def test_a_decision_recomputes_from_its_scores_and_a_changed_number_does_not() -> None:
    scores = {"targets": record([1.0] * 20, [0.0] * 20), "guards": {"naming": record([1.0] * 400, [1.0] * 400)}}
    found = decide(RULES, [[1.0] * 20], {"naming": EQUAL})
    evidence = {**RULES.to_json(), **found.to_json(), "nomination": 7}
    assert recompute(evidence, scores)
    for key, forged in (("e", 1e9), ("n", 3), ("decision", "futile"), ("alpha_k", 0.04), ("threshold", 2.0), ("k", 2)):
        assert not recompute({**evidence, key: forged}, scores), key
    worse = {**scores, "targets": record([0.0] * 20, [0.0] * 20)}
    assert any("decision" in line for line in disagreements(evidence, worse))
    lost = {**scores, "guards": {"naming": record([0.0] * 400, [1.0] * 400)}}
    assert any("guard naming" in line for line in disagreements(evidence, lost))
    assert not recompute(evidence, {**scores, "guards": {}})


def test_a_futile_decision_recomputes_without_guards() -> None:
    scores = {"targets": record([0.0] * 100, [1.0] * 100), "guards": {}}
    evidence = {**RULES.to_json(), **decide(RULES, [[-1.0] * 100], {"naming": []}).to_json()}
    assert recompute(evidence, scores)


def test_the_rules_survive_a_row_of_the_ledger() -> None:
    assert Rules.from_json(RULES.to_json()) == RULES


def test_a_decided_test_takes_no_more_items() -> None:
    test = SequentialTest(EProcess(), 20.0)
    assert test.take([1.0] * 50) is True
    count = test.evidence.count
    test.take([-1.0] * 50)
    assert (test.passed, test.evidence.count) == (True, count)


def test_the_smallest_gain_agrees_with_the_simulated_item_counts() -> None:
    for items, gain in ((550, 0.05), (1600, 0.03), (4000, 0.02), (14_000, 0.01)):
        assert smallest_gain(items, 1e-3) == pytest.approx(gain, rel=0.12)
    assert smallest_gain(5, 1e-3) is None
