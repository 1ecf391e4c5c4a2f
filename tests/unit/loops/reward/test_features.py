"""What the features say about plain examples."""

from __future__ import annotations

import pytest

from loops.reward.catalogue import measure
from loops.reward.features import (
    ENTROPY_BAND,
    FEATURES,
    LEAST_NATS,
    MOST_NATS,
    NEUTRAL,
    USUAL,
    FeatureClass,
    in_entropy_band,
)


def phi(name: str, completion: str, reference: str | None = None, siblings: tuple[str, ...] = (), prompt: str = ""):
    return FEATURES[name].phi(prompt, completion, reference, siblings)


def test_features_have_the_names_they_are_filed_under_and_at_most_eight_are_usual():
    assert len(USUAL) <= 8
    assert FEATURES.keys() >= set(USUAL)
    assert all(name == feature.name for name, feature in FEATURES.items())


@pytest.mark.parametrize("name", ["places", "overlap", "prefix", "closeness"])
def test_a_comparison_gives_1_to_the_reference_and_0_to_a_stranger_and_nothing_without_a_reference(name):
    assert phi(name, "3 1 2", "3 1 2") == 1.0
    assert phi(name, "a b c", "3 1 2") == 0.0
    assert phi(name, "a b c") == NEUTRAL
    assert FEATURES[name].klass is FeatureClass.WRONG


def test_partial_credit_grows_with_what_is_right():
    assert phi("places", "1 2 9", "1 2 3") == pytest.approx(2 / 3)
    assert phi("prefix", "1 9 3", "1 2 3") == pytest.approx(1 / 3)
    assert phi("overlap", "3 2 1", "1 2 3") == 1.0
    assert phi("closeness", "1 3", "1 2 3") == pytest.approx(2 / 3)


def test_a_reference_of_one_word_is_compared_by_characters():
    assert phi("places", "1239", "1234") == pytest.approx(3 / 4)


def test_padding_an_answer_costs_places():
    assert phi("places", "1 2 3 x x x", "1 2 3") == pytest.approx(1 / 2)


def test_brevity_is_one_half_at_the_groups_mean_and_more_below_it():
    group = ("a b", "a b c d")
    assert phi("brevity", "a b c", siblings=group) == pytest.approx(0.5)
    assert phi("brevity", "a", siblings=group) > 0.5


def test_the_length_band_is_from_half_to_twice_the_reference_or_the_groups_median():
    for count, expected in ((0, 0.0), (1, 0.5), (2, 1.0), (4, 1.0), (8, 1.0), (16, 0.5), (32, 0.25)):
        assert phi("length_band", "a " * count, "1 2 3 4") == expected
    group = ("a b", "a b", "a b c d e f g h")
    assert [phi("length_band", text, siblings=group) for text in group] == [1.0, 1.0, 0.5]
    assert phi("length_band", "12345678", "1234") == phi("length_band", "") == phi("length_band", "", "") == 1.0
    assert FEATURES["length_band"].klass is FeatureClass.RIGHT


def test_the_format_is_that_of_the_reference_whatever_its_words_and_numbers():
    assert phi("format", "hund: 7, katze: 12", "dog: 31, cat: 5") == 1.0
    assert phi("format", "31.", "dog: 31, cat: 5") == 0.0
    assert phi("format", "dog: many, cat: few", "dog: 31, cat: 5") == pytest.approx(1 / 2)
    assert phi("format", "the answer is 12", "12") == pytest.approx(2 / 5)
    assert phi("format", "12") == NEUTRAL


def test_the_entropy_band_is_left_by_a_model_that_is_too_sure_and_by_one_that_guesses():
    assert [in_entropy_band(nats) for nats in (-1e-9, LEAST_NATS / 2, LEAST_NATS, MOST_NATS)] == [0, 0.5, 1, 1]
    assert in_entropy_band(4 * MOST_NATS) == 0.25
    assert phi(ENTROPY_BAND, "any") == NEUTRAL


def test_repetition_is_not_varied_and_invention_is_not_grounded():
    assert phi("varied", "a a a a a") < phi("varied", "a b c d e") == 1.0
    assert phi("grounded", "7 8", prompt="sort 8 7") == 1.0
    assert phi("grounded", "9 9", prompt="sort 8 7") == 0.0


def test_agreement_is_the_share_of_the_group_with_the_same_text():
    assert phi("agreement", "x", siblings=("x", "x ", "y", "z")) == 0.5


def test_measuring_an_unknown_feature_is_refused():
    with pytest.raises(ValueError, match="unknown feature 'beauty'"):
        measure(["beauty"], "", "", None, [])


def test_a_class_pays_where_it_should():
    assert [FeatureClass.ONE.factor(r) for r in (0, 1)] == [1, 1]
    assert [FeatureClass.RIGHT.factor(r) for r in (0, 1)] == [0, 1]
    assert [FeatureClass.WRONG.factor(r) for r in (0, 1)] == [1, 0]
