"""Children take over where a leading configuration stands, and nothing of what is trained changes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops.pipeline.limits import taught
from loops.pipeline.mutation import MUTABLE, child
from loops.pipeline.recipe import Stage
from loops.pipeline.space import Ranges, Space
from loops.pipeline.tuner import Configuration, Knowledge, Ladder, fresh, inside, paused, ranks, survivor

SOURCES = ["a", "b"]
NOTHING = Knowledge({}, {}, [])
SPACE, LADDER = Space(), Ladder()


def leader(stage: Stage = Stage.SFT, **changes) -> Configuration:
    genes = SPACE.default_genes(stage, SOURCES)
    recipe = SPACE.recipe(stage, genes, SOURCES, {})
    end = LADDER.ends(recipe.steps)[0]
    stands = Configuration("leader", recipe, genes, end, end - 2, "m" * 64, "c" * 64, (0.2,), None, 1)
    return replace(stands, **changes)


@given(st.integers(0, 2**32), st.sampled_from(list(Stage)))
def test_a_child_stands_where_its_leader_stands_and_only_what_may_change_in_mid_run_differs(seed, stage):
    first = leader(stage)
    born = child(first, [first], SPACE, SOURCES, NOTHING, seed)
    assert born is not None
    kept = ("step", "trained", "model", "checkpoint", "values", "failed")
    assert all(getattr(born, name) == getattr(first, name) for name in kept)
    assert (born.parent, born.inherited, born.own, born.timeouts) == ("leader", 1, (), 0)
    assert born.id != first.id
    mine, theirs = born.recipe.to_json(), first.recipe.to_json()
    assert {name for name in mine if mine[name] != theirs[name]} <= {*MUTABLE, "mixture"}
    assert mine != theirs
    assert inside(born.genes, stage, SPACE, SOURCES)
    assert born == child(first, [first], SPACE, SOURCES, NOTHING, seed)


def test_a_child_keeps_out_of_what_failures_taught():
    first = leader()
    limit = taught(first.recipe, "Diverged: loss is nan at step 40")
    for seed in range(30):
        born = child(first, [first], SPACE, SOURCES, Knowledge({}, {}, [limit]), seed)
        assert born is None or born.recipe.learning_rate < first.recipe.learning_rate
    memory = taught(first.recipe, "out of memory")
    assert child(first, [first], SPACE, SOURCES, Knowledge({}, {}, [memory]), 0) is None


def test_a_leader_outside_todays_space_has_no_child():
    narrow = Space(ranges=Ranges(learning_rate=(0.9, 1.1)))
    far = leader()
    far = replace(far, genes={**far.genes, "sft.learning_rate": 2.9 * far.recipe.learning_rate})
    assert child(far, [far], narrow, SOURCES, NOTHING, 0) is None
    assert child(far, [far], SPACE, ["a"], NOTHING, 0) is None


def test_a_child_that_has_not_begun_goes_first_and_lets_nobody_climb():
    first = leader()
    born = child(first, [first], SPACE, SOURCES, NOTHING, 0)
    assert paused([first, born], LADDER) is born
    assert ranks([first, born]).keys() == {"leader"}
    two = [first, replace(first, id="second", values=(0.1,))]
    assert survivor([*two, born], LADDER) is None
    assert survivor([*two, replace(first, id="third", values=(0.0,)), born], LADDER) is first


@pytest.mark.parametrize("children", [1, 2])
def test_with_children_no_step_is_repeated_and_each_climber_has_so_many(children):
    study, walked = [], []
    for cycle in range(60):
        chosen = paused(study, LADDER)
        if chosen is None and (chosen := survivor(study, LADDER)) is not None:
            born = [c for c in study if c.parent == chosen.id and c.inherited == len(chosen.values)]
            if len(born) < children:
                chosen = child(chosen, study, SPACE, SOURCES, NOTHING, cycle)
        chosen = chosen or fresh(study, SPACE, SOURCES, NOTHING, cycle)
        end = LADDER.end(chosen)
        walked.append((chosen, end))
        value = -abs(chosen.recipe.learning_rate - 3e-4) + 1e-6 * end
        after = replace(chosen, step=end, trained=end, values=(*chosen.values, value))
        study = [c for c in study if c.id != after.id] + [after]
        study = [Configuration.from_json(json.loads(json.dumps(c.to_json()))) for c in study]
    steps = Counter((c.id, step) for c, end in walked for step in range(c.step, end))
    assert max(steps.values()) == 1
    begins = {c.id: min(step for name, step in steps if name == c.id) for c in study}
    for each in study:
        mine = sorted(step for name, step in steps if name == each.id)
        assert mine == list(range(begins[each.id], each.step))
        assert begins[each.id] == (LADDER.ends(each.recipe.steps)[each.inherited - 1] if each.parent else 0)
    families = Counter((c.parent, c.inherited) for c in study if c.parent)
    assert set(families.values()) == {children}
    assert sum(c.parent is None for c in study) > len(families)
