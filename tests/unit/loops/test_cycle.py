"""Seeds and trials of nested cycles: its place decides a cycle's seeds, and what it opens counts for its parent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from synthetic import BUDGET, World

from loops.architecture.loop import ArchitectureLoop
from loops.architecture.settings import ArchitectureSettings
from loops.loop import Bench, Trial
from loops.pipeline.loop import PipelineLoop, PipelineSettings
from loops.pipeline.recipe import GRPO, Adapter, Stage
from loops.reward.loop import RewardLoop, RewardSettings
from state.jobs import JobSpec
from state.records import (
    Budget,
    Candidate,
    Channel,
    Entry,
    Event,
    JsonObject,
    LoopName,
    Outcome,
    Row,
    Verdict,
)

BODY = [{"name": "t"}]
SOURCES = {"a": "a" * 64}
TRAINING = ArchitectureSettings(patience=0, inner_trials=4, inner_child_trials=6)


def nest(world: World) -> ArchitectureLoop:
    """All three loops, the outermost about to train the incumbent in segments."""
    recipe = replace(GRPO, steps=36, adapter=Adapter())
    reward = RewardLoop(RewardSettings(), BODY, "seal", SOURCES)
    pipeline = PipelineLoop(
        PipelineSettings((Stage.GRPO,), grpo=recipe, rungs=1, segment_steps=6), BODY, "seal", SOURCES, reward
    )
    return ArchitectureLoop(TRAINING, BODY, pipeline, world.start, (world.start,), "seal")


def trained(
    folder: Path, *, seed: int = 7, acts: int = 0, budget: Budget = BUDGET
) -> tuple[list[JobSpec], list[Row]]:
    """One outermost cycle after some rows of the operator's: the jobs it ran, and the child cycles it opened."""
    world = World(folder)
    world.house = replace(world.house, seed=seed)
    for _ in range(acts):
        world.ledger.append(Entry(Event.OPERATOR, "an act"))
    world.cycle(nest(world), 0, budget=budget)
    rows = [row for row in world.ledger.rows(event=Event.OPENED) if row.parent is not None]
    world.close()
    return world.runner.ran, rows


def test_what_an_operator_moved_working_away_from_cannot_be_promoted_over_him(tmp_path: Path) -> None:
    """The cycle is rejected, and the loop learns that verdict and no other."""
    world = World(tmp_path)
    elsewhere = world.runner.keep("model", "skill-elsewhere", {"skill": 0.1})

    class Overtaken:
        """Its candidate wins, but while it runs an operator moves working."""

        name = LoopName.ARCHITECTURE

        def start(self) -> JsonObject:
            return {"learned": None}

        def propose(self, state: JsonObject, base: str, incumbent: str, seed: int) -> Candidate:
            return Candidate(self.name, {"kind": "keep"}, base, incumbent)

        def run(self, candidate: Candidate, bench: Bench) -> Trial:
            world.ledger.append(Entry(Event.ROLLBACK, "back"), move=(Channel.WORKING, elsewhere))
            return Trial(world.start, {})

        def judge(self, candidate: Candidate, trial: Trial) -> Outcome:
            return Outcome(Verdict.PROMOTED, "better", trial.result)

        def learn(self, state: JsonObject, candidate: Candidate, outcome: Outcome) -> JsonObject:
            return {"learned": str(outcome.verdict)}

    outcome = world.cycle(Overtaken(), 0)
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, "working was moved while this was tried")
    assert world.ledger.channel(Channel.WORKING) == elsewhere
    assert world.ledger.loop_state(LoopName.ARCHITECTURE) == {"learned": "REJECTED"}
    world.close()


def test_rows_that_others_write_in_between_change_no_job(tmp_path: Path) -> None:
    plain, later = (trained(tmp_path / str(acts), acts=acts)[0] for acts in (0, 3))
    assert len(plain) > 6
    assert [spec.seed for spec in plain] == [spec.seed for spec in later]
    assert [spec.params.get("seed") for spec in plain] == [spec.params.get("seed") for spec in later]


def test_another_seed_of_the_house_gives_every_segment_another_one(tmp_path: Path) -> None:
    seeds = [
        {spec.seed for spec in trained(tmp_path / str(seed), seed=seed)[0] if spec.kind == "segment"} for seed in (7, 8)
    ]
    assert seeds[0]
    assert not seeds[0] & seeds[1]


def test_cycles_at_any_depth_stay_within_the_trials_of_the_outermost(tmp_path: Path) -> None:
    for trials in (1, 2, 5, 9, 20):
        _, opened = trained(tmp_path / str(trials), budget=replace(BUDGET, trials=trials))
        assert 0 < len(opened) <= trials
