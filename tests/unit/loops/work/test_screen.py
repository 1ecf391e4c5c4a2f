"""The job "screen": scores of the model that would be built, raced fairly, with everything warm."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lora import adapter
from sealing import seal_of
from zoo import pairs

from loops.architecture.genome import Definition, Operator
from loops.architecture.settings import Objective
from loops.work.build import build
from loops.work.control import random_search
from loops.work.screen import LATENCY_STEP, Bed, _fresh, screen
from loops.work.sketch import WIDTH
from safety.headers import tensor_headers
from safety.yardstick.items import TaskSpec
from safety.yardstick.scoring import load_model
from state.jobs import Desk, JobSpec
from state.records import JsonObject, canonical

pytest_plugins = ("zoo",)
Make = Callable[..., Desk]
DEFINITION = Definition(Operator.TASK_ARITHMETIC, "base", ("one", "two"))
CHANGE = DEFINITION.change([0.5, 0.5])


def spec_of(task: JsonObject, change: JsonObject, incumbent: str = "base", **more: Any) -> JobSpec:
    params = {"change": change, "incumbent": incumbent, "tasks": [task], "fitness_seed": 1, "fitness_count": 64,
              "fresh_seed": 2, "fresh_count": 160, "race_batch": 32, "batch": 32, **more}
    return JobSpec("screen", {f"model:{name}": name for name in ("base", "one", "two")}, params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [
    CHANGE, {"kind": "crossover", "parents": ["one", "two"], "split": 0.5, "mix": 0.2},
    Definition(Operator.DARE_LINEAR, "base", ("one", "two"), seed=5).change([0.5, 0.5, 0.5, 0.7]),
])
def test_the_candidate_in_memory_is_the_model_that_is_built_and_loaded_again(
    change: JsonObject, dtype: torch.dtype, desk_of: Make, task: JsonObject, zoo: dict[str, Path], tmp_path: Path
) -> None:
    stored = {name: tmp_path / name for name in zoo}
    for name, path in zoo.items():
        held = load_model(path, "cpu")
        held.model.to(dtype).save_pretrained(stored[name])
        held.tokenizer.save_pretrained(stored[name])
    desk = desk_of(**stored)
    desk.folder.mkdir()
    spec = spec_of(task, change)
    Bed.of(spec, desk).candidate(CHANGE)                    # another candidate was there before
    shell = Bed.of(spec, desk).candidate(change).shell
    loaded = load_model(Path(build(spec, desk).outputs["model"]), "cpu").model.state_dict()
    for name, tensor in shell.model.state_dict().items():
        assert torch.equal(tensor, loaded[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [
    CHANGE, {"kind": "crossover", "parents": ["one", "two"], "split": 0.5, "mix": 0.2, "base": "base"},
    {"kind": "path", "parents": ["base", "one", "two"], "layers": [[0, 0], [1, 0], [2, 1], [1, 0]],
     "scales": [1.0, 0.7, 1.0, 1.3], "places": [0, 1, 2, 3], "base": "base"},
])
def test_a_candidate_of_adapters_in_memory_is_the_model_that_is_built_and_loaded_again(
    change: JsonObject, dtype: torch.dtype, desk_of: Make, task: JsonObject, zoo: dict[str, Path], tmp_path: Path
) -> None:
    held = load_model(zoo["base"], "cpu")
    held.model.to(dtype).save_pretrained(tmp_path / "base")
    held.tokenizer.save_pretrained(tmp_path / "base")
    adapters = {name: adapter(zoo["base"], tmp_path / name, seed, target_modules="all-linear", use_dora=bool(seed))
                for seed, name in enumerate(("one", "two"))}
    desk = desk_of(base=tmp_path / "base", **adapters)
    desk.folder.mkdir()
    spec = spec_of(task, change)
    Bed.of(spec, desk).candidate(CHANGE)                    # another candidate was there before
    shell = Bed.of(spec, desk).candidate(change).shell
    loaded = load_model(Path(build(spec, desk).outputs["model"]), "cpu").model.state_dict()
    assert loaded.keys() == shell.model.state_dict().keys()
    for name, tensor in shell.model.state_dict().items():
        assert torch.equal(tensor, loaded[name])


def test_screening_again_with_everything_warm_gives_the_same_values(desk_of: Make, task: JsonObject) -> None:
    cold = screen(spec_of(task, CHANGE), desk_of()).values
    cache: dict[str, Any] = {}
    screen(spec_of(task, DEFINITION.change([0.1, 2.0])), desk_of(cache))
    screen(spec_of(task, DEFINITION.change([0.2, 0.2]), fitness_seed=7), desk_of(cache))
    assert canonical(screen(spec_of(task, CHANGE), desk_of(cache)).values) == canonical(cold)


def test_a_merge_of_two_half_experts_beats_the_base(desk_of: Make, task: JsonObject) -> None:
    values = screen(spec_of(task, CHANGE), desk_of()).values
    assert values["fitness"] > values["incumbent_fitness"]
    assert values["comparison"]["p_value"] < 0.05
    assert len(values["fitness_scores"]) == 64
    assert values["fitness"] == pytest.approx(values["fitness_scores"].count("1") / 64, abs=1e-6)


def test_a_candidate_that_is_not_above_the_incumbent_costs_no_fresh_item(desk_of: Make, task: JsonObject) -> None:
    values = screen(spec_of(task, DEFINITION.change([0.0, 0.0])), desk_of()).values
    assert values["fitness"] == values["incumbent_fitness"]
    assert values["race"] == {"decision": "hopeless", "n": 0, "mean": 0.0, "e": values["race"]["e"]}
    assert values["comparison"]["n"] == 0


def test_fresh_items_are_neither_shared_nor_sealed(desk_of: Make, task: JsonObject, tmp_path: Path) -> None:
    spec = spec_of(task, CHANGE)
    banned = [item.id for item in Bed.of(spec, desk_of()).drawn(40, 1)[0].items]
    seal = seal_of([TaskSpec.from_json(task)], tmp_path / "seal", banned)
    desk = Desk(tmp_path, {**desk_of().inputs, "seal": seal}, cache={})
    sealed = Bed.of(JobSpec("screen", {**spec.inputs, "seal": "s"}, spec.params), desk)
    shared = sealed.drawn(64, 1)
    fresh = {item.id for item in _fresh(sealed, shared)[0].items}
    assert not {item.id for item in shared[0].items} & fresh
    assert not ({item.id for item in sealed.drawn(248, 9)[0].items} | fresh) & set(banned)


def half(task: JsonObject, which: str, folder: Path) -> JsonObject:
    """The items of one expert's half, as a guard."""
    path = folder / f"{which}.jsonl"
    rows = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in pairs(which)]
    path.write_text("\n".join(rows))
    return {**task, "name": which, "role": "guard", "source": {"kind": "jsonl", "path": str(path)}}


