"""Seeds and trials of nested cycles: its place decides a cycle's seeds, and what it opens counts for its parent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import BUDGET, World

from loops.architecture.loop import ArchitectureLoop
from loops.architecture.settings import ArchitectureSettings
from loops.cycle import propose_cycle
from loops.loop import Bench, Trial
from loops.pipeline.loop import PipelineLoop
from loops.pipeline.recipe import GRPO, Adapter, Stage
from loops.pipeline.settings import PipelineSettings
from loops.reward.loop import RewardLoop, RewardSettings
from safety.bounds import Bounds
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

    def overtaken(candidate: Candidate, bench: Bench) -> Trial:
        world.ledger.append(Entry(Event.ROLLBACK, "back"), move=(Channel.WORKING, elsewhere))
        return Trial(world.start, {})

    outcome = world.cycle(Scripted(run=overtaken), 0)
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, "working was moved while this was tried")
    assert world.ledger.channel(Channel.WORKING) == elsewhere
    assert world.ledger.loop_state(LoopName.ARCHITECTURE) == {"learned": ["REJECTED"]}
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


class Scripted:
    """A loop whose every part does what a test says; its state counts what it learned."""

    name = LoopName.ARCHITECTURE

    def __init__(self, **parts: Callable[..., Any]) -> None:
        self.parts = parts
        self.met: list[tuple[str, int]] = []                # incumbent and seed of every run
        self.seen: list[list[JsonObject]] = []              # the changes in flight at every proposal

    def start(self) -> JsonObject:
        return {"learned": []}

    def propose(
        self, state: JsonObject, base: str, incumbent: str, seed: int, in_flight: Sequence[Candidate] = ()
    ) -> Candidate:
        self.seen.append([candidate.change for candidate in in_flight])
        return self.parts.get("propose", lambda: Candidate(self.name, {"kind": "keep"}, base, incumbent))()

    def run(self, candidate: Candidate, bench: Bench) -> Trial:
        self.met.append((candidate.incumbent, bench.seed("fresh")))
        return self.parts["run"](candidate, bench)

    def judge(self, candidate: Candidate, trial: Trial) -> Outcome:
        verdict = Verdict.PROMOTED if trial.result else Verdict.REJECTED
        return Outcome(verdict, "as measured", trial.result)

    def learn(self, state: JsonObject, candidate: Candidate, outcome: Outcome) -> JsonObject:
        self.parts.get("learn", lambda: None)()
        return {"learned": [*state["learned"], str(outcome.verdict)]}


def failing(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def test_a_loop_that_cannot_propose_gives_a_crashed_cycle_and_keeps_its_state(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.cycle(Scripted(propose=failing(ValueError("a learning rate of 1.5"))), 0)
    assert outcome.verdict is Verdict.CRASHED
    assert outcome.reason == "nothing was proposed: ValueError: a learning rate of 1.5"
    assert world.ledger.loop_state(LoopName.ARCHITECTURE) == {"learned": []}
    sound = Scripted(run=lambda candidate, bench: Trial(None, {}))
    assert world.cycle(sound, 1).verdict is Verdict.REJECTED
    assert [row.verdict for row in world.ledger.rows(event=Event.CLOSED)] == ["CRASHED", "REJECTED"]
    world.close()


def test_a_cycle_from_which_its_loop_cannot_learn_is_crashed_and_moves_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    made = world.runner.keep("model", "skill-made", {"skill": 0.5})
    outcome = world.cycle(Scripted(run=lambda *_: Trial(made, {}), learn=failing(KeyError("fitness"))), 0)
    assert outcome.verdict is Verdict.CRASHED
    assert outcome.reason == "its loop could not learn from PROMOTED: KeyError: 'fitness'"
    assert world.ledger.channel(Channel.WORKING) == world.start
    assert world.ledger.loop_state(LoopName.ARCHITECTURE) == {"learned": []}
    world.close()


def test_a_loop_is_told_what_is_in_flight_when_it_proposes(tmp_path: Path) -> None:
    world, loop = World(tmp_path), Scripted(run=lambda *_: Trial(None, {}))
    propose_cycle(world.house, loop, None, 0, world.start, world.start, BUDGET)
    propose_cycle(world.house, loop, None, 1, world.start, world.start, BUDGET)
    world.cycle(loop, 0)
    propose_cycle(world.house, loop, None, 2, world.start, world.start, BUDGET)
    assert loop.seen == [[], [{"kind": "keep"}], [{"kind": "keep"}]]
    world.close()


@pytest.mark.parametrize("wins", [True, False])
def test_a_winner_must_also_beat_what_became_working_meanwhile(tmp_path: Path, wins: bool) -> None:
    """Two cycles in flight against the same incumbent: the second to win meets the first one's result, on items of its
    own.
    """
    world = World(tmp_path)
    first, second = (world.runner.keep("model", f"skill-{name}", {"skill": 0.5}) for name in ("one", "two"))

    def overtaken(candidate: Candidate, bench: Bench) -> Trial:
        if candidate.incumbent == world.start:
            world.cycle(Scripted(run=lambda *_: Trial(first, {})), 1)
            return Trial(second, {})
        return Trial(second if wins else None, {})

    loop = Scripted(run=overtaken)
    outcome = world.cycle(loop, 0)
    assert outcome.verdict is (Verdict.PROMOTED if wins else Verdict.REJECTED)
    assert world.ledger.channel(Channel.WORKING) == (second if wins else first)
    assert [incumbent for incumbent, _ in loop.met] == [world.start, first]
    assert len({seed for _, seed in loop.met}) == 2
    assert outcome.evidence["rivals"] == [first]
    state = world.ledger.loop_state(LoopName.ARCHITECTURE)
    assert state == {"learned": ["PROMOTED", "PROMOTED" if wins else "REJECTED"]}
    world.close()


def merge_at(weight: float) -> JsonObject:
    return {"kind": "merge", "operator": "linear", "base": "b", "parents": ["p", "q"], "weights": [[[weight]], [[1.0]]]}


def test_a_merge_too_far_from_the_one_that_is_working_is_refused_and_a_nearer_one_runs(tmp_path: Path) -> None:
    world = World(tmp_path)
    tight = replace(Bounds(), search=replace(Bounds().search, largest_step=0.5), warn={"search.largest_step": 0.2})
    world.house = replace(world.house, bounds=lambda: tight)
    models = [world.runner.keep("model", f"skill-{n}", {"skill": n / 10}) for n in range(3)]

    def attempted(ordinal: int, weight: float) -> Outcome:
        working = str(world.ledger.channel(Channel.WORKING))
        loop = Scripted(
            propose=lambda: Candidate(LoopName.ARCHITECTURE, merge_at(weight), working, working),
            run=lambda candidate, bench: Trial(models[ordinal], {}),
        )
        return world.cycle(loop, ordinal, working)

    first = attempted(0, 2.0)                                   # the first model is no merge: nothing to compare with
    assert (first.verdict, "warnings" in first.evidence) == (Verdict.PROMOTED, False)
    refused = attempted(1, 1.4)
    assert refused.verdict == Verdict.REFUSED
    assert "search.largest_step: 0.6" in refused.reason
    near = attempted(2, 1.6)
    assert near.verdict == Verdict.PROMOTED
    assert near.evidence["warnings"] == ["search.largest_step: 0.4 is past the warning level 0.2 (limit 0.5)"]
    world.close()
