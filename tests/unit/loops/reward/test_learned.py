"""The learned feature: trained when it is due, examined before each use, never the only judge, recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import BUDGET, World

from loops.pipeline.recipe import GRPO
from loops.reward.features import LEARNED
from loops.reward.learned import LEAST_ACCURACY, LEAST_CHECKED, bounded, clears
from loops.reward.loop import RewardLoop, RewardSettings
from loops.reward.shaping import Evidence
from safety.bounds import Bounds
from safety.families import RewardBounds
from state.jobs import JobFailed
from state.records import Verdict

FEATURES = ("places", "varied")


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path, skill=0.001)
    world.runner.found_pairs = 40
    world.house = replace(world.house, bounds=lambda: Bounds(reward=RewardBounds(features=(*FEATURES, LEARNED))))
    yield world
    world.close()


class Begun(RewardLoop):
    """The loop with another first state."""

    def start(self):
        return self.assignment["state"] or super().start()


def reward(state=None, **settings):
    settings = RewardSettings(**{"features": FEATURES, "learned": True, "learned_every": 3, **settings})
    return Begun(settings, [{"name": "t"}], "seal", {}, {
        "recipe": GRPO.to_json(), "checkpoint": None, "from_step": 0, "steps": 12, "segment": 0, "lineage": "c",
        "state": state,
    })


def evidence(learned=0.5, places=0.5):
    """Ten groups in which phi of these features tells the reference from the wrong answers so clearly."""
    found = Evidence.empty((*FEATURES, LEARNED))
    for step in range(10):
        wobble = 0.01 * (step % 3)
        found = found.add_group([([0.4 + wobble, 0.5, 0.4 - wobble], 0.0)] * 3, [0.4 + places, 0.5, 0.4 + learned])
    return found.to_json()


def told(**changes):
    """A state in which shaping is on and the evidence speaks for both features."""
    state = {**reward().start(), "evidence": evidence(), "switch": "on"}
    known = {"model": "m" * 64, "segment": 0, "trained": True, "pairs": 40, "accuracy": 0.9, "left_out": None}
    return {**state, "learned": known, **changes}


def kinds(world):
    return [spec.kind for spec in world.runner.ran]


def segments(world):
    return [spec for spec in world.runner.ran if spec.kind == "segment"]


def test_it_is_off_unless_it_is_asked_for(world):
    loop = reward({**reward(learned=False).start(), "switch": "on"}, learned=False)
    outcome = world.cycle(loop, 0)
    assert LEARNED not in loop.settings.allowed
    assert kinds(world)[:1] == ["segment"]
    assert outcome.evidence["learned"] is None


def test_nothing_is_made_while_shaping_is_off(world):
    world.cycle(reward(told(switch="off")), 0)
    assert "pairs" not in kinds(world)
    assert all("reward_model" not in spec.inputs for spec in segments(world))


def test_a_reward_model_is_made_once_shaping_is_on_and_measured_in_every_arm(world):
    loop = reward({**reward().start(), "switch": "on"})
    outcome = world.cycle(loop, 0)
    assert kinds(world)[:3] == ["pairs", "reward_model", "segment"]
    pairs, trained, segment = world.runner.ran[:3]
    assert pairs.inputs == {"model": world.start, "seal": "seal"}
    assert trained.inputs["model"] == world.start
    told_of = outcome.evidence["learned"]
    assert segment.inputs["reward_model"] == told_of["model"] == world.state(loop)["learned"]["model"]
    assert (told_of["trained"], told_of["pairs"], told_of["accuracy"]) == (True, 40, 0.9)


def test_it_is_made_anew_when_it_is_due_and_what_was_seen_of_the_old_one_is_forgotten(world):
    world.cycle(reward(told(segments=3)), 0)
    assert kinds(world).count("reward_model") == 1
    seen = Evidence.from_json(segments(world)[0].params["evidence"])
    place = seen.features.index(LEARNED)
    assert seen.sxy[place] == 0
    assert [value != 0 for value in seen.sxy].count(True) == 1


def test_before_each_use_it_is_examined_on_fresh_pairs_of_the_model_that_is_trained(world):
    outcome = world.cycle(reward(told(segments=1)), 0)
    assert kinds(world)[:2] == ["pairs", "reward_check"]
    assert world.runner.ran[0].inputs["model"] == world.start
    assert "reward_model" not in kinds(world)
    shaped = segments(world)[1].params["shaping"]["weights"]
    assert LEARNED in shaped
    assert outcome.evidence["learned"]["left_out"] is None


def test_one_that_ranks_no_better_than_by_chance_is_left_out_of_the_segment_and_the_row_says_so(world):
    world.runner.adjust = lambda spec, values: (
        {**values, "accuracy": 0.55} if spec.kind == "reward_check" else values
    )
    loop = reward(told(segments=1))
    outcome = world.cycle(loop, 0)
    assert segments(world)[1].params["shaping"]["weights"].keys() == {"places"}
    assert outcome.evidence["learned"]["left_out"] == "it ranks 55% of 40 fresh pairs"
    assert "the learned feature was left out: it ranks 55% of 40 fresh pairs" in outcome.reason
    assert world.state(loop)["learned"]["model"] == "m" * 64


def test_where_it_cannot_be_examined_the_segment_goes_on_without_it(world):
    def fail(spec):
        if spec.kind in ("pairs", "reward_check", "reward_model"):
            raise JobFailed("out of memory")

    world.runner.faults = fail
    outcome = world.cycle(reward(told(segments=1)), 0)
    assert outcome.evidence["arm"] == "shaped"
    assert segments(world)[1].params["shaping"]["weights"].keys() == {"places"}
    assert "out of memory" in outcome.evidence["learned"]["left_out"]


def test_too_few_pairs_make_no_reward_model_and_are_not_asked_for_again_at_once(world):
    world.runner.adjust = lambda spec, values: {**values, "pairs": 5} if spec.kind == "pairs" else values
    loop = reward({**reward().start(), "switch": "on"})
    first = world.cycle(loop, 0)
    assert first.evidence["learned"]["left_out"] == "5 pairs are too few"
    world.cycle(loop, 1)
    assert kinds(world).count("pairs") == 1
    assert "reward_model" not in kinds(world)


def test_a_segment_that_does_not_pay_for_it_is_not_charged_for_an_examination(world):
    world.cycle(reward(told(segments=1, evidence=evidence(learned=0.0))), 0)
    assert "pairs" not in kinds(world)
    assert segments(world)[0].inputs["reward_model"] == "m" * 64


def test_pairs_and_training_stay_within_the_budget_of_tokens(world):
    outcome = world.cycle(reward({**reward().start(), "switch": "on"}), 0, budget=replace(BUDGET, tokens=4000))
    pairs, trained = world.runner.ran[:2]
    assert (pairs.params["max_tokens"], trained.params["max_tokens"]) == (1000, (4000 - 256) // 4)
    assert outcome.cost.tokens <= 4000


def test_bounds_that_do_not_name_it_refuse_a_segment_that_would_pay_for_it(world):
    world.house = replace(world.house, bounds=Bounds)
    outcome = world.cycle(reward(told(segments=1)), 0)
    assert outcome.verdict is Verdict.REFUSED
    assert "reward.features" in outcome.reason
    assert world.runner.ran == []
    assert world.state(reward())["avoid"][0]["weights"] == outcome_shaping(world)


def outcome_shaping(world):
    """What the one cycle of a world proposed to pay for."""
    (row,) = (row for row in world.ledger.rows() if row.event == "closed")
    return row.change["shaping"]["weights"]


def test_what_was_learned_from_verdicts_that_are_not_believed_is_dropped(world):
    world.runner.adjust = lambda spec, values: (
        {**values, "canaries": ["item 1: white space counts as right"]} if spec.kind == "segment" else values
    )
    loop = reward({**reward().start(), "switch": "on"})
    assert world.cycle(loop, 0).evidence["learned"]["trained"]
    assert world.state(loop)["learned"] is None


def test_a_shaping_never_rests_on_it_alone():
    loop = reward()
    state = told(evidence=evidence(places=0.0))
    assert Evidence.from_json(state["evidence"]).weights().keys() == {LEARNED}
    assert loop.shaping(state, 0, 100).is_zero


@given(st.dictionaries(st.sampled_from(["places", "varied", "prefix", LEARNED]), st.floats(0, 1), max_size=4))
def test_it_never_weighs_more_than_the_others_together(weights):
    held = bounded(weights)
    others = sum(value for name, value in held.items() if name != LEARNED)
    assert held.get(LEARNED, 0.0) <= others + 1e-12
    assert all(held.get(name, 0.0) == value for name, value in weights.items() if name != LEARNED)


@given(st.floats(0, 1), st.integers(0, 500))
def test_nothing_clears_on_few_pairs_or_under_the_level(accuracy, pairs):
    if clears(accuracy, pairs):
        assert pairs >= LEAST_CHECKED
        assert accuracy >= LEAST_ACCURACY


def test_a_state_from_before_it_existed_is_read(world):
    old = {key: value for key, value in told(evidence=evidence(learned=0.0)).items() if key != "learned"}
    loop = reward(old)
    world.cycle(loop, 0)
    assert world.state(loop)["learned"]["model"] is not None


def test_it_is_not_listed_as_a_feature_of_the_texts():
    with pytest.raises(ValueError, match="learned = true"):
        RewardSettings(features=("places", LEARNED))
    with pytest.raises(ValueError, match="learned_every"):
        RewardSettings(learned_every=0)
