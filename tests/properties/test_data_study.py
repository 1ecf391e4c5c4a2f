"""The study of data, shortened: its sources are what they are called, tokens are kept, the page says what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safety.yardstick import bilingual
from safety.yardstick.items import Item
from studies import data, data_page
from studies.data import ARMS, HARMFUL, LEARNED, SOURCES, UNIFORM, USEFUL, USELESS, Mixed, part_of, rows_of
from studies.findings import Finding
from studies.paired import pairs_of
from studies.world import Climb, Workshop, World, unseen, world_of


@pytest.fixture(scope="module")
def world(trained: Path) -> World:
    torch.set_num_threads(1)
    return world_of(3, trained / "models")


def test_the_useful_source_is_right_the_harmful_one_wrong_and_no_row_shares_a_pair_with_an_unseen_item(
    world: World,
) -> None:
    right = {
        prompt: answer for family in ("maths2", "copying2")
        for prompt, answer in bilingual.items(family, "search", bilingual.population(family, "search"), 0)
    }
    for source in SOURCES:
        rows = rows_of(source, 3)
        assert len(rows) == data.ROWS and rows == rows_of(source, 3)
        assert all((right[prompt] == answer) == (source != HARMFUL) for prompt, answer in rows)
    taught = set(pairs_of([Item.of(prompt, answer) for prompt, answer in rows_of(USEFUL, 3) + rows_of(HARMFUL, 3)]))
    assert not taught & set(pairs_of(unseen(world.tasks[0])))


def test_an_arm_keeps_to_its_tokens_and_the_learned_one_pays_for_weighing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "RECIPE", replace(data.RECIPE, batch=16, steps=40))
    monkeypatch.setattr(data, "FRESH_ITEMS", 64)
    spent = {}
    for name, arm in ARMS.items():
        (tmp_path / name).mkdir()
        found = arm(world, Workshop(tmp_path / name, dict(world.folders)), 20_000)
        spent[name] = sum(sum(cycle.values()) for cycle in found.by_source)
        assert spent[name] <= found.spent <= 20_000
        assert found.candidates == len(found.by_source) > 1
    assert spent[UNIFORM] > 19_000 > spent[LEARNED] > 14_000


def test_fixed_shares_are_kept_whatever_the_sources_pay() -> None:
    loop = Mixed({USEFUL: 3.0, USELESS: 1.0}).settings
    payoffs = {HARMFUL: {"payoff": 1.0, "trials": 5.0}}
    genes = loop.space.default_genes(loop.stages[0], SOURCES)
    assert loop.space.recipe(loop.stages[0], genes, SOURCES, payoffs).mixture == {USEFUL: 0.75, USELESS: 0.25}


def finding(world: World, right: float, harmful: int) -> Finding:
    count = {task.name: len(unseen(task)) for task in world.tasks}
    answers = {name: "".join("01"[place % 100 < 100 * right] for place in range(n)) for name, n in count.items()}
    cycles = ({USEFUL: 97, USELESS: 50, HARMFUL: 3}, {USEFUL: 100 - harmful, USELESS: 0, HARMFUL: harmful})
    return Finding(answers, Climb("m", 1, 2, 300, 0, cycles), 60.0)


@pytest.mark.parametrize(("learned", "harmful", "met"), [
    ((0.7, 0.72), 5, True), ((0.7, 0.72), 25, False), ((0.5, 0.7), 5, False),
])
def test_the_page_says_whether_the_requirement_is_met(
    world: World, learned: tuple[float, float], harmful: int, met: bool
) -> None:
    found = {seed: {LEARNED: finding(world, right, harmful), UNIFORM: finding(world, 0.5, 33)}
             for seed, right in enumerate(learned)}
    bases = {seed: {task.name: "01" for task in world.tasks} for seed in found}
    text, holds = data_page.page(world, found, bases, 2, 300)
    assert holds is met
    assert ("**Met**" in text, "**Not met**" in text) == (met, not met)
    assert f"at most {(3 + harmful) / 2.5:.1f} % on any seed" in text
    assert part_of(HARMFUL, found[0][LEARNED].climb.by_source) == pytest.approx((3 + harmful) / 250)
