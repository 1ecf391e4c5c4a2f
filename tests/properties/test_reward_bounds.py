"""The bounded reward, whatever the weights, the strength and the texts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loops.reward.catalogue import measure
from loops.reward.features import FEATURES
from loops.reward.shaping import CAP, Evidence, Shaping, bonus, rank_correlation, shaped_reward

names = list(FEATURES)
phis = st.fixed_dictionaries({name: st.floats(-2, 3) for name in names})
shapings = st.builds(
    Shaping,
    st.dictionaries(st.sampled_from(names), st.floats(-100, 100, allow_subnormal=False)),
    st.floats(-1, 50),
)
texts = st.text(max_size=30)


@given(phis, phis, shapings)
def test_a_right_answer_always_outranks_a_wrong_one(right, wrong, shaping):
    assert shaped_reward(1.0, right, shaping) > shaped_reward(0.0, wrong, shaping)


@given(st.sampled_from([0.0, 1.0]), phis, shapings)
def test_the_bonus_never_exceeds_half_the_cap(r0, phi, shaping):
    assert abs(shaped_reward(r0, phi, shaping) - r0) <= CAP / 2
    assert abs(bonus(r0, phi, shaping.weights)) <= 0.5


@given(texts, texts, st.none() | texts, st.lists(texts, max_size=4))
def test_every_feature_stays_between_0_and_1_on_any_text(prompt, completion, reference, others):
    for phi in measure(names, prompt, completion, reference, [completion, *others]).values():
        assert 0.0 <= phi <= 1.0


groups = st.lists(
    st.tuples(
        st.lists(st.tuples(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.sampled_from([0.0, 1.0])),
                 min_size=1, max_size=5),
        st.none() | st.lists(st.floats(0, 1), min_size=3, max_size=3),
    ),
    max_size=12,
)


@given(groups)
def test_learned_weights_are_positive_and_sum_to_1_or_there_are_none(rows):
    evidence = Evidence.empty(names[:3])
    for group, reference in rows:
        evidence = evidence.add_group(group, reference)
    weights = evidence.weights()
    assert not weights or (abs(sum(weights.values()) - 1) < 1e-9 and min(weights.values()) > 0)
    assert Evidence.from_json(evidence.to_json()) == evidence


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), max_size=20))
def test_a_rank_correlation_lies_between_minus_1_and_1(pairs):
    correlation = rank_correlation([s for s, _ in pairs], [t for _, t in pairs])
    assert correlation is None or -1 - 1e-9 <= correlation <= 1 + 1e-9
