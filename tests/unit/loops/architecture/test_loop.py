"""The architecture loop: what it proposes, when it trains, what it promotes and what it learns."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from sealing import seal_of

from loops.architecture.loop import ArchitectureLoop
from loops.architecture.settings import ArchitectureSettings, Objective, SearchKind, Space
from loops.loop import Bench, Loop, Trial
from loops.work.build import build
from loops.work.screen import screen
from safety.yardstick.items import TaskSpec
from safety.yardstick.jobs import compare
from state.jobs import Desk, JobFailed, JobResult, JobSpec
from state.records import (
    Budget,
    Candidate,
    Cost,
    Cycle,
    JsonObject,
    LoopName,
    Outcome,
    Verdict,
    canonical,
    seed_from,
)

pytest_plugins = ("zoo",)
SETTINGS = ArchitectureSettings(coarse_proposals=6, patience=5, merges_between=3, inner_trials=4, inner_tokens=100)
PLENTY = Budget(1e6, 10**9, 100)


class Inner:
    """A loop that is only ever handed to `descend`."""

    name = LoopName.PIPELINE


@dataclass
class Scripted:
    """A runner whose jobs answer from a function of the spec; keeps the specs it was given."""

    answer: Callable[[JobSpec], JobResult]
    specs: list[JobSpec] = field(default_factory=list)

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        self.specs.append(spec)
        return self.answer(spec)

    def run_all(self, specs: Sequence[JobSpec], *, timeout_seconds: float | None = None) -> list[JobResult | JobFailed]:
        return [self.run(spec) for spec in specs]


def screened(advantage: float, decision: str | None, p_value: float = 1.0, scores: str = "1010") -> JsonObject:
    return {
        "fitness": 0.5 + advantage, "incumbent_fitness": 0.5, "fitness_scores": scores,
        "race": {"decision": decision, "n": 9, "mean": advantage, "e": 1.0},
        "comparison": {"n": 9, "mean": advantage, "stderr": 0.1, "p_value": p_value, "wins": 1, "losses": 1},
    }


def answering(values: Callable[[JobSpec], JsonObject]) -> Scripted:
    def answer(spec: JobSpec) -> JobResult:
        if spec.kind == "build":
            return JobResult({}, {"model": f"built-{spec.digest[:8]}"}, Cost())
        if spec.kind == "compare":
            body = values(spec)
            return JobResult({"pooled": body["comparison"], "race": body["race"]}, {}, Cost())
        return JobResult(values(spec), {}, Cost())

    return Scripted(answer)


def loop_of(settings: ArchitectureSettings = SETTINGS, **more: Any) -> ArchitectureLoop:
    inner: Any = Inner()
    return ArchitectureLoop(
        settings, [{"name": "t"}], inner, more.get("base", "b"), more.get("parents", ("x", "y")),
        depth=more.get("depth"), adapters=frozenset(more.get("adapters", ())),
    )


def bench_of(
    loop: ArchitectureLoop, candidate: Candidate, state: JsonObject, runner: Any,
    children: Callable[[str, str, Budget], Outcome] | None = None, budget: Budget = PLENTY,
) -> Bench:
    def descend(inner: Loop, parent: int, ordinal: int, base: str, incumbent: str, given: Budget) -> Outcome:
        assert children is not None
        return children(base, incumbent, given)

    cycle = Cycle(1, loop.name, None, 0, candidate, state, budget)
    return Bench(cycle, runner, "code", descend, 60.0)


def once(
    loop: ArchitectureLoop, state: JsonObject, runner: Any, incumbent: str = "w", children: Any = None
) -> tuple[Outcome, JsonObject]:
    """One cycle, checking on the way that propose, judge and learn leave what they are given as it was."""
    before = copy.deepcopy(state)
    candidate = loop.propose(state, incumbent, incumbent, 1)
    assert candidate == loop.propose(json.loads(canonical(state)), incumbent, incumbent, 1)
    trial = loop.run(candidate, bench_of(loop, candidate, state, runner, children))
    shown = copy.deepcopy((candidate, trial))
    outcome = loop.judge(candidate, trial)
    after = loop.learn(state, candidate, outcome)
    assert state == before
    assert (candidate, trial) == shown
    canonical(outcome.to_json())
    return outcome, json.loads(canonical(after))


def test_a_merge_that_wins_its_race_is_built_and_promoted_as_it_is() -> None:
    loop, runner = loop_of(), answering(lambda spec: screened(0.1, "better"))
    outcome, state = once(loop, loop.start(), runner)
    assert [spec.kind for spec in runner.specs] == ["screen", "build"]
    assert outcome.verdict is Verdict.PROMOTED
    assert str(outcome.result).startswith("built-")
    assert state["idle"] == 0


@pytest.mark.parametrize("change", [
    {"search": SearchKind.M2N2}, {"operators": ("ties",)}, {"operators": ("ties", "task_arithmetic")}, {"groups": 3},
])
def test_a_search_begins_anew_where_the_operator_changed_its_settings(change: dict[str, Any]) -> None:
    runner = answering(lambda spec: screened(-0.1, "hopeless"))
    _, state = once(loop_of(), loop_of().start(), runner)
    old = loop_of().propose(state, "w", "w", 1)
    loop = loop_of(replace(SETTINGS, **change))
    state = json.loads(canonical(loop.learn(state, old, Outcome(Verdict.CRASHED, "it was open at the restart"))))
    assert state["search"] == loop.start()["search"]
    assert state["idle"] == 2
    proposed = {canonical(loop.propose(state, "w", "w", 1).change)}
    _, state = once(loop, state, runner)
    assert canonical(loop.propose(state, "w", "w", 1).change) not in proposed


def test_a_merge_that_loses_is_not_built() -> None:
    loop, runner = loop_of(), answering(lambda spec: screened(-0.1, "hopeless"))
    outcome, state = once(loop, loop.start(), runner)
    assert [spec.kind for spec in runner.specs] == ["screen"]
    assert outcome.verdict is Verdict.REJECTED
    assert outcome.result is None
    assert state["idle"] == 1


@pytest.mark.parametrize(("p_value", "verdict"), [(0.04, Verdict.PROMOTED), (0.06, Verdict.REJECTED)])
def test_an_undecided_race_is_settled_by_the_paired_test(p_value: float, verdict: Verdict) -> None:
    outcome, _ = once(loop_of(), loop_of().start(), answering(lambda spec: screened(0.1, None, p_value)))
    assert outcome.verdict is verdict


def test_jobs_get_every_model_they_read_and_the_genome_without_the_mark_of_the_search() -> None:
    loop, runner = replace(loop_of(), seal="s"), answering(lambda spec: screened(0.1, "better"))
    once(loop, loop.start(), runner)
    screening, building = runner.specs
    assert dict(screening.inputs) == {"model:b": "b", "model:w": "w", "model:x": "x", "model:y": "y", "seal": "s"}
    assert dict(building.inputs) == {"model:b": "b", "model:x": "x", "model:y": "y"}
    assert screening.params["change"] == building.params["change"]
    assert "search" not in building.params["change"]


def test_after_patience_without_promotion_the_incumbent_is_trained_and_then_merges_go_on() -> None:
    loop, state, kinds = loop_of(), loop_of().start(), []
    nothing = answering(lambda spec: screened(-0.1, "hopeless"))
    for _ in range(12):
        kinds.append(loop.propose(state, "w", "w", 1).change["kind"])
        _, state = once(loop, state, nothing, children=lambda *_: Outcome(Verdict.REJECTED, "no"))
    assert kinds == ["merge"] * 5 + ["keep"] + ["merge"] * 3 + ["keep"] + ["merge"] * 2


FLOWING = replace(SETTINGS, space=Space.BOTH, path_patience=4)
DEPTHS = {"deep": 9}


def flowing(settings: ArchitectureSettings = FLOWING, **more: Any) -> ArchitectureLoop:
    """A loop that searches paths as well; every model has four layers but the one called deep."""
    return loop_of(settings, depth=lambda model: DEPTHS.get(model, 4), **more)


def test_paths_follow_the_merges_once_these_have_run_dry_then_training_then_merges_again() -> None:
    loop, state, kinds, pools = flowing(), flowing().start(), [], set()
    nothing = answering(lambda spec: screened(-0.1, "hopeless"))
    for _ in range(21):
        change = loop.propose(state, "w", "w", 1).change
        kinds.append(change["kind"])
        pools.add(change["parents"][0] if change["kind"] == "path" else "")
        _, state = once(loop, state, nothing, children=lambda *_: Outcome(Verdict.REJECTED, "no"))
    assert kinds == ["merge"] * 5 + ["path"] * 4 + ["keep"] + ["merge"] * 3 + ["path"] * 4 + ["keep"] + ["merge"] * 3
    assert pools == {"", "w"}                                     # the incumbent is the template


@pytest.mark.parametrize("settings", [
    SETTINGS, replace(SETTINGS, search=SearchKind.M2N2), ArchitectureSettings(space=Space.DATA_FLOW),
])
def test_a_change_that_has_an_adapter_among_its_parents_names_the_base_that_it_is_over(
    settings: ArchitectureSettings
) -> None:
    """Its jobs are given the base; a single one is built, because it is no model by itself. Others are as they were."""
    runner = answering(lambda spec: screened(0.1, "better"))
    loop = loop_of(settings, adapters=("y",), depth=lambda digest: 2)
    state, met = loop.start(), set()
    for ordinal in range(9):
        candidate = loop.propose(state, "b", "working", ordinal)
        parents = candidate.change["parents"]
        assert candidate.change.get("base") == ("b" if "y" in parents or candidate.change["kind"] == "merge" else None)
        trial = loop.run(candidate, bench_of(loop, candidate, state, runner))
        if "y" in parents:
            assert [spec.kind for spec in runner.specs[-2:]] == ["screen", "build"]
            assert all(spec.inputs["model:b"] == "b" for spec in runner.specs[-2:])
            assert trial.result not in ("x", "y")
        met.add("y" in parents)
        state = loop.learn(state, candidate, loop.judge(candidate, trial))
    assert True in met


def test_in_data_flow_space_alone_there_are_paths_and_training() -> None:
    loop = flowing(replace(FLOWING, space=Space.DATA_FLOW))
    state, kinds = loop.start(), []
    for _ in range(9):
        kinds.append(loop.propose(state, "w", "w", 1).change["kind"])
        _, state = once(loop, state, answering(lambda spec: screened(-0.1, "hopeless")),
                        children=lambda *_: Outcome(Verdict.REJECTED, "no"))
    assert kinds == ["path"] * 4 + ["keep"] + ["path"] * 3 + ["keep"]


def test_a_path_that_wins_is_built_and_the_search_goes_on_through_the_same_models() -> None:
    loop = flowing(replace(FLOWING, space=Space.DATA_FLOW))
    runner = answering(lambda spec: screened(0.1, "better"))
    outcome, state = once(loop, loop.start(), runner)
    assert outcome.verdict is Verdict.PROMOTED
    assert outcome.reason.startswith("path beats the incumbent")
    assert [spec.kind for spec in runner.specs] == ["screen", "build"]
    assert set(runner.specs[1].inputs) == {f"model:{parent}" for parent in runner.specs[1].params["change"]["parents"]}
    assert "search" not in runner.specs[1].params["change"]
    assert state["paths"]["pool"] == ["w", "x", "y"]
    _, after = once(loop, state, answering(lambda spec: screened(-0.1, "hopeless")), incumbent=str(outcome.result))
    assert after["paths"]["pool"] == ["w", "x", "y"]
    assert (state["idle"], after["idle"]) == (0, 1)


def test_after_a_training_that_was_promoted_paths_go_through_the_new_incumbent() -> None:
    loop = flowing(replace(FLOWING, space=Space.DATA_FLOW))
    _, state = once(loop, loop.start(), answering(lambda spec: screened(-0.1, "hopeless")))
    kept = Candidate(loop.name, {"kind": "keep"}, "w", "w")
    state = loop.learn(state, kept, Outcome(Verdict.PROMOTED, "", "t"))
    assert loop.propose(state, "t", "t", 1).change["parents"][0] == "t"


def test_what_comes_in_late_from_other_models_or_another_space_teaches_no_path_search() -> None:
    loop = flowing(replace(FLOWING, space=Space.DATA_FLOW))
    merge = loop_of().propose(loop_of().start(), "w", "w", 1)
    stale = loop.propose(loop.start(), "old", "old", 1)
    _, state = once(loop, loop.start(), answering(lambda spec: screened(-0.1, "hopeless")))
    for candidate in (merge, stale):
        after = loop.learn(state, candidate, Outcome(Verdict.CRASHED, "late"))
        assert after["paths"] == state["paths"]
        assert after["idle"] == state["idle"] + 1


@pytest.mark.parametrize("search", [SearchKind.CMAES, SearchKind.M2N2])
def test_a_trained_model_of_another_depth_does_not_join_the_parents_of_merges(search: SearchKind) -> None:
    loop = flowing(replace(FLOWING, search=search))
    kept = Candidate(loop.name, {"kind": "keep"}, "w", "w")
    for model, joins in (("deep", False), ("t", True)):
        state = loop.learn(loop.start(), kept, Outcome(Verdict.PROMOTED, "", model))
        assert (model in state["trained"] or model in state["search"].get("waiting", [])) == joins


def test_no_path_is_deeper_than_the_settings_allow_whatever_the_incumbent_is() -> None:
    loop = flowing(replace(FLOWING, space=Space.DATA_FLOW, path_flips=20.0, path_growth=1.5))
    state, most = loop.start(), 0
    for _ in range(30):
        change = loop.propose(state, "deep", "deep", 1).change
        most = max(most, len(change["layers"]))
        state = loop.learn(state, Candidate(loop.name, change, "w", "w"), Outcome(Verdict.CRASHED, ""))
        state = {**state, "idle": 0}
    assert most == 6


@pytest.mark.parametrize("change", [
    {"path_repeats": 3}, {"path_block": 2}, {"path_growth": 3.0}, {"search": SearchKind.RANDOM}, {"seed": 1},
])
def test_a_search_for_paths_begins_anew_where_the_operator_changed_its_settings(change: dict[str, Any]) -> None:
    settings = replace(FLOWING, space=Space.DATA_FLOW)
    loop = flowing(settings)
    _, state = once(loop, loop.start(), answering(lambda spec: screened(-0.1, "hopeless")))
    other = flowing(replace(settings, **change))
    assert state["paths"]["search"]["open"]
    after = other.learn(state, loop.propose(state, "w", "w", 1), Outcome(Verdict.CRASHED, "open at the restart"))
    assert after["paths"]["pool"] == []
    gone = flowing(SETTINGS).learn(state, loop.propose(state, "w", "w", 1), Outcome(Verdict.CRASHED, ""))
    assert gone["paths"] is None


def keeping(state: JsonObject) -> JsonObject:
    return {**state, "idle": 99}


def test_training_climbs_from_child_to_child_within_its_tokens_and_is_compared_once() -> None:
    loop, seen = loop_of(), []

    def child(base: str, incumbent: str, budget: Budget) -> Outcome:
        seen.append((base, incumbent, budget.tokens))
        verdict = Verdict.PROMOTED if len(seen) % 2 else Verdict.CRASHED
        return Outcome(verdict, "", f"t{len(seen)}" if len(seen) % 2 else None, cost=Cost(tokens=40))

    runner = answering(lambda spec: screened(0.1, None, 0.01))
    outcome, state = once(loop, keeping(loop.start()), runner, children=child)
    assert seen == [("w", "w", 100), ("w", "t1", 60), ("w", "t1", 20)]
    assert [spec.kind for spec in runner.specs] == ["compare"]
    assert dict(runner.specs[0].inputs) == {"model:new": "t3", "model:old": "w"}
    assert outcome.verdict is Verdict.PROMOTED
    assert outcome.result == "t3"
    assert state["trained"] == ["t3"]


def test_a_child_that_ran_out_of_its_budget_is_the_last() -> None:
    loop, seen = loop_of(), []

    def child(base: str, incumbent: str, budget: Budget) -> Outcome:
        seen.append(budget.tokens)
        verdict = Verdict.REJECTED if len(seen) == 1 else Verdict.TIMED_OUT
        return Outcome(verdict, "", cost=Cost(tokens=30))

    once(loop, keeping(loop.start()), answering(lambda spec: screened(0.0, None)), children=child)
    assert seen == [100, 70]


def test_training_builds_upon_a_promoted_recipe_once_it_was_carried_out_in_full() -> None:
    loop, seen = loop_of(), []

    def child(base: str, incumbent: str, budget: Budget) -> Outcome:
        seen.append((base, incumbent))
        evidence = {"complete": len(seen) == 2}
        return Outcome(Verdict.PROMOTED, "", f"t{len(seen)}", evidence, cost=Cost(tokens=30))

    once(loop, keeping(loop.start()), answering(lambda spec: screened(0.1, None, 0.01)), children=child)
    assert seen[:3] == [("w", "w"), ("w", "t1"), ("t2", "t2")]


def test_a_training_stops_when_the_cycle_has_no_trials_left() -> None:
    loop, count = loop_of(), []
    candidate = Candidate(loop.name, {"kind": "keep"}, "w", "w")

    def child(base: str, incumbent: str, budget: Budget) -> Outcome:
        count.append(budget.trials)
        return Outcome(Verdict.REJECTED, "")

    runner = answering(lambda spec: screened(0.0, None))
    trial = loop.run(candidate, bench_of(loop, candidate, loop.start(), runner, child, Budget(1e6, 10**9, 2)))
    assert count == [1, 0]                      # the child itself is one of the two
    assert trial.result is None


def test_a_trained_model_that_does_not_beat_the_incumbent_is_rejected_and_no_parent() -> None:
    loop = loop_of()
    runner = answering(lambda spec: screened(0.01, None, 0.3))
    trained = Outcome(Verdict.PROMOTED, "", "t", cost=Cost(tokens=60))
    outcome, state = once(loop, keeping(loop.start()), runner, children=lambda *_: trained)
    assert outcome.verdict is Verdict.REJECTED
    assert outcome.result is None
    assert state["trained"] == []


def test_a_promoted_trained_model_joins_the_parents_and_the_search_starts_over_around_it() -> None:
    loop = loop_of(replace(SETTINGS, merges_between=50))
    keep = Candidate(loop.name, {"kind": "keep"}, "w", "w")
    state = loop.learn(loop.start(), keep, Outcome(Verdict.PROMOTED, "", "t"))
    points = []
    for _ in range(7):
        candidate = loop.propose(state, "t", "t", 1)
        assert candidate.change["parents"] == ["x", "y", "t"]
        points.append([row[0][0] for row in candidate.change["weights"]])
        state = loop.learn(state, candidate, Outcome(Verdict.REJECTED, "", lesson={
            "fitness": 0.1, "incumbent_fitness": 0.2, "scores": "01", "member": None}))
    means = [sum(column) / len(points) for column in zip(*points, strict=True)]
    assert means[2] > 0.7 > 0.4 > max(means[:2])


def test_a_refused_or_crashed_candidate_counts_as_the_worst_and_is_not_asked_again() -> None:
    loop, state = loop_of(), loop_of().start()
    first = loop.propose(state, "w", "w", 1)
    state = loop.learn(state, first, Outcome(Verdict.CRASHED, "out of memory"))
    assert state["search"]["inner"]["open"][0]["told"]["0"][1] == -1.0
    assert loop.propose(state, "w", "w", 1).change != first.change


def test_a_survivor_is_trained_before_it_is_promoted_where_the_settings_say_so() -> None:
    loop = loop_of(replace(SETTINGS, train_survivors=True))
    runner = answering(lambda spec: screened(0.1, "better"))
    bases: list[str] = []

    def child(base: str, incumbent: str, budget: Budget) -> Outcome:
        bases.append(base)
        return Outcome(Verdict.PROMOTED, "", "t", cost=Cost(tokens=99))

    outcome, state = once(loop, loop.start(), runner, children=child)
    assert bases[0].startswith("built-")
    assert outcome.result == "t"
    assert state["trained"] == ["t"]


def test_the_archive_keeps_a_child_that_adds_something_although_it_does_not_beat_the_incumbent() -> None:
    loop = loop_of(replace(SETTINGS, search=SearchKind.M2N2, patience=50))
    state = loop.start()
    rows = iter(["1100", "0110", "0011"])
    runner = answering(lambda spec: screened(-0.1, "hopeless", scores=next(rows)))
    for _ in range(2):
        outcome, state = once(loop, state, runner)
    assert [spec.kind for spec in runner.specs] == ["screen", "screen"]     # founders stand for themselves
    outcome, state = once(loop, state, runner)
    assert outcome.verdict is Verdict.REJECTED
    assert outcome.result is None
    members = [member["digest"] for member in state["search"]["members"]]
    assert members[:2] == ["x", "y"]
    assert members[2].startswith("built-")


GUARDED = replace(SETTINGS, guard_items=32, guard_margin=0.1)
GUARD = {"name": "g", "role": "guard"}


def with_guard(decision: str | None, advantage: float = 0.1) -> JsonObject:
    guards = {"g": {"decision": decision, "n": 32, "mean": -0.2, "e": 30.0}}
    return {**screened(advantage, "better", 0.01), "guards": guards}


def test_a_winner_that_is_shown_worse_on_a_guard_is_rejected_and_the_row_says_why() -> None:
    loop, runner = replace(loop_of(GUARDED), guards=[GUARD]), answering(lambda spec: with_guard("worse"))
    outcome, state = once(loop, loop.start(), runner)
    assert [spec.kind for spec in runner.specs] == ["screen"]
    asked = runner.specs[0].params["guards"]
    assert {key: asked[key] for key in ("tasks", "count", "margin")} == {"tasks": [GUARD], "count": 32, "margin": 0.1}
    assert outcome.verdict is Verdict.REJECTED
    assert outcome.result is None
    assert outcome.evidence["guards"]["g"]["e"] == 30.0
    assert outcome.reason == (
        "task_arithmetic beats the incumbent: +0.100 on 9 fresh items, p = 0.01; "
        "it loses more than is borne on g (-0.200 on 32 search items)")
    assert state["idle"] == 1
    assert state["search"]["inner"]["open"][0]["told"]["0"][1] == -1.0      # no search climbs where a guard is lost
    assert state["search"]["best"] == [None]


@pytest.mark.parametrize("decision", ["kept", None])
def test_a_winner_of_which_no_guard_shows_a_loss_is_promoted(decision: str | None) -> None:
    loop = replace(loop_of(GUARDED), guards=[GUARD])
    outcome, _ = once(loop, loop.start(), answering(lambda spec: with_guard(decision)))
    assert outcome.verdict is Verdict.PROMOTED
    assert "borne" not in outcome.reason


def test_a_trained_model_is_held_to_the_guards_as_well() -> None:
    loop = replace(loop_of(GUARDED), guards=[GUARD])

    def answer(spec: JobSpec) -> JobResult:
        body = with_guard("worse")
        assert spec.params["guards"]["tasks"] == [GUARD]
        return JobResult({"pooled": body["comparison"], "race": body["race"], "guards": body["guards"]}, {}, Cost())

    trained = Outcome(Verdict.PROMOTED, "", "t", cost=Cost(tokens=60))
    outcome, state = once(loop, keeping(loop.start()), Scripted(answer), children=lambda *_: trained)
    assert outcome.verdict is Verdict.REJECTED
    assert "; it loses more than is borne on g" in outcome.reason
    assert state["trained"] == []


def test_jobs_and_states_are_those_of_before_where_nothing_more_is_asked_for() -> None:
    loop = replace(loop_of(), guards=[GUARD])
    runner = answering(lambda spec: screened(0.1, "better"))
    outcome, state = once(loop, loop.start(), runner)
    plain = answering(lambda spec: screened(0.1, "better"))
    assert (outcome, state) == once(loop_of(), loop_of().start(), plain)
    assert [spec.digest for spec in runner.specs] == [spec.digest for spec in plain.specs]
    assert not {"guards", "measures", "base"} & runner.specs[0].params.keys()


def test_an_archive_of_several_objectives_measures_each_candidate_against_the_base() -> None:
    settings = replace(GUARDED, search=SearchKind.M2N2, objectives=tuple(Objective), most_alike=0.9, patience=50)
    loop = replace(loop_of(settings), guards=[GUARD])
    rows = iter(["1100", "0110", "0011"])

    def answer(spec: JobSpec) -> JsonObject:
        assert spec.params["measures"] == ["size", "latency", "forgetting", "sketch"]
        assert spec.params["base"] == spec.inputs["model:b"] == "b"
        more = {"measures": {"size": 9, "latency": 1.0, "forgetting": 0.1}, "sketch": [1.0, 0.0]}
        return {**screened(-0.1, "hopeless", scores=next(rows)), **more}

    state, runner = loop.start(), answering(answer)
    for _ in range(3):
        outcome, state = once(loop, state, runner)
        assert outcome.evidence["measures"]["size"] == 9
        assert "sketch" not in outcome.evidence
    members = state["search"]["members"]
    assert len(members) == 3
    assert all(member["measures"]["forgetting"] == 0.1 and member["sketch"] == [1.0, 0.0] for member in members)
    assert loop._shape != replace(loop, settings=replace(settings, objectives=("quality",)))._shape


@pytest.mark.parametrize(("change", "words"), [
    ({"objectives": ("size",)}, "objectives must be quality and some of size, latency, forgetting"),
    ({"objectives": ("quality", "speed")}, "objectives must be quality"),
    ({"objectives": ("quality", "size")}, 'need search = "m2n2"'),
    ({"objectives": ("quality", "size", "size"), "search": SearchKind.M2N2}, "twice"),
    ({"objectives": ("quality", "forgetting"), "search": SearchKind.M2N2}, "guard_items"),
    ({"novelty": -0.1}, "novelty"), ({"most_alike": 1.1}, "most_alike"), ({"guard_margin": 1.0}, "guard_margin"),
    ({"guard_items": -1}, "guard_items"),
])
def test_settings_of_the_population_that_cannot_work_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SETTINGS, **change)


@pytest.mark.parametrize("settings", [
    SETTINGS, replace(SETTINGS, novelty=0.1, search=SearchKind.RANDOM),
    replace(SETTINGS, search=SearchKind.M2N2, archive=3, novelty=0.1),
    replace(GUARDED, search=SearchKind.M2N2, objectives=tuple(Objective), most_alike=0.9, archive=3),
])
def test_a_whole_life_repeats_itself_from_its_states(settings: ArchitectureSettings) -> None:
    def answer(spec: JobSpec) -> JsonObject:
        draw = seed_from(canonical(spec.params.get("change", {})))
        more = {"measures": {"size": draw % 3, "latency": draw % 5 / 4, "forgetting": draw % 7 / 9},
                "sketch": [draw % 11 - 5.0, draw % 13 - 6.0]}
        return {**screened(draw % 100 / 500, None, 0.2, f"{draw % 256:08b}"), **(more if "base" in spec.params else {})}

    def life(text: bool) -> list[str]:
        loop = replace(loop_of(settings), guards=[GUARD])
        state, told = loop.start(), []
        for _ in range(20):
            state = json.loads(canonical(state)) if text else state
            outcome, state = once(loop, state, answering(answer), children=lambda *_: Outcome(Verdict.REJECTED, ""))
            told.append(canonical([outcome.to_json(), state]))
        return told

    assert life(True) == life(False)


def working_on(models: dict[str, Path], folder: Path) -> Scripted:
    """A runner that does the jobs, on models that it adds to as they are built."""
    cache: dict[str, Any] = {}

    def answer(spec: JobSpec) -> JobResult:
        (folder / spec.digest).mkdir(exist_ok=True)
        inputs = {name: models[digest] for name, digest in spec.inputs.items()}
        work = {"screen": screen, "build": build, "compare": compare}[spec.kind]
        produced = work(spec, Desk(folder / spec.digest, inputs, cache=cache))
        if "model" in produced.outputs:
            models[spec.digest] = produced.outputs["model"]
        return JobResult(produced.values, dict.fromkeys(produced.outputs, spec.digest), Cost())

    return Scripted(answer)


SMALL = replace(SETTINGS, fitness_items=64, fresh_items=160, batch_items=32, score_batch=32, patience=99)


def test_with_real_models_and_jobs_a_merge_of_two_experts_becomes_the_incumbent(
    zoo: dict[str, Path], task: JsonObject, tmp_path: Path
) -> None:
    models, inner = {**zoo, "seal": seal_of([TaskSpec.from_json(task)], tmp_path / "seal")}, Inner()
    loop = ArchitectureLoop(SMALL, [task], cast(Any, inner), "base", ("one", "two"), "seal")
    runner, state, working = working_on(models, tmp_path), loop.start(), "base"
    for _ in range(12):
        outcome, state = once(loop, state, runner, working)
        working = str(outcome.result) if outcome.verdict is Verdict.PROMOTED else working
    assert working != "base"
    assert (models[working] / "model.safetensors").is_file()


def test_with_real_models_and_jobs_an_archive_of_several_objectives_fills_with_children(
    zoo: dict[str, Path], task: JsonObject, tmp_path: Path
) -> None:
    guard = {**task, "name": "guard", "role": "guard"}
    seal = seal_of([TaskSpec.from_json(body) for body in (task, guard)], tmp_path / "seal")
    models, inner = {**zoo, "seal": seal}, Inner()
    settings = replace(
        SMALL, search=SearchKind.M2N2, objectives=("quality", "size", "forgetting"), separate_splits=True,
        most_alike=0.999, novelty=0.05, guard_items=32, archive=3,
    )
    loop = ArchitectureLoop(settings, [task], cast(Any, inner), "base", ("one", "two"), "seal", [guard])
    runner, state, working = working_on(models, tmp_path), loop.start(), "base"
    for _ in range(8):
        outcome, state = once(loop, state, runner, working)
        working = str(outcome.result) if outcome.verdict is Verdict.PROMOTED else working
        assert set(outcome.evidence["measures"]) == {"size", "forgetting"}
    members = state["search"]["members"]
    assert len(members) == 3
    assert any(member["digest"] not in zoo for member in members)
    assert len({member["measures"]["size"] for member in members}) == 1
    assert len(state["search"]["tried"]) == 6


def test_the_reason_says_in_words_what_was_measured() -> None:
    loop = loop_of()
    candidate = loop.propose(loop.start(), "w", "w", 1)
    outcome = loop.judge(candidate, Trial("m", screened(0.1, None, 0.01)))
    assert outcome.reason == "task_arithmetic beats the incumbent: +0.100 on 9 fresh items, p = 0.01"
