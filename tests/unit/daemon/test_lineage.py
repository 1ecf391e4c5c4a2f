"""What the pipeline loop is told of a model's lineage is what the ledger says."""

from __future__ import annotations

from pathlib import Path

from synthetic import World

from daemon.wiring import lineage
from loops.pipeline.loop import PipelineLoop
from loops.pipeline.recipe import Stage
from loops.pipeline.settings import PipelineSettings
from loops.reward.loop import RewardLoop, RewardSettings
from state.records import Verdict


def test_a_trained_model_descends_from_the_one_it_was_trained_from_and_an_operators_from_none(tmp_path: Path) -> None:
    world = World(tmp_path, learns=lambda spec, skill, steps: skill + 0.3)
    reward = RewardLoop(RewardSettings(), [{"name": "t"}], "seal", {})
    settings = PipelineSettings(stages=(Stage.SFT,))
    loop = PipelineLoop(
        settings, [{"name": "t"}], "seal", {"a": "a" * 64}, reward,
        ancestors=lambda digest: lineage(database, digest),
    )
    database = tmp_path / "kaizend.db"
    outcome = world.cycle(loop, 0)
    assert outcome.verdict is Verdict.PROMOTED
    assert outcome.result is not None
    assert lineage(database, world.start) == [world.start]
    assert lineage(database, outcome.result) == [outcome.result, world.start]
    trained = loop.propose(world.state(loop), outcome.result, outcome.result, 1)
    assert trained.change["study"] == outcome.result
    world.close()
