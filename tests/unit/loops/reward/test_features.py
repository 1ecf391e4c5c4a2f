"""What the features say about plain examples."""

from __future__ import annotations

import pytest

from loops.reward.catalogue import measure
from loops.reward.features import FEATURES, NEUTRAL, FeatureClass


def phi(name: str, completion: str, reference: str | None = None, siblings: tuple[str, ...] = (), prompt: str = ""):
    return FEATURES[name].phi(prompt, completion, reference, siblings)


def test_at_most_eight_features_have_the_names_they_are_filed_under():
    assert len(FEATURES) <= 8
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
