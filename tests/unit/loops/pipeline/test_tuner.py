"""ASHA on a made-up objective, and Optuna rebuilt from values."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import pytest

from loops.pipeline.limits import forbidden, taught
from loops.pipeline.recipe import SFT, Stage
from loops.pipeline.space import Space
from loops.pipeline.tuner import (
    MOST_CONFIGURATIONS,
    Configuration,
    Hint,
    Knowledge,
    Ladder,
    Sampler,
    fresh,
    paused,
    ranks,
    rebuilt,
    survivor,
    trimmed,
)

SOURCES = ["a", "b"]
NOTHING = Knowledge({}, {}, [])
SPACE, LADDER = Space(), Ladder()


def objective(configuration: Configuration, step: int) -> float:
    """Best at a tenth above the default's learning rate; later steps show it more clearly."""
    default = SPACE.defaults[configuration.recipe.stage].learning_rate
    distance = abs(math.log(configuration.recipe.learning_rate / (1.1 * default)))
    return (step / configuration.recipe.steps) * (1.0 - distance) - (configuration.recipe.stage is Stage.GRPO)


def walk(
    cycles: int, study: list[Configuration] | None = None, begin: int = 0
) -> tuple[list[Configuration], list[tuple[str, int, int]]]:
    """The configurations after so many rungs, and the (configuration, from, to) of each."""
    study, seed, walked = list(study or []), 0, []
    for cycle in range(begin, cycles):
        chosen = paused(study, LADDER) or survivor(study, LADDER) or fresh(study, SPACE, SOURCES, NOTHING, seed + cycle)
        end = LADDER.end(chosen)
        walked.append((chosen.id, chosen.step, end))
        after = replace(chosen, step=end, trained=end, values=(*chosen.values, objective(chosen, end)))
        study = [after if c.id == after.id else c for c in study] + ([] if chosen in study else [after])
    return study, walked


def test_what_is_in_flight_is_neither_taken_up_nor_promoted_again():
    study = next(study for study, _ in map(walk, range(3, 12)) if survivor(study, LADDER))
    climbing = survivor(study, LADDER)
    assert climbing is not None
    assert survivor(study, LADDER, {climbing.id}) is None
    begun = fresh(study, SPACE, SOURCES, NOTHING, 99)
    assert paused([*study, begun], LADDER) is begun
    assert paused([*study, begun], LADDER, {begun.id}) is None
    assert fresh([*study, begun], SPACE, SOURCES, NOTHING, 99).genes != begun.genes


def test_no_step_of_any_configuration_is_ever_repeated_or_left_out():
    _, walked = walk(40)
    steps = Counter((config, step) for config, begin, end in walked for step in range(begin, end))
    assert max(steps.values()) == 1
    for config in {config for config, _, _ in walked}:
        mine = sorted(step for name, step in steps if name == config)
        assert mine == list(range(len(mine)))


