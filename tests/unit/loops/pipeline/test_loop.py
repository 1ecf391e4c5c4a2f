"""The pipeline loop, run through real cycles on a make-believe model, reinforcement and its child cycles included."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from itertools import count, pairwise

import pytest
from synthetic import BUDGET, World

from loops.cycle import run_cycle
from loops.loop import Bench
from loops.pipeline import weighing
from loops.pipeline.loop import MOST_VALUES, PipelineLoop
from loops.pipeline.recipe import DPO, GRPO, SFT, Adapter, Deduplicate, Selection, Stage
from loops.pipeline.settings import PipelineSettings
from loops.pipeline.space import Ranges
from loops.reward.loop import RewardLoop, RewardSettings
from state.jobs import JobFailed, Parked
from state.records import Budget, Candidate, Outcome, Verdict, canonical

BODY = [{"name": "t"}]
QUICK_SFT = replace(SFT, learning_rate=1e-3, steps=90, adapter=Adapter(), mixture={"a": 1.0, "b": 1.0})
QUICK_DPO = replace(DPO, learning_rate=1e-3, steps=90, adapter=Adapter())
ALL = (Stage.SFT, Stage.DPO, Stage.GRPO)
QUICK_GRPO = replace(GRPO, steps=36, adapter=Adapter())


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def pipeline(world: World, preferences: dict[str, str] | None = None, **settings) -> PipelineLoop:
    sources = {"a": "a" * 64, "b": "b" * 64}
    reward = RewardLoop(RewardSettings(), BODY, "seal", sources)
    settings = {"sft": QUICK_SFT, "dpo": QUICK_DPO, "grpo": QUICK_GRPO, "segment_steps": 6, **settings}
    return PipelineLoop(PipelineSettings(**settings), BODY, "seal", sources, reward, preferences or {})


def kinds(world: World) -> list[str]:
    return [spec.kind for spec in world.runner.ran]


def test_the_first_cycle_trains_the_default_recipes_first_rung_and_compares_with_the_incumbent(world):
    outcome = world.cycle(pipeline(world), 0)
    train, compare = world.runner.ran[:2]
    assert (train.params["from_step"], train.params["to_step"]) == (0, 10)
    assert train.inputs == {"model": world.start, "data:a": "a" * 64, "data:b": "b" * 64}
    assert compare.inputs["model:old"] == world.start
    assert compare.params["tasks"] == BODY
    assert outcome.evidence["comparison"]["n"] == 512
    assert kinds(world)[:2] == ["train", "compare"]


def learning(world: World, **settings) -> PipelineLoop:
    """The mixture is left to what the sources pay."""
    return pipeline(world, stages=(Stage.SFT,), sft=replace(QUICK_SFT, mixture={}), **settings)


def test_sources_are_weighed_once_for_each_base_and_all_its_recipes_go_by_it_the_first_one_too(world):
    world.runner.pays = {"a": 0.05, "b": -0.1}
    loop = learning(world)
    first = world.cycle(loop, 0)
    assert kinds(world)[:3] == ["weigh", "train", "compare"]
    assert world.runner.ran[0].inputs == {"model": world.start, "seal": "seal", "data:a": "a" * 64, "data:b": "b" * 64}
    assert first.evidence["weighed"]["b"]["gain"] == -0.1
    assert world.runner.ran[0].params["steps"] == QUICK_SFT.steps // (weighing.PART * 2) < weighing.STEPS
    assert world.runner.ran[0].params["max_tokens"] == BUDGET.tokens // weighing.PART
    world.cycle(loop, 1)
    assert kinds(world).count("weigh") == 1
    mixtures = [spec.params["recipe"]["mixture"] for spec in world.runner.ran if spec.kind == "train"]
    assert all(mixture["b"] < 0.1 for mixture in mixtures)
    assert first.evidence["mixture"] == mixtures[0]
    begun = world.state(loop)["studies"][0]["configurations"][0]
    assert begun["recipe"]["mixture"] == mixtures[0]
    assert loop.propose(world.state(loop), "f" * 64, "f" * 64, 1).change["weigh"] is True


def test_where_the_operator_names_shares_nothing_is_weighed(world):
    world.cycle(pipeline(world, stages=(Stage.SFT,)), 0)
    assert "weigh" not in kinds(world)


NEAR = Selection(Deduplicate.NEAR)


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.GRPO])
def test_what_a_recipe_selects_is_what_is_trained_on_and_learned_again(world, stage):
    recipes = {"sft": replace(QUICK_SFT, selection=NEAR), "grpo": replace(QUICK_GRPO, selection=NEAR)}
    loop = pipeline(world, stages=(stage,), **recipes)
    outcome = world.cycle(loop, 0)
    world.cycle(loop, 1)
    select, *others = world.runner.ran
    assert (select.kind, kinds(world).count("select")) == ("select", 1)
    assert select.inputs == {"data:a": "a" * 64, "data:b": "b" * 64}
    chosen = world.runner.book.result(select.digest).outputs
    for spec in (spec for spec in others if spec.kind in ("train", "segment")):
        assert {name: digest for name, digest in spec.inputs.items() if name[:5] == "data:"} == chosen
    told = outcome.evidence["data"]["a"]
    assert told["digest"] == chosen["data:a"]
    assert told["selected"] == {"rows": 100, "kept": 90, "dropped": {"duplicate": 10}}
    assert told["tokens"] > 0


def test_only_a_band_of_perplexity_asks_the_base_of_the_study(world):
    loop = pipeline(world, stages=(Stage.SFT,), sft=replace(QUICK_SFT, selection=Selection(perplexity=(0.1, 0.9))))
    world.cycle(loop, 0)
    assert world.runner.ran[0].inputs["model"] == world.start


def test_a_selection_that_leaves_nothing_is_refused_in_words_and_one_that_leaves_a_source_goes_on(world):
    loop = pipeline(world, stages=(Stage.SFT,), sft=replace(QUICK_SFT, selection=NEAR))
    world.runner.emptied = {"a"}
    assert world.cycle(loop, 0).verdict in (Verdict.PROMOTED, Verdict.REJECTED)
    assert [name for name in world.runner.ran[1].inputs if name[:5] == "data:"] == ["data:b"]
    empty = pipeline(world, stages=(Stage.SFT,), sft=replace(QUICK_SFT, mixture={"a": 1.0}, selection=NEAR))
    outcome = world.cycle(empty, 1)
    assert outcome.verdict is Verdict.REFUSED
    assert outcome.reason == "the recipe's selection leaves no row of the data that it trains on"
    assert kinds(world).count("train") == 1


def test_a_configuration_remembers_what_it_was_trained_on_rung_after_rung(world):
    loop = pipeline(world, stages=(Stage.SFT,), eta=2)
    for ordinal in range(8):
        world.cycle(loop, ordinal)
    climbed = max(world.state(loop)["studies"][0]["configurations"], key=lambda c: c["step"])
    assert len(climbed["values"]) > 1
    assert climbed["seen"]["a"]["tokens"] == climbed["step"] * climbed["recipe"]["batch"] * 10 // 2


def test_a_clear_gain_is_promoted_and_a_loss_is_rejected(tmp_path):
    for name, factor, verdict in (("up", 30, Verdict.PROMOTED), ("down", -10, Verdict.REJECTED)):
        world = World(tmp_path / name, learns=lambda spec, skill, steps, f=factor: skill + f * steps * 1e-3)
        outcome = world.cycle(pipeline(world), 0)
        assert outcome.verdict is verdict
        assert (outcome.result is not None) == (verdict is Verdict.PROMOTED)
        world.close()


def test_survivors_go_on_from_their_checkpoint_and_no_step_is_trained_twice(world):
    loop = pipeline(world, stages=(Stage.SFT,), children=0)
    for ordinal in range(14):
        world.cycle(loop, ordinal)
    walked: dict[str, list[tuple[int, int]]] = {}
    for spec in (spec for spec in world.runner.ran if spec.kind == "train"):
        key = json.dumps(spec.params["recipe"], sort_keys=True)
        walked.setdefault(key, []).append((spec.params["from_step"], spec.params["to_step"]))
        assert ("checkpoint" in spec.inputs) == (spec.params["from_step"] > 0)
    assert any(len(parts) > 1 for parts in walked.values())
    assert all(parts == [(0, 10), (10, 30), (30, 90)][: len(parts)] for parts in walked.values())


@pytest.mark.parametrize("stage", list(Stage))
def test_children_go_on_from_the_checkpoint_of_the_one_that_climbs_and_the_ledger_names_it(world, stage):
    loop = pipeline(world, stages=(stage,), children=2)
    for ordinal in range(16):
        world.cycle(loop, ordinal)
    cycles = [world.ledger.find_cycle(None, ordinal) for ordinal in range(16)]
    changes = [cycle.candidate.change for cycle in cycles]
    born = [change for change in changes if "parent" in change]
    assert len(born) >= 2
    for change in born:
        stood = next(c for c in changes if c["config"] == change["parent"])
        lesson = cycles[changes.index(stood)].outcome.lesson
        if change["rung"] == stood["rung"] + 1 == change["inherited"]:
            assert change["from_step"] == stood["to_step"]
            assert [change[k] for k in ("model", "checkpoint")] == [lesson[k] for k in ("model", "checkpoint")]
        assert change["recipe"]["adapter"] == stood["recipe"]["adapter"]
        assert change["recipe"]["steps"] == stood["recipe"]["steps"]
    by_config: dict[str, list[tuple[int, int]]] = {}
    for change in changes:
        by_config.setdefault(change["config"], []).append((change["from_step"], change["to_step"]))
    for parts in by_config.values():
        assert all(before[1] == after[0] for before, after in pairwise(parts))


def test_a_child_whose_first_rung_a_budget_ended_goes_on_from_where_it_took_over(world):
    loop = pipeline(world, stages=(Stage.SFT,), children=1)
    ordinal, state = 0, loop.start()
    while "parent" not in loop.propose(state, world.start, world.start, 0).change:
        world.cycle(loop, ordinal)
        ordinal, state = ordinal + 1, world.state(loop)
    for budget in (replace(BUDGET, tokens=0), BUDGET):
        world.cycle(loop, ordinal, budget=budget)
        ordinal += 1
    changes = [world.ledger.find_cycle(None, place).candidate.change for place in (ordinal - 2, ordinal - 1)]
    assert changes[0]["config"] == changes[1]["config"]
    assert changes[0]["from_step"] == changes[1]["from_step"]
    assert changes[1]["to_step"] < changes[0]["to_step"] == changes[1]["rung_end"]
    world.cycle(loop, ordinal)
    found = next(c for c in world.state(loop)["studies"][0]["configurations"] if c["id"] == changes[0]["config"])
    assert (found["timeouts"], len(found["values"])) == (0, 2)


def test_a_child_that_diverged_teaches_a_limit_that_holds_for_the_next_ones(world):
    def fail(spec):
        if spec.kind == "train" and spec.params["from_step"] and spec.params["recipe"]["learning_rate"] > 1.02e-3:
            raise JobFailed("Diverged: loss is nan at step 12")

    world.runner.faults = fail
    loop = pipeline(world, stages=(Stage.SFT,), children=2)
    lowest = math.inf
    for ordinal in range(30):
        outcome = world.cycle(loop, ordinal)
        change = world.ledger.find_cycle(None, ordinal).candidate.change
        if change["rung"] == change.get("inherited", 0):                      # it begins here
            assert change["recipe"]["learning_rate"] < lowest
        if outcome.verdict is Verdict.CRASHED:
            lowest = min(lowest, change["recipe"]["learning_rate"])
    assert lowest < math.inf


def test_each_ending_of_a_trial_stands_in_the_ledger_with_its_reason(world):
    loop, endings = pipeline(world, stages=(Stage.SFT,), children=0), {}

    def fail(spec):
        if spec.kind == "train" and endings:
            raise JobFailed(*next(iter(endings.values())))

    world.runner.faults = fail
    for ordinal, (reason, verdict) in enumerate([
        ("OutOfMemoryError: CUDA out of memory", Verdict.CRASHED), ("Diverged: loss is nan at step 3", Verdict.CRASHED),
        ("train: signal 9, in 3 attempts", Verdict.CRASHED), ("it took longer than 60 seconds", Verdict.TIMED_OUT),
    ]):
        endings = {ordinal: (reason, verdict)}
        world.cycle(loop, ordinal)
        cycle = world.ledger.find_cycle(None, ordinal)
        row = next(r for r in world.ledger.rows(after=cycle.id) if r.cycle == cycle.id and r.verdict)
        assert (row.verdict, reason in row.reason) == (str(verdict), True)
    endings = {}
    batch = loop.propose(world.state(loop), world.start, world.start, 0).change["recipe"]["batch"]
    world.cycle(loop, 4, budget=replace(BUDGET, tokens=25 * batch))
    stopped = world.ledger.find_cycle(None, 4).outcome.evidence["training"]["stopped"]
    assert stopped == "no tokens"


def test_an_early_stop_of_a_segment_stands_with_its_reason_in_the_segments_row(world):
    why = "entropy fell under 25% of its start"
    world.runner.adjust = lambda spec, values: {**values, "stopped": why} if spec.kind == "segment" else values
    outcome = world.cycle(pipeline(world, stages=(Stage.GRPO,), rungs=1), 0)
    assert outcome.verdict is Verdict.PROMOTED
    parent = world.ledger.find_cycle(None, 0)
    rows = [row for row in world.ledger.rows(after=parent.id) if row.loop == "reward" and row.verdict]
    assert len(rows) == 6
    assert all(row.evidence["stopped"] == why for row in rows)


def test_a_study_of_a_related_model_begins_with_what_was_best_there_and_hears_of_the_rest(world):
    lineage = {"f" * 64: [world.start], "e" * 64: []}
    loop = replace(pipeline(world, stages=(Stage.SFT,), children=0), ancestors=lambda model: lineage.get(model, []))
    for ordinal in range(8):
        world.cycle(loop, ordinal)
    state = world.state(loop)
    told = state["studies"][0]["configurations"]
    best = max(told, key=lambda c: c["values"][-1])
    state = {**state, "best": {}}
    out: list[Candidate] = []
    for seed in range(2):
        out.append(loop.propose(state, "f" * 64, "f" * 64, seed, out))
    assert best["genes"] in [candidate.change["genes"] for candidate in out]
    apart = [loop.propose(state, base, base, 7, [replace(c, change={**c.change, "study": base}) for c in out])
             for base in ("f" * 64, "e" * 64)]
    assert apart[0].change["genes"] != apart[1].change["genes"]                 # no relation, no hints


def test_studies_that_leave_are_remembered_and_the_state_stays_small(world):
    loop = replace(pipeline(world, stages=(Stage.SFT,)), ancestors=lambda model: [world.start])
    state = loop.start()
    for number in range(12):
        base = f"{number:064d}"
        for seed in range(40):
            candidate = loop.propose(state, base, base, 100 * number + seed)
            value = {"mean": 0.01 * (seed % 7), "n": 9, "p_value": 0.5}
            step = candidate.change["to_step"]
            lesson = {"reached": step, "trained": step, "model": "m" * 64, "checkpoint": "c" * 64}
            outcome = Outcome(Verdict.REJECTED, "", None, {"comparison": value}, lesson)
            state = json.loads(canonical(loop.learn(state, candidate, outcome)))
    assert [memory["base"] for memory in state["memories"]] == [f"{number:064d}" for number in range(4, 10)]
    assert len(canonical(state)) < 120_000


def test_a_state_from_before_children_and_memories_is_still_understood(world):
    loop = pipeline(world, stages=(Stage.SFT,), children=0)
    for ordinal in range(5):
        world.cycle(loop, ordinal)
    state = world.state(loop)
    old = json.loads(json.dumps(state))
    del old["memories"]
    for study in old["studies"]:
        for configuration in study["configurations"]:
            del configuration["parent"], configuration["inherited"]
    for seed in range(3):
        assert loop.propose(old, world.start, world.start, seed) == loop.propose(state, world.start, world.start, seed)


def test_reinforcement_goes_in_segments_from_the_last_accepted_one(world):
    loop = pipeline(world, stages=(Stage.GRPO,), rungs=1)
    outcome = world.cycle(loop, 0)
    segments = [spec for spec in world.runner.ran if spec.kind == "segment"]
    assert [spec.params["from_step"] for spec in segments] == [0, 6, 12, 18, 24, 30]
    assert outcome.evidence["training"]["segments"] == ["PROMOTED"] * 6
    assert all("checkpoint" in spec.inputs for spec in segments[1:])


@pytest.mark.parametrize("loss, begins", [(0.05, [0, 6, 12, 18, 24, 30]), (0.9, [0, 6, 6, 12, 18, 24])])
def test_training_goes_on_from_a_rejected_segment_unless_its_model_collapsed(tmp_path, loss, begins):
    calls = []

    def learns(spec, skill, steps):
        if spec.digest not in calls:
            calls.append(spec.digest)
        return skill * (1 - loss) if len(calls) == 2 else skill + 0.02

    world = World(tmp_path, learns=learns)
    outcome = world.cycle(pipeline(world, stages=(Stage.GRPO,), rungs=1), 0)
    segments = [spec for spec in world.runner.ran if spec.kind == "segment"]
    assert outcome.evidence["training"]["segments"][:3] == ["PROMOTED", "REJECTED", "PROMOTED"]
    assert [spec.params["from_step"] for spec in segments] == begins
    assert (segments[1].inputs["model"] == segments[2].inputs["model"]) == (begins[1] == begins[2])
    assert outcome.evidence["reached"] == 36
    world.close()


def test_where_every_segment_collapses_there_is_nothing_to_compare(tmp_path):
    world = World(tmp_path, learns=lambda spec, skill, steps: skill / 3)
    outcome = world.cycle(pipeline(world, stages=(Stage.GRPO,), rungs=1), 0)
    assert outcome.verdict is Verdict.REJECTED
    assert "compare" not in kinds(world)
    assert outcome.evidence["comparison"] is None
    world.close()


def test_a_budget_of_trials_ends_a_rung_early_and_the_next_cycle_goes_on_there(world):
    loop = pipeline(world, stages=(Stage.GRPO,), rungs=1)
    world.cycle(loop, 0, budget=replace(BUDGET, trials=2))
    assert world.state(loop)["studies"][0]["configurations"][0]["step"] == 12
    world.cycle(loop, 1)
    segments = [spec for spec in world.runner.ran if spec.kind == "segment"]
    assert [spec.params["from_step"] for spec in segments] == [0, 6, 12, 18, 24, 30]
    assert len(world.state(loop)["studies"][0]["configurations"][0]["values"]) == 1


@pytest.mark.parametrize("stages", [(Stage.SFT,), (Stage.DPO,), (Stage.GRPO,), ALL])
def test_no_cycle_and_no_child_ever_uses_more_tokens_than_it_was_given(world, stages):
    loop, draw, spent = pipeline(world, stages=stages), random.Random(3), 0
    for ordinal in range(24):
        outcome = world.cycle(loop, ordinal, budget=replace(BUDGET, tokens=int(10 ** draw.uniform(2, 4.5))))
        cycle, given = world.ledger.find_cycle(None, ordinal), 0
        assert outcome.cost.tokens <= cycle.budget.tokens
        for place in count():
            child = world.ledger.find_cycle(cycle.id, place)
            if child is None:
                break
            assert child.outcome.cost.tokens <= child.budget.tokens <= cycle.budget.tokens - given
            given += child.outcome.cost.tokens
        spent += outcome.cost.tokens
    assert spent > 10_000


@pytest.mark.parametrize("stage", list(Stage))
def test_a_rung_that_tokens_cut_short_is_taken_up_again_where_it_stands(world, stage):
    loop, walked = pipeline(world, stages=(stage,), rungs=1, eta=2), []
    for ordinal in range(40):
        world.cycle(loop, ordinal, budget=replace(BUDGET, tokens=3000))
        configuration = world.state(loop)["studies"][0]["configurations"][0]
        walked.append(configuration["step"])
        if configuration["values"]:
            break
        assert configuration["step"] < configuration["recipe"]["steps"]
    assert len(walked) > 3
    assert walked == sorted(set(walked))
    assert walked[-1] == configuration["recipe"]["steps"] == configuration["trained"]
    stands = 0
    for spec in (spec for spec in world.runner.ran if spec.kind in ("train", "prefer", "segment")):
        assert spec.params["from_step"] == stands
        stands += world.runner.book.result(spec.digest).values["steps"]
    assert stands == walked[-1]


def test_without_tokens_for_a_single_step_a_cycle_is_timed_out_and_says_so(world):
    for ordinal, (stage, tokens) in enumerate([(Stage.SFT, 0), (Stage.GRPO, 0), (Stage.SFT, 9), (Stage.GRPO, 9)]):
        outcome = world.cycle(pipeline(world, stages=(stage,)), ordinal, budget=replace(BUDGET, tokens=tokens))
        assert (outcome.verdict, outcome.cost.tokens, outcome.result) == (Verdict.TIMED_OUT, 0, None)
        assert "9 tokens" in outcome.reason if tokens else "no tokens left" in outcome.reason


def test_segments_that_went_before_count_where_the_tokens_end_in_a_later_one(world):
    loop = pipeline(world, stages=(Stage.GRPO,), rungs=1)
    segment = world.cycle(loop, 0, budget=replace(BUDGET, trials=1)).cost.tokens
    outcome = world.cycle(loop, 1, budget=replace(BUDGET, tokens=segment + 100))
    assert outcome.evidence["training"]["segments"] in (["PROMOTED"], ["PROMOTED", "TIMED_OUT"])
    assert 6 < outcome.evidence["reached"] <= 12
    assert world.state(loop)["studies"][0]["configurations"][0]["step"] == outcome.evidence["reached"]


def test_a_state_that_remembers_the_appetite_of_stages_is_still_understood(world):
    loop = pipeline(world)
    state = {**loop.start(), "tokens": {"sft": 10.0}}
    candidate = loop.propose(state, world.start, world.start, 1)
    assert candidate == loop.propose(loop.start(), world.start, world.start, 1)
    learned = loop.learn(state, candidate, Outcome(Verdict.TIMED_OUT, "too slow"))
    assert learned == loop.learn(loop.start(), candidate, Outcome(Verdict.TIMED_OUT, "too slow"))


def test_a_cycle_whose_seconds_are_used_up_opens_no_further_child_to_blame(world):
    loop = pipeline(world, stages=(Stage.GRPO,), rungs=1)
    candidate = loop.propose(loop.start(), world.start, world.start, 1)
    cycle = world.ledger.open_cycle(None, 0, candidate, loop.start(), Budget(10.0, 10**9, 100))
    opened = []

    def descend(inner, parent, ordinal, base, incumbent, budget):
        opened.append(ordinal)
        return Outcome(Verdict.REJECTED, "")

    clock = iter([0.0, *[1.0] * 20, *[99.0] * 100])
    bench = Bench(cycle, world.runner, "code", descend, 60.0, clock=lambda: next(clock))
    with pytest.raises(JobFailed, match="seconds is used up") as failed:
        for _ in range(50):
            bench.descend(loop.inner, world.start, world.start, BUDGET)
    assert failed.value.verdict is Verdict.TIMED_OUT
    assert 0 < len(opened) == bench.children < 50


def test_the_values_of_a_study_that_are_kept_are_the_latest(world):
    loop = pipeline(world)
    state, incumbent = loop.start(), world.start
    names = [f"{(97 * number) % 100:02d}" for number in range(2 * MOST_VALUES)]
    for name in names:
        candidate = loop.propose(state, world.start, incumbent, 1)
        evidence = {"comparison": {"mean": 0.01, "n": 9, "p_value": 0.01}}
        lesson = {"reached": candidate.change["to_step"], "trained": 1, "model": name, "checkpoint": "c"}
        outcome = Outcome(Verdict.PROMOTED, "", name, evidence, lesson)
        state = json.loads(canonical(loop.learn(state, candidate, outcome)))
        incumbent = name
    assert [model for model, _ in state["studies"][0]["values"]] == names[-MOST_VALUES:]
    assert state["studies"][0]["values"][-1][1] == pytest.approx(0.01 * len(names))


def test_a_recipe_that_ran_out_of_memory_is_not_tried_again_and_its_region_is_learned(world):
    def fail(spec):
        if spec.kind == "train" and spec.params["recipe"]["batch"] >= SFT.batch:
            raise JobFailed("OutOfMemoryError: CUDA out of memory")

    world.runner.faults = fail
    loop = pipeline(world, stages=(Stage.SFT,))
    verdicts = [world.cycle(loop, ordinal).verdict for ordinal in range(4)]
    assert verdicts[0] is Verdict.CRASHED
    assert Verdict.CRASHED not in verdicts[1:]
    assert world.state(loop)["limits"][0]["kind"] == "memory"


def test_a_recipe_that_a_bound_refuses_is_not_proposed_again(world):
    loop = pipeline(world, stages=(Stage.SFT,), sft=replace(QUICK_SFT, learning_rate=0.05))
    assert world.cycle(loop, 0).verdict is Verdict.REFUSED
    first, second = (world.ledger.find_cycle(None, 0), None)
    world.cycle(loop, 1)
    second = world.ledger.find_cycle(None, 1)
    assert first.candidate.change["recipe"] != second.candidate.change["recipe"]


def test_a_new_base_model_has_a_study_of_its_own_and_keeps_what_was_learned(world):
    loop = learning(world)
    outcome = world.cycle(loop, 0)
    state = world.state(loop)
    other = loop.propose(state, "f" * 64, "f" * 64, 1)
    assert (other.base, other.change["from_step"], other.change["study"]) == ("f" * 64, 0, "f" * 64)
    assert other.change["genes"] == loop.settings.space.default_genes(Stage.SFT, ["a", "b"])
    assert state["payoffs"].keys() == {"a", "b"}
    assert outcome.verdict in (Verdict.PROMOTED, Verdict.REJECTED)


def test_on_a_model_that_one_stage_made_another_stage_goes_first(world):
    loop = pipeline(world, rungs=1)
    world.cycle(loop, 0)
    state = world.state(loop)
    made = state["studies"][0]["configurations"][0]["model"]
    assert loop.propose(state, world.start, world.start, 1).change["recipe"]["stage"] == "grpo"
    assert loop.propose(state, made, made, 1).change["recipe"]["stage"] == "grpo"
    assert loop.propose(state, "f" * 64, "f" * 64, 1).change["recipe"]["stage"] == "sft"


def test_preferences_are_learned_from_pairs_that_the_base_makes_itself_and_held_to_the_base(world):
    loop = pipeline(world, stages=(Stage.DPO,))
    outcome = world.cycle(loop, 0)
    pairs, prefer = world.runner.ran[:2]
    assert (pairs.kind, pairs.inputs) == ("pairs", {"model": world.start, "seal": "seal"})
    assert (pairs.params["prompts"], pairs.params["samples"], pairs.params["tasks"]) == (128, 8, BODY)
    own = world.runner.book.result(pairs.digest).outputs["pairs"]
    assert prefer.inputs == {"model": world.start, "reference": world.start, "data:own": own}
    assert outcome.evidence["training"]["pairs"]["pairs"] == 128
    for ordinal in range(1, 14):
        world.cycle(loop, ordinal)
    later = [spec for spec in world.runner.ran if spec.kind == "prefer" and spec.params["from_step"]]
    assert later
    for spec in later:
        first = next(other for other in world.runner.ran if other.kind == "prefer"
                     and other.params["recipe"] == spec.params["recipe"])
        assert spec.inputs["reference"] == world.start != spec.inputs["model"]
        assert spec.inputs["data:own"] == first.inputs["data:own"]
    begun = [spec for spec in world.runner.ran if spec.kind == "prefer" and not spec.params["from_step"]]
    assert kinds(world).count("pairs") == len(begun) == len({spec.inputs["data:own"] for spec in begun})


@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_a_model_that_is_always_or_never_right_has_no_pairs_to_make_and_is_not_asked_again(tmp_path, skill):
    world = World(tmp_path, skill=skill)
    loop = pipeline(world, stages=(Stage.DPO, Stage.SFT), rungs=1)
    outcome = world.cycle(loop, 0)
    assert (outcome.verdict, outcome.result) == (Verdict.REJECTED, None)
    assert outcome.reason == "dpo to step 0 of 90: there are 0 of the 8 pairs it needs to learn from"
    for ordinal in range(1, 6):
        world.cycle(loop, ordinal)
    assert kinds(world).count("pairs") == 1
    assert "prefer" not in kinds(world)
    assert loop.propose(world.state(loop), "f" * 64, "f" * 64, 1).change["recipe"]["stage"] == "dpo"
    alone = pipeline(world, stages=(Stage.DPO,), rungs=1)
    assert alone.propose(world.state(loop), world.start, world.start, 1).change["recipe"]["stage"] == "dpo"
    world.close()


def test_preferences_of_the_operator_are_for_dpo_alone_and_do_without_own_pairs(tmp_path):
    world = World(tmp_path, skill=0.0)
    loop = pipeline(world, {"p": "d" * 64}, stages=ALL, rungs=1)
    for ordinal in range(9):
        world.cycle(loop, ordinal)
    for spec in world.runner.ran:
        if spec.kind == "prefer":
            assert {name for name in spec.inputs if name.startswith("data:")} == {"data:p"}
        elif spec.kind in ("train", "segment"):
            assert "data:p" not in spec.inputs
    assert {"prefer", "train", "segment"} <= set(kinds(world))
    without = pipeline(world, {"p": "d" * 64}, stages=(Stage.DPO,), rungs=1, pair_prompts=0)
    before = kinds(world).count("pairs")
    world.cycle(without, 9)
    assert kinds(world).count("pairs") == before
    world.close()


def test_pairs_for_which_the_tokens_do_not_suffice_are_made_with_more_of_them(world):
    loop = pipeline(world, stages=(Stage.DPO,), rungs=1)
    assert world.cycle(loop, 0, budget=replace(BUDGET, tokens=700)).verdict is Verdict.TIMED_OUT
    assert world.cycle(loop, 1).evidence["training"]["pairs"]["pairs"] == 128
    first, second = (world.ledger.find_cycle(None, ordinal).candidate.change["config"] for ordinal in (0, 1))
    assert first == second


def test_each_stage_goes_on_where_the_one_before_it_was_accepted(world):
    loop, base, order = pipeline(world, stages=ALL, rungs=1), world.start, []
    for ordinal in range(4):
        candidate = loop.propose(loop.start() if ordinal == 0 else world.state(loop), base, base, ordinal)
        order.append(candidate.change["recipe"]["stage"])
        outcome = run_cycle(world.house, loop, None, ordinal, base, base, BUDGET)
        assert outcome.verdict is Verdict.PROMOTED
        base = outcome.result
    assert order == ["sft", "dpo", "grpo", "sft"]


def test_a_third_timeout_in_a_rung_gives_a_recipe_up_and_those_before_halve_what_is_asked_for(world):
    def fail(spec):
        raise JobFailed("too slow", Verdict.TIMED_OUT)

    world.runner.faults = fail
    loop = pipeline(world, stages=(Stage.SFT,))
    changes = []
    for ordinal in range(4):
        world.cycle(loop, ordinal)
        changes.append(world.ledger.find_cycle(None, ordinal).candidate.change)
    assert len({change["config"] for change in changes[:3]}) == 1
    assert changes[3]["config"] != changes[0]["config"]
    assert [change["to_step"] for change in changes[:3]] == [10, 5, 3]
    assert world.state(loop)["studies"][0]["configurations"][0]["failed"] == "TIMED_OUT: too slow"


@pytest.mark.parametrize("stage", list(Stage))
def test_a_rung_too_long_for_its_seconds_is_put_aside_and_walked_in_parts(world, stage):
    def fail(spec):
        steps = spec.params.get("steps") or spec.params.get("to_step", 0) - spec.params.get("from_step", 0)
        if spec.kind in ("train", "prefer", "segment") and steps > 25:
            raise JobFailed("it took longer than its 900 seconds", Verdict.TIMED_OUT)

    world.runner.faults = fail
    loop = pipeline(world, stages=(stage,), rungs=1, segment_steps=100)
    changes, verdicts = [], []
    for ordinal in range(8):
        verdicts.append(world.cycle(loop, ordinal).verdict)
        changes.append(world.ledger.find_cycle(None, ordinal).candidate.change)
        first = world.state(loop)["studies"][0]["configurations"][0]
        if first["values"]:
            break
    done = [change for change, verdict in zip(changes, verdicts, strict=False) if verdict is not Verdict.TIMED_OUT]
    assert Verdict.TIMED_OUT in verdicts
    assert all(before["to_step"] == after["from_step"] for before, after in pairwise(done))
    assert (done[0]["from_step"], done[-1]["to_step"]) == (0, first["recipe"]["steps"])
    assert (first["step"], len(first["values"]), first["timeouts"]) == (first["recipe"]["steps"], 1, 0)


def test_a_job_is_given_no_more_seconds_than_the_budget_has_left(world):
    given = []
    run = world.runner.run

    def watched(spec, *, timeout_seconds=None):
        given.append((spec.kind, timeout_seconds))
        return run(spec)

    world.runner.run = watched
    loop = pipeline(world, stages=(Stage.SFT,))
    world.cycle(loop, 0, budget=replace(BUDGET, seconds=30.0))
    assert [kind for kind, _ in given][:2] == ["train", "compare"]
    assert all(0 < seconds <= 30.0 for _, seconds in given)
    assert world.cycle(loop, 1, budget=replace(BUDGET, seconds=0.0)).verdict is Verdict.TIMED_OUT
    assert "budget of 0 seconds is used up" in world.ledger.find_cycle(None, 1).outcome.reason


def test_the_same_state_and_seed_give_the_same_candidate_also_after_json(world):
    loop = pipeline(world)
    for ordinal in range(6):
        world.cycle(loop, ordinal)
    state = world.state(loop)
    again = json.loads(json.dumps(state))
    assert loop.propose(state, world.start, world.start, 5) == loop.propose(again, world.start, world.start, 5)
    assert len(json.dumps(state)) < 60_000


def test_a_cycle_put_aside_in_the_middle_of_its_segments_ends_as_if_undisturbed(tmp_path):
    calm, broken = World(tmp_path / "calm"), World(tmp_path / "broken")
    loop = pipeline(calm, stages=(Stage.GRPO,), rungs=1)
    expected = calm.cycle(loop, 0)
    once = []

    def park(spec):
        if spec.kind == "segment" and spec.params["from_step"] == 12 and not once:
            once.append(spec)
            raise Parked

    broken.runner.faults = park
    with pytest.raises(Parked):
        broken.cycle(loop, 0)
    assert broken.cycle(loop, 0).to_json() == expected.to_json()
    assert [s.digest for s in broken.runner.ran] == [s.digest for s in calm.runner.ran]
    assert broken.state(loop) == calm.state(loop)
    calm.close()
    broken.close()


def test_settings_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="stage"):
        PipelineSettings(sft=GRPO)
    with pytest.raises(ValueError, match="ladder"):
        PipelineSettings(eta=1)
    with pytest.raises(ValueError, match="level"):
        PipelineSettings(level=0.0)
    with pytest.raises(ValueError, match="children must be between 0 and 2"):
        PipelineSettings(children=3)


@pytest.mark.parametrize(("settings", "words"), [
    ({"sft": replace(SFT, learning_rate=0.5)}, "sft.learning_rate with its range reaches 1.5"),
    ({"grpo": replace(GRPO, learning_rate=0.4)}, "grpo.learning_rate with its range reaches 1.2"),
    ({"ranges": Ranges(learning_rate=(0.0, 2.0))}, "sft.learning_rate with its range reaches 0.0"),
    ({"ranges": Ranges(warmup=(0.5, 1.5))}, "sft.warmup with its range reaches 1.5"),
    ({"ranges": Ranges(ranks=(0, 8))}, "sft.rank with its range reaches 0"),
    ({"ranges": Ranges(batch=(math.inf,))}, "sft.batch with its range reaches inf"),
    ({"ranges": Ranges(replay=(-1.0,))}, "grpo.replay with its range reaches -1.0"),
    ({"ranges": Ranges(temperatures=(1.0, math.inf))}, "grpo.temperature with its range reaches inf"),
])
def test_ranges_that_leave_what_a_recipe_may_hold_are_refused_in_one_line(settings, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        PipelineSettings(**settings)
    assert "\n" not in str(refused.value)


def test_ranges_of_a_stage_that_is_not_used_are_not_looked_at():
    assert PipelineSettings(stages=(Stage.GRPO,), sft=replace(SFT, learning_rate=0.5)).stages == (Stage.GRPO,)
    PipelineSettings(sft=replace(SFT, learning_rate=0.5), ranges=Ranges(learning_rate=(0.2, 1.9)))


def test_candidates_proposed_while_others_are_in_flight_all_differ(world: World) -> None:
    loop, out = pipeline(world), list[Candidate]()
    for seed in range(6):
        out.append(loop.propose(loop.start(), world.start, world.start, seed, out))
    assert len({candidate.change["config"] for candidate in out}) == 6
    assert len({canonical(candidate.change["genes"]) for candidate in out}) == 6