def guards_of(task: JsonObject, folder: Path) -> JsonObject:
    return {"tasks": [half(task, name, folder) for name in ("one", "two")], "count": 96, "margin": 0.03, "seed": 4}


def with_pools(desk: Desk, folder: Path, tasks: Sequence[JsonObject]) -> Desk:
    """The desk with a seal that holds the pools of these tasks as well."""
    return replace(desk, inputs={
        **desk.inputs, "seal": seal_of([TaskSpec.from_json(body) for body in tasks], folder / "seal"),
    })


def test_a_winner_is_looked_at_on_the_guards_and_a_loser_is_not(
    desk_of: Make, task: JsonObject, tmp_path: Path
) -> None:
    """From the first expert to the second: better on the second's half, much worse on the first's."""
    guards = guards_of(task, tmp_path)
    target = {**half(task, "two", tmp_path), "name": "target", "role": "target"}
    turned = Definition(Operator.LINEAR, "base", ("two",)).change([1.0])
    sizes, desk = {"fitness_count": 32, "fresh_count": 96}, with_pools(desk_of(), tmp_path, [*guards["tasks"], target])
    values = screen(spec_of(target, turned, "one", guards=guards, **sizes), desk).values
    assert values["comparison"]["p_value"] < 0.05
    assert values["guards"]["one"]["decision"] == "worse"
    assert values["guards"]["two"]["decision"] == "kept"
    values = screen(spec_of(target, turned, "two", guards=guards, **sizes), desk).values
    assert "guards" not in values


