"""The reward loop, run through real cycles on a make-believe model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from synthetic import BUDGET, World, evidence_after

from loops.pipeline.recipe import GRPO
from loops.reward.arms import paired
from loops.reward.loop import (
    AVOIDED_SEGMENTS,
    HEAT_STEPS,
    PROVEN_SEGMENTS,
    RESTING_SEGMENTS,
    RewardLoop,
    RewardSettings,
    frozen,
    rearm,
)
from loops.reward.shaping import Evidence
from state.jobs import JobFailed, JobSpec
from state.records import Event, Verdict, seed_from


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def reward(**settings) -> RewardLoop:
    loop = RewardLoop(RewardSettings(**settings), [{"name": "t"}], "seal", {"data": "d" * 64})
    return loop.on({
        "recipe": GRPO.to_json(), "checkpoint": None, "from_step": 0, "steps": 12, "segment": 0, "lineage": "c",
    })


def spoken(loop: RewardLoop, success: float = 0.0, **changes):
    """A state whose evidence calls for a shaping by the first feature."""
    return {**loop.start(), "evidence": evidence_after(loop.start()["evidence"], success), "switch": "on", **changes}


class Begun(RewardLoop):
    """The loop with another first state."""

    def start(self):
        return self.assignment["state"]


def begun(state, **settings) -> Begun:
    loop = reward(**settings)
    return Begun(loop.settings, loop.targets, loop.seal, loop.sources, {**loop.assignment, "state": state})


def test_the_first_segment_has_no_shaping_and_no_second_arm(world):
    outcome = world.cycle(reward(), 0)
    assert outcome.verdict is Verdict.PROMOTED
    assert outcome.evidence["arm"] == "zero"
    assert [spec.kind for spec in world.runner.ran] == ["segment", "measure"]
    assert world.runner.ran[0].params["shaping"] == {"weights": {}, "strength": 0.0}


def test_a_segment_in_which_q_stands_still_is_rejected_and_keeps_nothing(tmp_path):
    world = World(tmp_path, learns=lambda spec, skill, steps: skill - 0.001)
    outcome = world.cycle(reward(), 0)
    assert (outcome.verdict, outcome.result) == (Verdict.REJECTED, None)
    world.close()


def test_a_rejected_segment_is_tried_again_with_another_seed(tmp_path):
    world = World(tmp_path, learns=lambda spec, skill, steps: skill - 0.001)
    world.cycle(reward(), 0)
    world.cycle(reward(), 1)
    first, second = (spec for spec in world.runner.ran if spec.kind == "segment")
    assert first.inputs == second.inputs
    assert first.seed != second.seed
    world.close()


def segments(world) -> list[JobSpec]:
    return [spec for spec in world.runner.ran if spec.kind == "segment"]


def hampered(spec, skill, steps):
    return skill + (0.01 if spec.params["shaping"]["weights"] else 0.03)


def test_a_shaping_runs_beside_a_control_that_differs_in_nothing_else(world):
    outcome = world.cycle(begun(spoken(reward())), 0)
    zero, shaped, _ = segments(world)
    assert (zero.seed, zero.inputs) == (shaped.seed, shaped.inputs)
    assert {k: v for k, v in zero.params.items() if k != "shaping"} == {
        k: v for k, v in shaped.params.items() if k != "shaping"
    }
    assert shaped.params["shaping"]["weights"].keys() == {"places"}
    assert outcome.evidence["arm"] == "shaped"
    assert outcome.verdict is Verdict.PROMOTED


def test_after_a_few_steps_the_better_arm_goes_on_alone_from_where_it_paused(world):
    outcome = world.cycle(begun(spoken(reward())), 0)
    zero, shaped, rest = segments(world)
    assert (zero.params["pause"], shaped.params["pause"], rest.params["pause"]) == (HEAT_STEPS, HEAT_STEPS, None)
    paused = world.runner.book.result(shaped.digest).outputs["checkpoint:paused"]
    assert rest.inputs == {**shaped.inputs, "paused": paused}
    changed = {"pause", "max_tokens"}
    assert {k: v for k, v in rest.params.items() if k not in changed} == {
        k: v for k, v in shaped.params.items() if k not in changed
    }
    assert (outcome.lesson["steps"], outcome.evidence["arm"]) == (12, "shaped")
    heats = [world.runner.book.result(spec.digest).values["q_after"] for spec in (shaped, zero)]
    assert outcome.evidence["over_zero"] == paired(*heats).to_json()


def test_where_the_shaping_loses_the_heat_the_control_goes_on(tmp_path):
    world = World(tmp_path, learns=hampered)
    outcome = world.cycle(begun(spoken(reward())), 0)
    zero, _, rest = segments(world)
    assert rest.params["shaping"] == zero.params["shaping"]
    assert (outcome.lesson["steps"], outcome.evidence["arm"]) == (12, "zero")
    world.close()


def test_a_shaping_that_collapses_after_the_heat_is_out_and_its_control_goes_on(tmp_path):
    def learns(spec, skill, steps):
        shaped = bool(spec.params["shaping"]["weights"])
        return 0.01 if shaped and steps > HEAT_STEPS else skill + (0.05 if shaped else 0.03)

    world = World(tmp_path, learns=learns)
    outcome = world.cycle(begun(spoken(reward())), 0)
    assert ["paused" in spec.inputs for spec in segments(world)] == [False, False, True, True]
    assert (outcome.evidence["arm"], outcome.evidence["blocked"], outcome.lesson["steps"]) == ("zero", "places", 12)
    world.close()


def test_a_shaping_that_fails_after_the_heat_leaves_its_control_to_go_on(world):
    def fail(spec):
        if "paused" in spec.inputs and spec.params["shaping"]["weights"]:
            raise JobFailed("diverged")

    world.runner.faults = fail
    outcome = world.cycle(begun(spoken(reward())), 0)
    assert (outcome.evidence["arm"], outcome.lesson["steps"]) == ("zero", 12)
    assert outcome.evidence["shaped_failed"] == "diverged"


def test_a_control_that_fails_after_the_heat_fails_the_cycle_with_its_reason(tmp_path):
    def fail(spec):
        if "paused" in spec.inputs:
            raise JobFailed("diverged")

    world = World(tmp_path, learns=hampered)
    world.runner.faults = fail
    outcome = world.cycle(begun(spoken(reward())), 0)
    assert (outcome.verdict, outcome.reason) == (Verdict.CRASHED, "diverged")
    world.close()


def test_without_references_both_arms_run_to_the_end(world):
    loop = begun(spoken(reward(references=False, approved=("places",))), references=False, approved=("places",))
    world.cycle(loop, 0)
    assert [(spec.params["pause"], "paused" in spec.inputs) for spec in segments(world)] == [(None, False)] * 2


def test_the_arms_of_a_segment_share_its_tokens_evenly_and_the_better_one_gets_what_is_left(world):
    outcome = world.cycle(begun(spoken(reward())), 0, budget=replace(BUDGET, tokens=9001))
    arms = segments(world)
    heats = [world.runner.book.result(spec.digest).values["tokens"] for spec in arms[:2]]
    assert [spec.params["max_tokens"] for spec in arms] == [4500, 4500, 9001 - sum(heats) + heats[1]]
    assert sum(heats) < outcome.cost.tokens <= 9001
    assert outcome.lesson["steps"] + outcome.lesson["cut"] == 12


def test_without_tokens_for_the_heat_both_arms_end_where_these_do(world):
    outcome = world.cycle(begun(spoken(reward())), 0, budget=replace(BUDGET, tokens=3001))
    assert [spec.params["max_tokens"] for spec in segments(world)] == [1500, 1500]
    assert 0 < outcome.cost.tokens <= 3001
    assert len(segments(world)) == 2
    assert 0 < outcome.lesson["steps"] < HEAT_STEPS
    assert outcome.lesson["steps"] + outcome.lesson["cut"] == 12


def test_an_arm_alone_has_all_tokens(world):
    world.cycle(reward(), 0, budget=replace(BUDGET, tokens=5001))
    assert world.runner.ran[0].params["max_tokens"] == 5001


def test_without_tokens_for_a_step_a_segment_is_timed_out(world):
    for ordinal, loop in enumerate((reward(), begun(spoken(reward())))):
        outcome = world.cycle(loop, ordinal, budget=replace(BUDGET, tokens=99))
        assert (outcome.verdict, outcome.cost.tokens) == (Verdict.TIMED_OUT, 0)
        assert "tokens" in outcome.reason


def test_a_shaping_that_gains_nothing_over_zero_is_dropped_and_the_control_is_what_may_be_promoted(tmp_path):
    world = World(tmp_path, learns=lambda spec, skill, steps: skill + 0.03)
    outcome = world.cycle(begun(spoken(reward())), 0)
    assert (outcome.evidence["arm"], outcome.verdict) == ("zero", Verdict.PROMOTED)
    assert outcome.evidence["over_zero"]["mean"] == pytest.approx(0.0, abs=1e-9)
    world.close()


def test_a_shaping_that_beat_its_control_goes_on_as_it_is_alone_for_eight_segments(world):
    loop = begun(spoken(reward()))
    outcome = world.cycle(loop, 0)
    assert outcome.evidence["arm"] == "shaped"
    kept = ("proven", "resting", "setbacks", "segments")
    state = {**spoken(reward()), **{key: world.state(loop)[key] for key in kept}}
    for _ in range(PROVEN_SEGMENTS):
        candidate = loop.propose(state, world.start, world.start, 0)
        trial = loop.run(candidate, _Bench(world, state))
        assert trial.values["arms"].keys() == {"shaped"}
        outcome = loop.judge(candidate, trial)
        assert (outcome.evidence["arm"], outcome.evidence["over_zero"]) == ("shaped", None)
        learned = loop.learn(state, candidate, outcome)
        state = {**state, **{key: learned[key] for key in kept}}
    assert loop.propose(state, world.start, world.start, 0).change["control"]


def test_what_was_proven_is_what_goes_on_whatever_newer_evidence_says(world):
    proven = {"weights": {"overlap": 0.5, "prefix": 0.5}, "until": 3}
    loop = reward()
    state = spoken(loop, proven=proven)
    assert loop.shaping(state, 0, 100).weights == proven["weights"]
    assert loop.shaping({**state, "segments": 3}, 0, 100).weights.keys() == {"places"}
    assert reward(features=("places", "prefix")).shaping(state, 0, 100).weights != proven["weights"]
    assert loop.shaping({**state, "switch": "closed"}, 0, 100).is_zero


def test_without_references_a_shaping_never_goes_without_its_control(world):
    loop = reward(references=False, approved=("places",))
    proven = {"weights": {"places": 1.0}, "until": 100}
    state = spoken(loop, proven=proven)
    assert not loop.shaping(state, 0, 100).is_zero
    assert loop.propose(state, world.start, world.start, 0).change["control"]


def test_a_shaping_that_collapses_alone_is_blocked_and_training_does_not_go_on_from_it(tmp_path):
    world = World(tmp_path, learns=lambda spec, skill, steps: skill / 3)
    loop = begun(spoken(reward(), proven={"weights": {"places": 1.0}, "until": 100}))
    outcome = world.cycle(loop, 0)
    assert (outcome.evidence["arm"], outcome.verdict, outcome.result) == ("shaped", Verdict.REJECTED, None)
    assert (outcome.lesson["sound"], outcome.evidence["blocked"]) == (False, "places")
    assert world.state(loop)["proven"] is None
    world.close()


def test_after_a_shaping_that_gained_nothing_over_zero_some_segments_have_none_and_more_each_time(tmp_path):
    world = World(tmp_path, learns=lambda spec, skill, steps: skill + 0.03)
    loop, segments, setbacks, rests = reward(), 0, 0, []
    for ordinal in range(3):
        state = spoken(loop, segments=segments, setbacks=setbacks)
        world.ledger.set_loop_state(loop.name, state, "evidence")
        world.cycle(loop, ordinal)
        told = world.state(loop)
        began, setbacks = told["segments"], told["setbacks"]
        segments = began
        while loop.shaping(spoken(loop, segments=segments, resting=told["resting"]), 0, 100).is_zero:
            segments += 1
        rests.append(segments - began)
    assert rests == [RESTING_SEGMENTS, 2 * RESTING_SEGMENTS, 4 * RESTING_SEGMENTS]
    world.close()


def test_a_shaping_that_beats_its_control_ends_the_setbacks(world):
    loop = begun(spoken(reward(), setbacks=3))
    world.cycle(loop, 0)
    assert world.state(loop)["setbacks"] == 0


def test_an_alarm_halves_the_strength_counts_a_strike_and_shuns_the_shaping(world):
    world.runner.adjust = lambda spec, values: {**values, "rank_correlation": -0.5}
    loop = begun(spoken(reward()))
    outcome = world.cycle(loop, 0)
    state = world.state(loop)
    assert [alarm["name"] for alarm in outcome.evidence["alarms"]] == ["rank"]
    assert (state["scale"], state["strikes"], len(state["avoid"])) == (0.5, 1, 1)
    assert loop.shaping({**state, "switch": "on"}, 0, 100).is_zero
    later = {**state, "switch": "on", "avoid": []}
    assert loop.shaping(later, 0, 100).strength == pytest.approx(0.2)


ALARMS = {
    "cusum": {"proxy": [0.2, 0.25] * 4 + [0.9] * 8, "truth": [0.2, 0.25] * 8},
    "rank": {"rank_correlation": -0.5},
    "canary": {"canaries": ["item 1: an empty answer counts as right"]},
    "verifier": {"disagreement": 0.021},
}


@pytest.mark.parametrize("name", list(ALARMS))
def test_each_alarm_is_a_row_with_its_figures_and_the_shaped_arm_is_out(world, name):
    def rings(spec, values):
        return {**values, **(ALARMS[name] if spec.params["shaping"]["weights"] else {})}

    world.runner.adjust = rings
    loop = begun(spoken(reward()))
    outcome = world.cycle(loop, 0)
    (row,) = world.ledger.rows(event=Event.ALARM)
    (alarm,) = outcome.evidence["alarms"]
    closed = world.ledger.latest(Event.CLOSED)
    assert (row.change, row.reason, row.evidence) == ({"alarm": name}, alarm["seen"], alarm["figures"])
    assert (row.cycle, row.loop, row.id) == (closed.cycle, "reward", closed.id - 1)
    assert row.evidence
    assert outcome.evidence["arm"] == "zero"
    state = world.state(loop)
    assert (state["scale"], state["strikes"], state["history"]) == (0.5, 1, [])
    assert [avoided["until"] for avoided in state["avoid"]] == [1 + AVOIDED_SEGMENTS]


def test_a_proxy_that_rises_alone_for_three_segments_rings_at_the_third(world):
    rising = [[0.2, 0.5], [0.3, 0.5], [0.4, 0.4]]
    level = [0.3] * 12
    world.runner.adjust = lambda spec, values: {
        **values, "proxy": [0.5] * 12, "truth": level, "q_before": [0.3] * 64, "q_after": [0.35] * 64
    }
    outcome = world.cycle(begun(spoken(reward(), history=rising)), 0)
    assert [alarm["name"] for alarm in outcome.evidence["alarms"]] == ["stall"]
    assert outcome.evidence["alarms"][0]["figures"]["truth"] == [0.5, 0.5, 0.4, 0.35]


@pytest.mark.parametrize("name", ["canary", "verifier"])
def test_verdicts_that_cannot_be_believed_are_not_learned_from_without_any_shaping_either(world, name):
    world.runner.adjust = lambda spec, values: {**values, **ALARMS[name]}
    loop = reward()
    outcome = world.cycle(loop, 0)
    assert (outcome.verdict, outcome.result) == (Verdict.REJECTED, None)
    assert [row.change["alarm"] for row in world.ledger.rows(event=Event.ALARM)] == [name]
    state = world.state(loop)
    assert (state["evidence"], state["strikes"]) == (loop.start()["evidence"], 1)


def test_after_three_alarms_segments_go_on_without_any_shaping_until_the_loop_is_re_armed(world):
    world.runner.adjust = lambda spec, values: {**values, **ALARMS["rank"]}
    loop = begun(spoken(reward()))
    for ordinal in range(3):
        world.ledger.set_loop_state(loop.name, {**spoken(loop), "strikes": ordinal, "scale": 0.5**ordinal}, "again")
        world.cycle(loop, ordinal)
    assert (world.state(loop)["strikes"], world.state(loop)["scale"]) == (3, 0.125)
    world.ledger.set_loop_state(loop.name, {**world.state(loop), "avoid": []}, "nothing is shunned any more")
    assert world.cycle(loop, 3).evidence["arm"] == "zero"
    assert [spec.params["shaping"]["weights"] for spec in world.runner.ran if spec.kind == "segment"][-1] == {}
    world.ledger.set_loop_state(loop.name, {**rearm(world.state(loop)), "switch": "on"}, "re-armed")
    world.cycle(loop, 4)
    assert any(spec.params["shaping"]["weights"] for spec in segments(world)[-3:])


def test_a_shunned_shaping_may_come_back_after_ten_segments(world):
    loop = reward()
    state = spoken(loop, avoid=[{"weights": {"places": 1.0}, "until": 1 + AVOIDED_SEGMENTS}], segments=1)
    candidate = loop.propose(state, world.start, world.start, 0)
    outcome = loop.judge(candidate, loop.run(candidate, _Bench(world, state)))
    for _ in range(AVOIDED_SEGMENTS):
        assert loop.shaping(spoken(loop, avoid=state["avoid"]), 0, 100).is_zero
        state = loop.learn(state, candidate, outcome)
    assert state["avoid"] == []


class _Bench:
    """One attempt outside a cycle."""

    def __init__(self, world, state):
        self.world, self.cycle = world, self
        self.state = state
        self.left = BUDGET

    def seed(self, *parts):
        return seed_from(*parts)

    def spec(self, kind, inputs, params, seed=0):
        return JobSpec(kind, inputs, params, seed)

    def jobs(self, specs):
        return self.world.runner.run_all(specs)


def test_three_strikes_freeze_the_loop_until_the_operator_re_arms_it():
    loop = reward()
    state = spoken(loop, strikes=3)
    assert frozen(state)
    assert loop.shaping(state, 0, 100).is_zero
    assert not frozen(rearm(state))
    assert not loop.shaping(rearm(state), 0, 100).is_zero


def test_a_collapse_of_q_blocks_the_heaviest_feature_and_is_recorded(tmp_path):
    def learns(spec, skill, steps):
        return 0.01 if spec.params["shaping"]["weights"] else skill + 0.03

    world = World(tmp_path, learns=learns)
    loop = begun(spoken(reward()))
    outcome = world.cycle(loop, 0)
    assert outcome.evidence["blocked"] == "places"
    assert "under half of the best" in outcome.evidence["guard"]
    assert outcome.evidence["arm"] == "zero"
    assert world.state(loop)["blocked"] == ["places"]
    assert loop.shaping({**world.state(loop), "switch": "on"}, 0, 100).is_zero
    world.close()


def test_the_switch_follows_the_success_average_and_closes_for_good(tmp_path):
    for skill, switch in ((0.0, "on"), (0.03, "off"), (0.3, "closed")):
        world = World(tmp_path / str(skill), skill=skill)
        loop = reward()
        world.cycle(loop, 0)
        assert world.state(loop)["switch"] == switch
        world.close()


def test_settings_outside_the_limits_are_refused():
    for settings, word in (({"strength": 0.41}, "strength"), ({"features": ("beauty",)}, "beauty"),
                           ({"features": ("places",) * 9}, "at most 8"), ({"probe_items": 1}, "probe_items")):
        with pytest.raises(ValueError, match=word):
            RewardSettings(**settings)


def test_strength_is_annealed_by_step_from_four_tenths():
    loop = reward()
    assert loop.shaping(spoken(loop), 0, 100).strength == pytest.approx(0.4)
    assert loop.shaping(spoken(loop), 75, 100).strength == pytest.approx(0.1)
    assert loop.shaping(spoken(loop), 100, 100).is_zero


def test_without_references_only_approved_features_are_used():
    assert RewardSettings(references=False).allowed == ()
    assert RewardSettings(references=False, approved=("varied",)).allowed == ("varied",)


def test_a_shaped_arm_that_fails_leaves_the_control_and_is_shunned(world):
    def fail(spec):
        if spec.kind == "segment" and spec.params["shaping"]["weights"]:
            raise JobFailed("diverged")

    world.runner.faults = fail
    loop = begun(spoken(reward()))
    outcome = world.cycle(loop, 0)
    assert (outcome.verdict, outcome.evidence["shaped_failed"]) == (Verdict.PROMOTED, "diverged")
    assert len(world.state(loop)["avoid"]) == 1


def test_a_control_that_fails_fails_the_cycle_with_its_reason(world):
    def fail(spec):
        raise JobFailed("out of memory")

    world.runner.faults = fail
    outcome = world.cycle(reward(), 0)
    assert (outcome.verdict, outcome.reason) == (Verdict.CRASHED, "out of memory")
    assert world.state(reward())["segments"] == 1


def test_the_same_state_and_segment_give_the_same_candidate_also_after_json():
    loop = reward()
    state = spoken(loop)
    again = json.loads(json.dumps(state))
    assert loop.propose(state, "a", "a", 1) == loop.propose(again, "a", "a", 2)


def test_evidence_over_other_features_is_dropped_when_the_operator_changes_the_list():
    loop = reward(features=("overlap",))
    old = {**loop.start(), "evidence": evidence_after(Evidence.empty(("places",)).to_json(), 0.0), "switch": "on"}
    assert loop.shaping(old, 0, 100).is_zero
