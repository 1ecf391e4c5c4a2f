"""`show` tells which data a model saw and how much, along real cycles of a make-believe model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import World

from daemon.data_seen import data_in_words, data_seen
from daemon.provenance import ancestry, data_given
from daemon.reports import show_report
from loops.pipeline.loop import PipelineLoop
from loops.pipeline.recipe import GRPO, SFT, Adapter, Deduplicate, Selection, Stage
from loops.pipeline.settings import PipelineSettings
from loops.pipeline.space import Ranges
from loops.reward.loop import RewardLoop, RewardSettings
from state.errors import UserError
from state.jobs import JobSpec
from state.reading import Reading
from state.records import JsonObject, Verdict

SOURCES = {"a": "a" * 64, "b": "b" * 64}
SHORT = replace(SFT, learning_rate=1e-3, steps=40, batch=8, adapter=Adapter(), mixture={"a": 1.0, "b": 1.0})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def pipeline(stage: Stage, sft: object = SHORT, **settings: object) -> PipelineLoop:
    reward = RewardLoop(RewardSettings(), [{"name": "t"}], "seal", SOURCES)
    grpo = replace(GRPO, steps=12, adapter=Adapter())
    made = PipelineSettings(stages=(stage,), sft=sft, grpo=grpo, segment_steps=6, **settings)   # type: ignore[arg-type]
    return PipelineLoop(made, [{"name": "t"}], "seal", SOURCES, reward)


def seen(world: World, model: str) -> JsonObject:
    with Reading(world.database.path) as reading:
        return data_seen(ancestry(reading, model), data_given(reading))


def amounts(found: JsonObject) -> dict[str, tuple[int, int]]:
    return {entry["source"]: (entry["rows"], entry["tokens"]) for entry in found["sources"]}


def test_what_was_given_saw_nothing_and_what_was_trained_saw_its_run(world: World) -> None:
    nothing = {"sources": [], "tasks": [], "prompts": 0, "levels": [], "runs": [], "unrecorded": []}
    assert seen(world, world.start) == nothing
    outcome = world.cycle(pipeline(Stage.SFT, rungs=1), 0)
    assert outcome.result
    assert amounts(seen(world, outcome.result)) == {"a": (160, 1600), "b": (160, 1600)}


def test_a_run_on_a_trained_model_adds_to_what_it_saw(world: World) -> None:
    first = world.cycle(pipeline(Stage.SFT, rungs=1), 0).result
    assert first
    second = world.cycle(pipeline(Stage.GRPO, rungs=1), 1, base=first).result
    assert second
    found = seen(world, second)
    assert found["tasks"] == ["t"]
    assert found["prompts"] == 12 * GRPO.batch
    assert amounts(found)["a"] == (160 + 12 * 48, 1600 + 12 * 480)
    assert len(found["runs"]) == 2


def test_rungs_that_left_no_model_in_force_are_counted_with_the_one_that_did(tmp_path: Path) -> None:
    world = World(tmp_path, learns=lambda spec, skill, steps: skill + (0.2 if spec.params["to_step"] == 40 else -0.01))
    loop = pipeline(Stage.SFT, eta=2, rungs=2, ranges=Ranges(batch=()))
    outcomes = [world.cycle(loop, ordinal) for ordinal in range(4)]
    won = next(outcome for outcome in outcomes if outcome.verdict is Verdict.PROMOTED)
    assert won.result
    found = seen(world, won.result)
    assert amounts(found) == {"a": (160, 1600), "b": (160, 1600)}
    with Reading(world.database.path) as reading:
        assert ancestry(reading, won.result)[0].parents == (world.start,)
    world.close()


def test_prompts_of_rungs_that_left_no_model_are_counted_too_and_by_level(tmp_path: Path) -> None:
    """The first rung, at the first level, is worse than the base; only the second, at the target itself, is better."""
    world = World(tmp_path, learns=lambda spec, skill, steps: skill + (
        -0.01 if spec.params["from_step"] < 6 else 0.3))
    target = {"name": "t", "source": {"kind": "reasoning_gym", "generator": "chain_sum", "config": {"max_digits": 3}}}
    levels = {"t": ({"max_digits": 1}, {"max_digits": 2})}
    whole = pipeline(Stage.GRPO, eta=2, rungs=2)
    reward = RewardLoop(RewardSettings(levels=levels), [target], "seal", SOURCES)
    loop = replace(whole, targets=[target], inner=reward)
    outcomes = [world.cycle(loop, ordinal) for ordinal in range(3)]
    won = next(outcome for outcome in outcomes if outcome.verdict is Verdict.PROMOTED)
    assert won.result
    found = seen(world, won.result)
    assert found["tasks"] == ["t"]
    assert found["prompts"] == 12 * GRPO.batch
    assert [(level["config"], level["prompts"]) for level in found["levels"]] == [({"max_digits": 1}, 6 * GRPO.batch)]
    assert f"of them {6 * GRPO.batch} of t at another level" in "\n".join(data_in_words(found))
    with Reading(world.database.path) as reading:
        assert ancestry(reading, won.result)[0].parents == (world.start,)
    world.close()


def test_what_a_selection_kept_and_dropped_is_told_by_digest(world: World) -> None:
    outcome = world.cycle(pipeline(Stage.SFT, sft=replace(SHORT, selection=Selection(Deduplicate.EXACT)), rungs=1), 0)
    assert outcome.result
    found = seen(world, outcome.result)
    entry = found["sources"][0]
    chosen = world.runner.book.result(world.runner.ran[0].digest)
    assert chosen is not None
    assert entry["digest"] == chosen.outputs["data:a"] != SOURCES["a"]
    assert "selected 90 of 100 (dropped: duplicate 10)" in data_in_words(found)[0]


def test_training_that_was_recorded_without_amounts_is_said_to_be(world: World) -> None:
    def without(spec: JobSpec, values: JsonObject) -> JsonObject:
        return {key: value for key, value in values.items() if key != "sources"}

    world.runner.adjust = without
    outcome = world.cycle(pipeline(Stage.SFT, rungs=1), 0)
    assert outcome.result
    found = seen(world, outcome.result)
    assert (found["sources"], len(found["unrecorded"])) == ([], 1)
    assert "did not record how much in row" in data_in_words(found)[0]


def test_show_takes_a_row_a_digest_or_a_channel_and_refuses_what_is_neither(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kaizend.toml").write_text('[service]\nstate = "."\n')
    outcome = world.cycle(pipeline(Stage.SFT, rungs=1), 0)
    row = max(each.id for each in world.ledger.rows())
    told = []
    for what in ("working", str(outcome.result)[:12], str(row)):
        show_report(tmp_path / "kaizend.toml", what, True)
        told.append(json.loads(capsys.readouterr().out)["data"])
    assert told[0] == told[1] == told[2] and told[0]["runs"] == [row]
    show_report(tmp_path / "kaizend.toml", "working", False)
    assert f"a ({SOURCES['a'][:12]}): 160 rows, 1,600 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="not a row, a channel or a known digest"):
        show_report(tmp_path / "kaizend.toml", "soon", True)
