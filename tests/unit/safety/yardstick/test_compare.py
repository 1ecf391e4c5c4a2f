"""Paired comparison, intervals and the race."""

from __future__ import annotations

import numpy as np
import pytest

from safety.yardstick.compare import KEPT, WORSE, Comparison, Race, losses, paired, raced_loss, sign_test, wilson


def test_a_known_sign_test() -> None:
    assert sign_test(9, 10) == pytest.approx(11 / 1024)
    found = paired([1] * 9 + [0] + [1] * 50, [0] * 9 + [1] + [1] * 50)
    assert (found.n, found.wins, found.losses) == (60, 9, 1)
    assert found.mean == pytest.approx(8 / 60) and found.stderr == pytest.approx(0.0501, abs=2e-3)
    assert found.p_value == pytest.approx(11 / 1024)


def test_equal_models_are_no_evidence() -> None:
    assert paired([1, 0, 1], [1, 0, 1]) == Comparison(3, 0.0, 0.0, 1.0, 0, 0)
    assert paired([], []).p_value == 1.0


def test_scores_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([1, 0], [1])


def test_probabilities_are_compared_by_exact_sign_flips() -> None:
    assert paired([0.9, 0.8, 0.7], [0.1, 0.2, 0.3]).p_value == pytest.approx(1 / 8)
    many = paired(np.linspace(0.5, 0.9, 40), np.linspace(0.2, 0.8, 40))
    assert many.p_value == pytest.approx(1e-4) and many == paired(np.linspace(0.5, 0.9, 40), np.linspace(0.2, 0.8, 40))


def test_the_sign_test_holds_for_very_many_pairs() -> None:
    assert sign_test(50_000, 100_000) == pytest.approx(0.5013, abs=1e-3)
    assert 0 < sign_test(51_000, 100_000) < 1e-9


def test_a_comparison_survives_its_json() -> None:
    comparison = paired([1, 1, 0, 1], [0, 1, 1, 0])
    assert Comparison.from_json(comparison.to_json()) == comparison


def test_wilson_known_values() -> None:
    assert list(wilson(5, 10)) == pytest.approx([0.2366, 0.7634], abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == 0.0 and wilson(20, 20)[1] == 1.0


def test_a_much_better_model_wins_the_race_in_few_items() -> None:
    race = Race()
    assert race.add([1.0] * 100) == "better"
    assert race.n < 15 and race.e >= 20


def test_a_race_that_decided_gives_a_p_value_that_stopping_early_cannot_spoil() -> None:
    race, differences = Race(), [1.0] * 40
    race.add(differences)
    plain = paired(differences, [0.0] * 40)
    assert plain.p_value < 1e-9
    assert race.settled(plain).p_value == pytest.approx(1 / race.e) and 20 <= race.e < 40
    assert Race().settled(plain) == plain


def test_a_much_worse_model_is_hopeless_in_few_items() -> None:
    race = Race()
    assert race.add([-1.0, 0.0] * 50) == "hopeless"
    assert race.n < 40 and race.futility >= 20


def test_a_decided_race_reads_nothing_more() -> None:
    race = Race()
    race.add([1.0] * 100)
    before = race.to_json()
    race.add([-1.0] * 100)
    assert race.to_json() == before


def test_feeding_in_pieces_changes_nothing() -> None:
    differences = np.random.default_rng(1).integers(-1, 2, size=200).astype(float)
    whole, pieces = Race(), Race()
    whole.add(differences)
    for start in range(0, 200, 7):
        pieces.add(differences[start : start + 7])
    assert whole.to_json() == pieces.to_json()


def test_an_equal_model_wins_at_most_one_race_in_twenty() -> None:
    generator = np.random.default_rng(2)
    wins = 0
    for _ in range(300):
        race = Race()
        wins += race.add(generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=400)) == "better"
    assert wins <= 300 / 20


def of_guard(loss: float, n: int, seed: int) -> list[tuple[list[float], list[float]]]:
    """Items that the old model solves and the new one loses at that rate, ten at a time."""
    kept = (np.random.default_rng(seed).random(n) >= loss).astype(float).tolist()
    return [(kept[at : at + 10], [1.0] * len(kept[at : at + 10])) for at in range(0, n, 10)]


def test_a_large_loss_on_a_guard_is_shown_and_stops_early() -> None:
    found = raced_loss(of_guard(0.4, 400, 1), 0.03, 0.05)
    assert found["decision"] == WORSE
    assert found["n"] < 60
    assert found["mean"] < -0.1
    assert found["e"] >= 20


def test_what_loses_nothing_is_kept_and_a_few_items_decide_nothing() -> None:
    assert raced_loss(of_guard(0.0, 400, 1), 0.05, 0.05)["decision"] == KEPT
    assert raced_loss(of_guard(0.4, 10, 1), 0.4, 0.05)["decision"] is None
    assert raced_loss([], 0.03, 0.05) == {"decision": None, "n": 0, "mean": 0.0, "e": 1.0}


def test_a_loss_within_the_margin_is_rarely_said_to_be_worse_however_many_guards_there_are() -> None:
    wrong = 0
    for life in range(100):
        found = losses({name: of_guard(0.05, 200, 3 * life + place) for place, name in enumerate("abc")}, 0.05, 0.05)
        wrong += any(entry["decision"] == WORSE for entry in found.values())
    assert wrong <= 12                                      # 5 are expected at most; more than 12 has a chance of .002


@pytest.mark.parametrize(("margin", "level"), [(-0.1, 0.05), (1.0, 0.05), (0.1, 0.0), (0.1, 1.0)])
def test_a_margin_or_level_that_cannot_be_tested_is_refused(margin: float, level: float) -> None:
    with pytest.raises(ValueError, match="cannot be tested"):
        raced_loss([], margin, level)