def test_size_latency_forgetting_and_sketch_are_measured_against_the_base(
    desk_of: Make, task: JsonObject, tmp_path: Path, zoo: dict[str, Path]
) -> None:
    guards = guards_of(task, tmp_path)
    desk, always = with_pools(desk_of(), tmp_path, [task, *guards["tasks"]]), ["size", "forgetting", "sketch"]
    base, one, again = (
        screen(spec_of(task, Definition(Operator.LINEAR, "base", (name,)).change([1.0]), "base", guards=guards,
                       base="base", measures=measures), replace(desk, cache={})).values
        for name, measures in (("base", [*always, "latency"]), ("one", always), ("one", always))
    )
    assert base["measures"].keys() == set(Objective) - {Objective.QUALITY}
    assert base["measures"]["size"] == sum(header.count for header in tensor_headers(zoo["base"]).values())
    assert base["measures"]["forgetting"] == 0.0
    assert base["sketch"] == [0.0] * WIDTH
    assert base["measures"]["latency"] > 0
    steps = base["measures"]["latency"] / LATENCY_STEP
    assert steps == pytest.approx(round(steps))
    assert one["measures"]["forgetting"] != 0.0
    assert one["sketch"] != base["sketch"]
    assert (one["sketch"], one["measures"]) == (again["sketch"], again["measures"])


def test_what_is_not_asked_for_is_not_measured(desk_of: Make, task: JsonObject) -> None:
    assert screen(spec_of(task, CHANGE), desk_of()).values.keys() == {
        "fitness", "incumbent_fitness", "fitness_scores", "race", "comparison"}


def test_items_that_all_candidates_meet_do_not_decide_about_a_guard(
    desk_of: Make, task: JsonObject, tmp_path: Path
) -> None:
    guards = guards_of(task, tmp_path) | {"count": 400}
    spec = spec_of(task, CHANGE, guards=guards, base="base", measures=["forgetting"])
    desk = with_pools(desk_of(), tmp_path, [task, *guards["tasks"]])
    bed = Bed.of(spec, desk)
    assert len(bed.guards()[0].items) == 100                # half as many until the file has enough
    met = {item.id for drawn in bed.guards() for item in drawn.items}
    values = screen(spec, desk).values
    left = [sum(item.id not in met for item in drawn.items) for drawn in bed.guards(4)]
    assert 0 < max(left) < 100
    assert all(values["guards"][name]["n"] <= most for name, most in zip(("one", "two"), left, strict=True))


def test_what_a_job_does_not_name_leaves_the_cache(desk_of: Make, task: JsonObject) -> None:
    cache: dict[str, Any] = {}
    screen(spec_of(task, CHANGE), desk_of(cache))
    assert set(cache["screen"].tensors) == {"base", "one", "two"}
    change = Definition(Operator.LINEAR, "base", ("one",)).change([1.0])
    narrow = JobSpec("screen", {"model:base": "base", "model:one": "one"}, spec_of(task, change).params)
    screen(narrow, desk_of(cache))
    assert set(cache["screen"].tensors) == {"base", "one"}


def test_the_control_tries_as_many_candidates_and_repeats_itself(desk_of: Make, task: JsonObject) -> None:
    params = {"settings": {"coarse_proposals": 4, "fitness_items": 32, "fresh_items": 64, "groups": 2}, "base": "base",
              "parents": ["one", "two"], "incumbent": "base", "tasks": [task], "count": 9, "final_seed": 3, "batch": 32}
    spec = JobSpec("random_search", {f"model:{name}": name for name in ("base", "one", "two")}, params)
    first, second = random_search(spec, desk_of()).values, random_search(spec, desk_of()).values
    assert first == second
    assert first["candidates"] == len(first["advantages"]) == 9
    assert first["change"]["kind"] == "merge"
    assert "search" not in first["change"]
    assert 0.0 <= first["fresh_fitness"] <= 1.0