def test_most_configurations_stop_at_the_first_rung_and_the_full_budget_goes_to_the_good():
    study, _ = walk(40)
    reached = Counter(len(c.values) for c in study)
    assert reached[1] > reached[2] + reached[3]
    assert reached[3] >= 1
    finished = [c.values[0] for c in study if len(c.values) == 3]
    assert min(finished) >= sorted((c.values[0] for c in study), reverse=True)[len(study) // 3]


def test_halving_costs_far_less_than_running_everything_to_the_end():
    study, walked = walk(40)
    spent = sum(end - begin for _, begin, end in walked)
    assert spent < 0.5 * sum(c.recipe.steps for c in study)


def test_rungs_are_a_ninth_a_third_and_the_whole():
    assert LADDER.ends(300) == [34, 100, 300]
    assert LADDER.ends(108) == [12, 36, 108]
    assert LADDER.ends(2) == [1, 2]
    assert LADDER.ends(1) == [1]
    assert Ladder(rungs=1).ends(50) == [50]
    with pytest.raises(ValueError, match="ladder"):
        Ladder(eta=1)


def test_the_default_of_every_stage_comes_first_and_then_what_won_on_earlier_models():
    first = fresh([], SPACE, SOURCES, NOTHING, 0)
    second = fresh([first], SPACE, SOURCES, NOTHING, 1)
    won = {**SPACE.default_genes(Stage.SFT, SOURCES), "sft.learning_rate": 3e-4}
    third = fresh([first, second], SPACE, SOURCES, Knowledge({}, {"sft": [won]}, []), 2)
    assert [c.recipe.stage for c in (first, second)] == [Stage.SFT, Stage.GRPO]
    assert first.recipe.learning_rate == SFT.learning_rate
    assert third.genes == won


def test_a_study_rebuilt_from_json_suggests_the_same_recipe():
    study, _ = walk(25)
    again = [Configuration.from_json(json.loads(json.dumps(c.to_json()))) for c in study]
    assert again == study
    assert fresh(again, SPACE, SOURCES, NOTHING, 99) == fresh(study, SPACE, SOURCES, NOTHING, 99)
    assert fresh(study, SPACE, SOURCES, NOTHING, 99) != fresh(study, SPACE, SOURCES, NOTHING, 98)


@pytest.mark.parametrize("broken_at", [1, 7, 13])
def test_a_walk_broken_anywhere_and_taken_up_from_json_is_the_same_walk(broken_at):
    begun, first = walk(broken_at)
    again = [Configuration.from_json(json.loads(json.dumps(c.to_json()))) for c in begun]
    ended, second = walk(20, again, broken_at)
    assert (ended, first + second) == walk(20)


def test_what_the_tuner_was_told_is_in_the_optuna_study_with_failures_as_worst():
    study, _ = walk(10)
    failed = replace(study[0], failed="CRASHED: out of memory")
    rebuilt_study = rebuilt([failed, *study[1:]], SPACE, SOURCES, 0)
    states = Counter(str(trial.state.name) for trial in rebuilt_study.trials)
    assert states == {"PRUNED": 1, "COMPLETE": len(study) - 1}


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_sampler_follows_from_the_study_and_the_seed_alone(sampler):
    study, _ = walk(12)
    made = [fresh(study, SPACE, SOURCES, NOTHING, seed, sampler) for seed in range(6)]
    assert made == [fresh(study, SPACE, SOURCES, NOTHING, seed, sampler) for seed in range(6)]
    assert len({c.id for c in made}) == 6


def test_the_random_sampler_does_not_look_at_values_and_the_estimator_does():
    study, _ = walk(25)
    turned = [replace(c, values=tuple(-value for value in c.values)) for c in study]
    for sampler, same in ((Sampler.RANDOM, True), (Sampler.TPE, False)):
        drawn = [[fresh(each, SPACE, SOURCES, NOTHING, seed, sampler) for seed in range(8)] for each in (study, turned)]
        assert (drawn[0] == drawn[1]) is same


def test_ranks_are_between_0_and_1_in_the_order_of_values_and_failures_are_last():
    study = [Configuration(str(i), SFT, {}, values=(float(i),)) for i in range(4)]
    found = ranks([*study, replace(study[3], id="bad", failed="CRASHED"), Configuration("new", SFT, {})])
    assert found == {"0": 0.125, "1": 0.375, "2": 0.625, "3": 0.875, "bad": 0.0}


def test_hints_from_a_related_model_move_what_is_suggested_to_where_it_was_good():
    sft = Space(stages=(Stage.SFT,))
    span = sft.genes(Stage.SFT, SOURCES)["sft.learning_rate"]
    default = sft.default_genes(Stage.SFT, SOURCES)
    hints = []
    for number in range(12):
        rate = span.low * (span.high / span.low) ** (number / 11)
        hints.append(Hint(Stage.SFT, {**default, "sft.learning_rate": rate}, 0.95 - 0.08 * number))
    first = [Configuration("d", SFT, default), Configuration("b", SFT, hints[0].genes)]
    middle = math.sqrt(span.low * span.high)
    told = [fresh(first, sft, SOURCES, Knowledge({}, {}, [], hints), seed).recipe.learning_rate for seed in range(30)]
    untold = [fresh(first, sft, SOURCES, NOTHING, seed).recipe.learning_rate for seed in range(30)]
    assert sum(rate < middle for rate in told) > 24 > sum(rate < middle for rate in untold)


def test_a_hint_is_not_taken_where_a_limit_forbids_it_or_the_space_has_changed():
    genes = {**SPACE.default_genes(Stage.SFT, SOURCES), "sft.learning_rate": 5e-4}
    knowledge = Knowledge({}, {}, [], [Hint(Stage.SFT, genes, 0.9)])
    study = [fresh([], SPACE, SOURCES, NOTHING, 0)]
    study.append(fresh(study, SPACE, SOURCES, NOTHING, 0))
    assert fresh(study, SPACE, SOURCES, knowledge, 0).genes == genes
    limit = taught(SPACE.recipe(Stage.SFT, genes, SOURCES, {}), "diverged")
    made = fresh(study, SPACE, SOURCES, replace(knowledge, limits=[limit]), 0)
    assert not forbidden(made.recipe, [limit])
    assert fresh(study, SPACE, ["other"], knowledge, 0).genes.keys() != genes.keys()


def test_configurations_outside_todays_space_are_left_out_of_the_study():
    study, _ = walk(10)
    assert len(rebuilt(study, Space(stages=(Stage.SFT,)), ["other"], 0).trials) == 0


def test_a_region_that_ran_out_of_memory_or_diverged_is_never_proposed_again():
    default = SPACE.recipe(Stage.SFT, SPACE.default_genes(Stage.SFT, SOURCES), SOURCES, {})
    limits = [taught(default, "out of memory"), taught(replace(default, learning_rate=1.5e-4), "diverged")]
    sft = Space(stages=(Stage.SFT,))
    for seed in range(15):
        made = fresh([], sft, SOURCES, Knowledge({}, {}, limits), seed)
        assert not forbidden(made.recipe, limits), made.recipe


def test_a_configuration_that_a_budget_stopped_goes_on_before_anything_else():
    one = Configuration("x", SFT, {}, step=20, trained=20)
    two = Configuration("y", SFT, {}, step=34, trained=34, values=(1.0,))
    assert paused([two, one], LADDER) is one
    assert paused([two], LADDER) is None
    assert paused([replace(one, failed="no")], LADDER) is None


def test_a_study_is_trimmed_of_failures_and_finished_losers_first():
    def made(i: int, **changes):
        return Configuration(str(i), SFT, {}, step=300, values=(0.1, 0.2, float(i)), **changes)

    study = [made(i) for i in range(MOST_CONFIGURATIONS)]
    kept = trimmed([made(99, failed="CRASHED"), *study, Configuration("new", SFT, {})], LADDER)
    assert len(kept) == MOST_CONFIGURATIONS
    assert {"99", "0"}.isdisjoint(c.id for c in kept)
    assert kept[-1].id == "new"


def test_a_configuration_of_a_ledger_from_before_there_were_preferences_is_read():
    known = fresh([], SPACE, SOURCES, NOTHING, seed=1)
    body = {name: value for name, value in known.to_json().items() if name not in ("pairs", "hopeless")}
    assert Configuration.from_json(body) == known
