"""The jobs score, compare and report, on real small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import teach, tiny_model

from safety.yardstick.bilingual import VOCABULARY
from safety.yardstick.items import TaskSpec
from safety.yardstick.jobs import compare, items_of, score
from safety.yardstick.sealed import load_guard, load_vault, seal_tasks
from safety.yardstick.tasks import Seal, draw, sealed_ids
from state.jobs import Desk, JobSpec, Produced
from state.records import Split

MATHS = TaskSpec("maths2", "target", {"kind": "bilingual", "family": "maths2"}, vault_items=30)
COPYING = TaskSpec("copying2", "guard", {"kind": "bilingual", "family": "copying2"}, guard_items=25)
TASKS = [MATHS.to_json(), COPYING.to_json()]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models, of which the new one has learned the very items a comparison with seed 5 draws, and sealed splits."""
    folder = tmp_path_factory.mktemp("house")
    sealing = folder / "sealing"
    sealing.mkdir()
    sealed = seal_tasks(JobSpec("seal", {}, {"tasks": TASKS}, 1), Desk(sealing, {}))
    seal = Seal.of(sealed.outputs)
    pairs = [(i.prompt, i.answer) for task in (MATHS, COPYING) for i in draw(task, Split.SEARCH, 48, 5, seal)]
    old = tiny_model(folder / "old", VOCABULARY[3:], layers=1)
    return {"old": old, "new": teach(old, pairs, folder / "new", steps=180, rate=1e-2), **sealed.outputs}


def ask(
    house: dict[str, Path], folder: Path, kind: str, inputs: dict[str, str], cache: dict[str, Any] | None = None,
    **params: Any,
) -> Produced:
    """Run one job; `inputs` maps input names to what the house calls them, which also serves as the digest."""
    spec = JobSpec(kind, inputs, {"tasks": TASKS, "batch": 16} | params)
    desk = Desk(folder, {name: house[what] for name, what in inputs.items()}, cache={} if cache is None else cache)
    return {"score": score, "report": score, "compare": compare}[kind](spec, desk)


BOTH = {"model:new": "new", "model:old": "old", "seal": "seal"}


def test_score_counts_every_model_on_every_task_and_keeps_each_item(house: dict[str, Path], tmp_path: Path) -> None:
    produced = ask(house, tmp_path, "score", BOTH, count=48, seed=5)
    new, old = produced.values["new"]["maths2"], produced.values["old"]["maths2"]
    assert new["n"] == 48 and new["correct"] > 30 > 10 > old["correct"] and new["low"] < new["mean"] <= new["high"] <= 1
    kept = json.loads(produced.outputs["scores"].read_text())
    assert sum(kept["new"]["maths2"]["scores"]) == new["correct"] and len(set(kept["new"]["maths2"]["ids"])) == 48
    assert produced.items == 2 * 2 * 48


def test_search_items_are_never_sealed_ones(house: dict[str, Path], tmp_path: Path) -> None:
    kept = json.loads(ask(house, tmp_path, "score", BOTH, count=200, seed=9).outputs["scores"].read_text())
    assert not set(kept["new"]["copying2"]["ids"]) & sealed_ids(house["seal"])


def test_a_warm_worker_scores_nothing_twice(house: dict[str, Path], tmp_path: Path) -> None:
    cache: dict[str, Any] = {}
    first = ask(house, tmp_path, "score", BOTH, cache, count=20, seed=5)
    again = ask(house, tmp_path, "score", BOTH, cache, count=20, seed=5)
    assert (first.items, again.items) == (80, 0) and first.values == again.values


def test_a_better_model_is_seen_early_and_the_race_stops(house: dict[str, Path], tmp_path: Path) -> None:
    produced = ask(house, tmp_path, "compare", BOTH, count=48, seed=5)
    assert produced.values["race"]["decision"] == "better"
    assert produced.values["pooled"]["p_value"] == pytest.approx(1 / produced.values["race"]["e"])
    assert produced.values["pooled"]["p_value"] <= 0.05 and produced.values["pooled"]["n"] < 96
    assert produced.items == 2 * produced.values["pooled"]["n"]


def test_a_worse_model_costs_few_items(house: dict[str, Path], tmp_path: Path) -> None:
    swapped = {"model:new": "old", "model:old": "new", "seal": "seal"}
    produced = ask(house, tmp_path, "compare", swapped, count=48, seed=5)
    assert produced.values["race"]["decision"] == "hopeless" and produced.values["pooled"]["n"] < 96


def test_without_a_race_every_item_is_compared(house: dict[str, Path], tmp_path: Path) -> None:
    produced = ask(house, tmp_path, "compare", BOTH, count=48, seed=5, race=False)
    assert [produced.values[name]["n"] for name in ("maths2", "copying2", "pooled")] == [48, 48, 96]
    kept = json.loads(produced.outputs["scores"].read_text())["maths2"]
    assert sum(kept["new"]) - sum(kept["old"]) == pytest.approx(48 * produced.values["maths2"]["mean"])


def test_a_model_against_itself_is_no_better(house: dict[str, Path], tmp_path: Path) -> None:
    produced = ask(house, tmp_path, "compare", {"model:new": "new", "model:old": "new"}, count=48, seed=5)
    assert produced.values["pooled"]["p_value"] == 1.0 and produced.values["race"]["decision"] != "better"


@pytest.mark.parametrize("split", ["vault", "guard"])
@pytest.mark.parametrize(("kind", "asks"), [("score", True), ("score", False), ("compare", False)])
def test_no_job_but_a_report_reads_a_sealed_split(
    house: dict[str, Path], tmp_path: Path, kind: str, asks: bool, split: str
) -> None:
    params = {"split": split} if asks else {"count": 5}
    with pytest.raises(ValueError, match=f"a {kind} job may not read the {split}"):
        ask(house, tmp_path, kind, BOTH | {split: split}, **params)


def test_the_vault_cannot_be_asked_for_without_its_input(house: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="may not read the vault"):
        ask(house, tmp_path, "score", BOTH, split="vault")
    with pytest.raises(ValueError, match="needs the input 'vault'"):
        ask(house, tmp_path, "report", BOTH, split="vault")


def test_a_report_reads_both_sealed_splits_from_its_inputs(
    house: dict[str, Path], tmp_path: Path
) -> None:
    vault = ask(house, tmp_path, "report", {"model:new": "new", "vault": "vault"}, split="vault", tasks=TASKS[:1])
    guard = ask(house, tmp_path, "report", {"model:new": "new", "guard": "guard"}, split="guard", tasks=TASKS[1:])
    assert vault.values["new"]["maths2"]["n"] == len(load_vault(house["vault"], MATHS)) == 30
    assert guard.values["new"]["copying2"]["n"] == len(load_guard(house["guard"], COPYING)) == 25


def test_a_seed_of_the_job_itself_is_used_when_the_parameters_name_none(house: dict[str, Path], tmp_path: Path) -> None:
    desk = Desk(tmp_path, {})
    by_job = items_of(JobSpec("score", {}, {"count": 5}, seed=7), desk, MATHS)
    assert by_job == items_of(JobSpec("score", {}, {"count": 5, "seed": 7}), desk, MATHS)
    assert by_job == draw(MATHS, Split.SEARCH, 5, 7)


def test_a_search_job_without_a_count_is_refused(house: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a count"):
        ask(house, tmp_path, "score", BOTH)
