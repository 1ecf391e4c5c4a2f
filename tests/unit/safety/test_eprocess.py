"""The e-process: its numbers by hand, its memory and what it refuses."""

import json
import math

import pytest

from safety.eprocess import BETS, EProcess, futility_of


def test_evidence_starts_at_one_and_is_the_mean_of_the_products() -> None:
    process = EProcess()
    assert process.e == pytest.approx(1.0)
    process.extend([1.0, -1.0, 0.0, 1.0])
    assert process.e == pytest.approx(sum((1 + b) ** 2 * (1 - b) for b in BETS) / len(BETS))
    assert process.count == 4


def test_a_needed_gain_is_taken_off_every_difference() -> None:
    process = EProcess(0.05)
    process.add(0.0)
    assert process.e == pytest.approx(sum(1 - b * 0.05 / 1.05 for b in BETS) / len(BETS))


def test_equal_models_become_evidence_for_a_guard() -> None:
    guard = EProcess(-0.03)
    assert guard.extend([0.0] * 176) >= 20
    assert EProcess(-0.03).extend([0.0] * 100) < 20


def test_a_process_kept_as_json_goes_on_as_if_never_stopped() -> None:
    whole, first = EProcess(0.01), EProcess(0.01)
    differences = [1.0, 0.0, -1.0, 0.5] * 20
    whole.extend(differences)
    first.extend(differences[:33])
    rest = EProcess.from_json(json.loads(json.dumps(first.to_json())))
    assert rest.extend(differences[33:]) == whole.e
    assert rest.to_json() == whole.to_json()


@pytest.mark.parametrize("wrong", [1.01, -2.0, math.nan, math.inf])
def test_a_difference_outside_its_range_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        EProcess().add(wrong)


@pytest.mark.parametrize("d0", [1.0, -1.0, 3.0])
def test_a_threshold_that_no_difference_can_pass_is_refused(d0: float) -> None:
    with pytest.raises(ValueError, match="d0"):
        EProcess(d0)


def test_evidence_without_end_stays_a_number_that_json_can_hold() -> None:
    process = EProcess()
    process.extend([1.0] * 5000)
    assert math.isfinite(process.e)
    assert process.e > 1e250
    assert EProcess(0.0, 0, [-1e6] * len(BETS)).e == 0.0


def test_futility_turns_losses_into_evidence() -> None:
    assert futility_of(-1.0, 0.03) == 1.0
    assert EProcess().extend([futility_of(-1.0, 0.03)] * 10) > 20
    assert EProcess().extend([futility_of(0.5, 0.03)] * 10) < 1
