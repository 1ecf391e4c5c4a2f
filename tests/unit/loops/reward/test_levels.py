"""Which level of difficulty a segment asks, and what the loop keeps of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import World, evidence_after

from loops.pipeline.recipe import GRPO
from loops.reward.levels import KNOWN_SEGMENTS, asked, chosen, learned, told, unfit
from loops.reward.loop import RewardLoop, RewardSettings
from safety.yardstick.items import TaskSpec
from state.jobs import JobSpec
from state.records import JsonObject, Verdict

SUMS = TaskSpec(
    "sums", "target", {"kind": "reasoning_gym", "generator": "chain_sum", "config": {"max_terms": 2, "max_digits": 4}},
    10, 0, "reasoning_gym",
)
OTHER = TaskSpec("other", "target", {"kind": "bilingual", "family": "maths2"}, 10)
LEVELS = {"sums": ({"max_digits": 1}, {"max_digits": 2}, {"max_digits": 3})}
TARGETS = [SUMS.to_json(), OTHER.to_json()]


def after(state: JsonObject, success: float) -> JsonObject:
    """The state after a segment at the level that it asks for, with this success there."""
    change = {"levels": chosen(LEVELS, TARGETS, state)}
    segments = state["segments"] + 1
    answered = {"sums": {"prompts": 8, "success": success}}
    return {"segments": segments, "levels": learned(state, change, answered, TARGETS, LEVELS, segments)}


def walked(*successes: float) -> list[int]:
    """The levels that are asked one after the other, and the one after the last."""
    state: JsonObject = {"segments": 0}
    found = []
    for success in successes:
        found.append(chosen(LEVELS, TARGETS, state)["sums"]["level"])
        state = after(state, success)
    return [*found, chosen(LEVELS, TARGETS, state)["sums"]["level"]]


def test_it_begins_with_the_easiest_level_and_climbs_while_nearly_all_is_right() -> None:
    assert walked(0.95, 0.9, 0.99, 0.9) == [1, 2, 3, 4, 4]


def test_where_half_is_right_a_harder_level_is_tried_and_kept_only_if_it_is_useful_too() -> None:
    assert walked(0.5, 0.3) == [1, 2, 3]
    assert walked(0.5, 0.01) == [1, 2, 1]


def test_where_nothing_is_useful_the_level_with_most_spread_is_asked_and_of_equals_the_harder() -> None:
    assert walked(0.95, 0.002) == [1, 2, 1]
    assert walked(0.9, 0.1) == [1, 2, 2]
    assert walked(0.01, 0.02) == [1, 1, 1]


def test_a_level_that_was_too_hard_is_tried_again_after_some_segments() -> None:
    levels = walked(0.5, 0.0, *[0.5] * (KNOWN_SEGMENTS + 1))
    assert levels == [1, 2, *[1] * KNOWN_SEGMENTS, 2, 3]


def test_an_easier_level_is_gone_back_to_when_the_harder_one_becomes_hopeless() -> None:
    assert walked(0.9, 0.5, 0.0, 0.01) == [1, 2, 3, 2, 1]


@given(st.lists(st.floats(0.0, 1.0), max_size=24))
def test_nothing_harder_is_asked_than_the_next_one_to_what_was_asked_and_json_changes_nothing(
    successes: list[float]
) -> None:
    hardest, state = 0, {"segments": 0}
    for success in successes:
        change = chosen(LEVELS, TARGETS, state)
        assert change == chosen(LEVELS, TARGETS, json.loads(json.dumps(state)))
        assert 1 <= change["sums"]["level"] <= min(hardest + 1, 4)
        hardest = max(hardest, change["sums"]["level"])
        state = after(state, success)


def test_a_learner_that_gets_better_where_it_practises_ends_at_the_target_itself() -> None:
    skill, state = 0.0, {"segments": 0}
    for _ in range(60):
        level = chosen(LEVELS, TARGETS, state)["sums"]["level"]
        success = min(1.0, max(0.0, 1.2 + skill - level))
        skill += 2.0 * success * (1 - success)
        state = after(state, success)
    assert chosen(LEVELS, TARGETS, state)["sums"] == {"level": 4, "of": 4}
    assert skill > 3.0


def test_the_last_level_is_the_target_as_it_is_and_a_level_says_only_what_differs() -> None:
    first = {"levels": chosen(LEVELS, TARGETS, {"segments": 0})}
    assert asked(first) == {"sums": {"max_terms": 2, "max_digits": 1}}
    last = {"levels": {"sums": {"level": 4, "of": 4}}}
    assert asked(last) == {}
    values = {"asked": {"sums": {"prompts": 9, "success": 0.5}, "other": {"prompts": 8, "success": 0.1}}}
    easy, hard = told(first, values), told(last, values)
    assert [what["prompts"] for what in easy.values()] == [9, 8]
    assert len(easy.keys() | hard.keys()) == 3                               # `other` has the same digest in both


def test_what_the_operator_took_from_the_list_is_forgotten() -> None:
    state = after({"segments": 0}, 0.95)
    assert chosen({"sums": LEVELS["sums"][1:]}, TARGETS, state)["sums"]["level"] == 1
    assert chosen(LEVELS, TARGETS, state)["sums"]["level"] == 2
    change = {"levels": chosen(LEVELS, TARGETS, state)}
    shorter = learned(state, change, {"sums": {"prompts": 8, "success": 0.9}}, TARGETS,
                      {"sums": LEVELS["sums"][1:]}, 2)
    assert len(shorter["success"]["sums"]) == 1


def test_levels_that_cannot_be_asked_are_refused_in_one_line() -> None:
    twice: dict[str, Any] = {"max_digits": 1}
    for levels, said in (
        ({"sum": (twice,)}, "levels.sum: there is no target of that name"),
        ({"other": (twice,)}, "a task of the kind bilingual has no levels"),
        ({"sums": (twice, twice)}, "level 1 is the same as level 2"),
        ({"sums": ({"max_digits": 4},)}, "level 1 is the same as the task's own config"),
        ({"sums": ({"max_digits": {1}},)}, "a value that is no JSON"),
    ):
        assert said in str(unfit(levels, [SUMS, OTHER]))
    assert unfit(LEVELS, [SUMS, OTHER]) is None
    for levels, said in (({"sums": ()}, "levels.sums is empty"), ({"sums": ({},)}, "level 1 says nothing")):
        with pytest.raises(ValueError, match=said):
            RewardSettings(levels=levels)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def reward(levels: JsonObject = LEVELS) -> RewardLoop:
    loop = RewardLoop(RewardSettings(levels=levels), TARGETS, "seal", {"data": "d" * 64})
    return loop.on({
        "recipe": GRPO.to_json(), "checkpoint": None, "from_step": 0, "steps": 12, "segment": 0, "lineage": "c",
    })


def answering(success: float, **more: object) -> Any:
    return lambda spec, values: values if spec.kind != "segment" else {
        **values, "asked": {"sums": {"prompts": 48, "success": success}}, **more,
    }


def segments(world: World) -> list[JobSpec]:
    return [spec for spec in world.runner.ran if spec.kind == "segment"]


def test_a_segment_asks_at_the_level_of_its_change_and_its_targets_stay_as_they_are(world: World) -> None:
    world.runner.adjust = answering(0.95)
    first, second = world.cycle(reward(), 0), world.cycle(reward(), 1)
    assert [spec.params["levels"]["sums"]["max_digits"] for spec in segments(world)] == [1, 2]
    assert all(spec.params["tasks"] == TARGETS for spec in segments(world))
    change = next(row.change for row in world.ledger.rows() if row.loop == "reward" and row.event == "opened")
    assert change["levels"] == {"sums": {"level": 1, "of": 4, "config": {"max_terms": 2, "max_digits": 1}}}
    (what,) = first.evidence["asked"].values()
    assert what == {"task": "sums", "prompts": 48, "success": 0.95, **change["levels"]["sums"]}
    assert first.evidence["asked"].keys() != second.evidence["asked"].keys()


def test_at_the_last_level_the_job_is_the_one_without_levels(world: World) -> None:
    world.runner.adjust = answering(0.95)
    for ordinal in range(4):
        world.cycle(reward(), ordinal)
    assert "levels" not in segments(world)[-1].params
    assert world.state(reward())["levels"]["asked"] == {"sums": {"level": 4, "of": 4}}


def test_without_levels_nothing_of_a_change_or_a_job_speaks_of_them(world: World) -> None:
    candidate = reward({}).propose(reward({}).start(), world.start, world.start, 1)
    assert "levels" not in candidate.change
    world.cycle(reward({}), 0)
    assert "levels" not in segments(world)[0].params


def test_a_state_of_an_earlier_version_goes_on_and_levels_may_come_and_go(world: World) -> None:
    old = {key: value for key, value in reward({}).start().items() if key != "levels"}
    world.cycle(reward({}), 0)
    world.ledger.set_loop_state(reward().name, old, "as an earlier version left it")
    for ordinal, levels in enumerate(({}, LEVELS, {}, LEVELS), start=1):
        assert world.cycle(reward(levels), ordinal).verdict is Verdict.PROMOTED
    assert ["levels" in spec.params for spec in segments(world)] == [False, False, True, False, True]


def test_a_success_that_is_not_to_be_believed_is_not_learned(world: World) -> None:
    world.runner.adjust = answering(0.95, canaries=["item 1: an empty answer counts as right"])
    assert world.cycle(reward(), 0).evidence["alarms"]
    assert world.state(reward())["levels"] == {}


def test_what_was_sampled_at_another_level_is_no_part_of_the_history_of_proxy_and_truth(world: World) -> None:
    loop = reward()
    state = {
        **loop.start(), "evidence": evidence_after(loop.start()["evidence"], 0.0), "switch": "on",
        "history": [[0.1, 0.3], [0.2, 0.3], [0.3, 0.3]],
    }
    world.cycle(loop, 0)
    world.ledger.set_loop_state(loop.name, state, "at no level so far")
    outcome = world.cycle(loop, 1)
    assert "stall" not in [alarm["name"] for alarm in outcome.evidence["alarms"]]
    assert len(world.state(loop)["history"]) == 1
