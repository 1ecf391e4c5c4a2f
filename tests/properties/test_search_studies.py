"""The studies of searches, shortened: budgets are kept, findings are found again, pages say what was measured."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loops.architecture.settings import ArchitectureSettings, Space
from safety.operators import Operator
from safety.yardstick.items import Item
from studies import akiba, akiba_page, findings, search, search_page
from studies.findings import Finding, Findings
from studies.mergekit_scheme import Scheme, search_in_full
from studies.paired import difference, over_seeds, pairs_of
from studies.world import Climb, Exam, Workshop, World, climb, models_of_seed, world_of


@pytest.fixture(scope="module")
def world(trained: Path) -> World:
    torch.set_num_threads(1)
    made = world_of(3, trained / "models")
    small = replace(made.settings, coarse_proposals=6, fitness_items=32, fresh_items=96, batch_items=32)
    return replace(made, settings=small)


@pytest.fixture
def workshop(world: World, tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, dict(world.folders))


@pytest.mark.parametrize("space", [Space.PARAMETER, Space.DATA_FLOW])
def test_a_climb_stays_within_its_items_and_ends_with_the_model_in_force(
    space: Space, world: World, workshop: Workshop
) -> None:
    settings, target = replace(world.settings, space=space), world.tasks[:1]
    found = climb(world, settings, target, world.base, workshop, 700)
    assert 700 - 2 * (32 + 96) <= found.spent <= 700
    assert found.spent == workshop.spent
    assert found.on_paths == (found.spent if space is Space.DATA_FLOW else 0)
    assert found.model in workshop.folders
    assert (found.model == world.base) == (found.moves == 0)
    again = climb(world, settings, target, world.base, Workshop(workshop.folder, dict(world.folders)), 700)
    assert again == found


@pytest.mark.parametrize(("scheme", "genes"), [
    (Scheme(), 2 * 2), (Scheme(filters=True), 2 * 2 * 3), (Scheme(granularity=1), 4 * 2),
    (Scheme(operator=Operator.DARE_TIES), 2 * 2 + 2),
])
def test_the_scheme_has_a_weight_for_each_model_and_block_and_scores_every_merge_in_full(
    scheme: Scheme, genes: int, world: World, workshop: Workshop
) -> None:
    assert scheme.genome(world, layers=4).dimensions == genes
    found = search_in_full(world, replace(scheme, evaluations=10), world.tasks, workshop, 1_300)
    assert (found.candidates, found.spent, workshop.spent) == (10, 1_280, 1_280)
    assert found.model in workshop.folders


def test_blocks_without_filters_have_one_weight_for_all_kinds_of_module(world: World) -> None:
    change = Scheme().genome(world, layers=4).change(np.array([-0.1, 0.2, 0.3, 9.0]))
    assert change["weights"] == [[[0.1] * 3, [0.2] * 3], [[0.3] * 3, [2.5] * 3]]


def test_the_scheme_ends_with_the_merge_that_scored_highest(
    world: World, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.5, 0.3, 0.5, 0.2])
    changes = []

    def told(exam: Exam, change: dict[str, object]) -> float:
        changes.append(change)
        return next(scores)

    monkeypatch.setattr(Exam, "fitness", told)
    found = search_in_full(world, Scheme(evaluations=5), world.tasks[:1], workshop, 100)
    monkeypatch.undo()
    assert found.model == Exam(world, world.tasks[:1], workshop, 1).built(changes[1])
    assert found.moves == 2


def test_a_finding_is_measured_once_and_anew_where_anything_it_depends_on_is_another(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "answers", lambda folder, tasks: {task.name: "0110" for task in tasks})
    kept, measured = Findings("try", tmp_path), []

    def make(workshop: Workshop) -> Climb:
        measured.append(workshop)
        return Climb(world.base, 1, 2, 3, 0)

    first = kept.of("arm", world, 100, (), make)
    again = kept.of("arm", world, 100, (), make)
    assert again == first
    assert list(again.right) == list(first.right) == [task.name for task in world.tasks]
    assert first.climb == Climb(world.base, 1, 2, 3, 0)
    assert len(measured) == 1
    kept.of("arm", world, 101, (), make)
    kept.of("other", world, 100, (), make)
    kept.of("arm", world, 100, ("studies",), make)
    assert len(measured) == 4


def test_the_control_rows_of_the_picture_are_linear_merges_on_the_targets_search_items(
    world: World, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(akiba, "EXAM_ITEMS", 48)
    monkeypatch.setattr(akiba, "GRID", 3)
    assert akiba.mixed(world, 0.25)["weights"] == [[[0.25] * 3], [[0.75] * 3]]
    assert akiba.better_parent(world, workshop) in world.parents
    best = akiba.best_lambda(world, workshop, 0)
    assert (best.candidates, best.spent) == (3, 3 * 48)
    uniform = akiba.uniform(world, workshop, 0)
    assert uniform.model != world.base
    assert uniform.model in workshop.folders


def test_both_spaces_share_the_items_by_halves_and_paths_go_on_from_the_merge_that_won(
    world: World, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(akiba, "EXAM_ITEMS", 48)
    begun, real = [], akiba.climb

    def noted(world: World, settings: ArchitectureSettings, *rest: Any) -> Climb:
        found = real(world, settings, *rest)
        begun.append((settings.space, rest[1], found))
        return found

    monkeypatch.setattr(akiba, "climb", noted)
    both = akiba.merges_then_paths(world, workshop, 1_200)
    (space, start, merges), (then, after, paths) = begun
    assert (space, then) == (Space.PARAMETER, Space.DATA_FLOW)
    assert start in world.parents
    assert after == merges.model
    assert both.model == paths.model
    assert both.spent == merges.spent + paths.spent == workshop.spent <= 1_200
    assert both.on_paths == paths.spent > 0
    assert merges.spent <= 600


def made_up(right: float, climb: Climb, tasks: tuple[str, ...], seed: int) -> Finding:
    """A finding with that share of right answers on as many items as the tasks have."""
    draw = np.random.default_rng(seed)
    sizes = {"maths2": 3488, "maths1": 1568, "naming2": 1368, "copying2": 2416}
    return Finding({
        task: "".join("1" if one < right else "0" for one in draw.random(sizes[task])) for task in tasks
    }, climb, 6.0)


def remark(text: str, beginning: str) -> str:
    """What a point of the page says after its beginning, in one line."""
    return " ".join(text.split()).split(f"- {beginning}")[1].split(" - ")[0]


@pytest.mark.parametrize(("ours", "word"), [(0.7, "Met"), (0.4, "Not met")])
def test_the_page_says_met_only_where_ours_is_at_or_above_the_scheme(ours: float, word: str, world: World) -> None:
    found = {setting.name: {
        seed: {name: made_up(
            ours if name == search.OURS else 0.55, Climb("m", 1, 7, 9, 0), tuple(t.name for t in world.tasks), seed
        ) for name in setting.arms} for seed in (0, 1, 2)
    } for setting in search.SETTINGS}
    text, holds = search_page.page(world, found, 5, 40_000)
    assert f"**{word}**" in text
    assert holds == (word == "Met")
    assert "seeds 0 to 2, of 5 that were asked for" in " ".join(text.split())
    said = remark(text, "For the target alone, ours is ")
    assert said.startswith("above " if holds else "below ")
    assert f"{search.THEIRS} (" in said


def test_the_picture_names_its_rows_and_tells_them_apart_by_their_intervals(world: World) -> None:
    shares = dict(zip(akiba.ARMS, (0.3, 0.3, 0.5, 0.55, 0.65, 0.35, 0.75, 0.35), strict=True))
    tasks = tuple(task.name for task in world.tasks)
    found = {seed: {
        name: made_up(right, Climb("m", 1, 7, 9, 5), tasks, seed) for name, right in shares.items()
    } for seed in range(5)}
    text = akiba_page.page(world, found, 5, 40_000)
    assert all(f"| {name} |" in text for name in akiba.ARMS)
    above, below = sorted(remark(text, "Parameter space is ").split("; "))
    assert above.startswith("above ")
    assert float(above.split(f"{akiba.BEST_LAMBDA} (")[1].split()[0]) == pytest.approx(10, abs=1.5)
    assert float(below.removeprefix(f"below {akiba.BOTH} (").split()[0]) == pytest.approx(-10, abs=1.5)


def test_an_interval_by_pairs_of_operands_holds_the_truth_where_items_of_a_pair_go_together() -> None:
    draw, groups = np.random.default_rng(5), [(pair,) for pair in range(60) for _ in range(16)]
    held = 0
    for _ in range(200):
        better = np.repeat(draw.random(60) < 0.5, 16)
        new, old = ("".join("1" if one else "0" for one in side) for side in (better, ~better))
        mean, half = difference(new, old, groups)
        held += abs(mean) <= half
    assert held >= 180
    assert pairs_of([Item.of("donu la sumon de 7 kaj 3 nun", "10 dek")]) == [(3, 7)]


def test_one_seed_alone_says_nothing_about_others() -> None:
    assert over_seeds([0.25]) == (0.25, math.inf)
    mean, half = over_seeds([0.1, 0.2, 0.3, 0.2, 0.2])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(2.776 * np.std([0.1, 0.2, 0.3, 0.2, 0.2], ddof=1) / math.sqrt(5))


def test_a_study_makes_no_models_that_are_there(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "models", tmp_path / "seed-0")
    assert models_of_seed(0, tmp_path) == tmp_path / "seed-0"
