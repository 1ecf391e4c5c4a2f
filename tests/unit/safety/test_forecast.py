"""How large a path will be is known from headers, and refused before anything is built or scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from court import Court
from tiny import tiny_model

from daemon.genesis import Beginnings
from daemon.wiring import foresight
from loops.architecture.loop import ArchitectureLoop
from loops.architecture.settings import ArchitectureSettings, Space
from loops.cycle import House, run_cycle
from loops.work.build import build
from safety.bounds import Bounds
from safety.headers import facts_of
from safety.layers import depth_of, forecast, sizes_of
from state.jobs import Desk, JobSpec
from state.records import Budget, Channel, Entry, Event, JsonObject, Verdict

WORDS = ["one", "two"]


def path(*layers: tuple[int, int]) -> JsonObject:
    return {"kind": "path", "parents": ["a", "b"], "layers": [list(layer) for layer in layers],
            "scales": [1.0] * len(layers), "places": list(range(len(layers)))}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny_model(folder / name, WORDS, seed=seed, layers=2 + seed) for seed, name in enumerate("ab")}


@pytest.mark.parametrize("change", [path((0, 0)), path((0, 0), (1, 2), (1, 2), (0, 1)), path((1, 0), (1, 1), (1, 2))])
def test_what_is_forecast_of_a_path_is_what_headers_say_of_the_built_one(
    change: JsonObject, models: dict[str, Path], tmp_path: Path
) -> None:
    found = forecast(change, lambda digest: sizes_of(models[digest]))
    desk = Desk(tmp_path, {f"model:{name}": folder for name, folder in models.items()})
    facts = facts_of(build(JobSpec("build", {}, {"change": change}), desk).outputs["model"])
    assert found["parameters"] == facts["parameters"]
    assert 0 <= (facts["file_gib"] - found["file_gib"]) * 2**30 < 10_000              # but for the file's own header


def test_nothing_is_forecast_of_other_changes_or_of_layers_that_are_not_there(models: dict[str, Path]) -> None:
    for change in ({"kind": "keep"}, {"recipe": {}}, {"kind": "merge", "parents": ["a"]}, path((0, 7))):
        assert forecast(change, lambda digest: sizes_of(models[digest])) == {}


@pytest.mark.parametrize(("limit", "bound"), [
    ({"max_parameters": 1}, "model.max_parameters"), ({"max_file_gib": 1e-9}, "model.max_file_gib"),
    ({"max_layers": 1}, "model.max_layers"),
])
def test_a_path_that_is_too_large_is_refused_before_any_job_runs(
    limit: dict[str, Any], bound: str, models: dict[str, Path], tmp_path: Path
) -> None:
    court = Court(tmp_path, {})
    start = court.registry.add_copy(models["a"], "model")
    court.ledger.append(Entry(Event.GENESIS, "a start", result=start), move=dict.fromkeys(Channel, start))
    bounds, begun = replace(Bounds(), model=replace(Bounds().model, **limit)), Beginnings(
        start, start, (start,), {}, (), "", "", "")
    house = House(court.ledger, court.runner, lambda: bounds, "code", 7, foresight(court.registry, begun))
    inner: Any = None
    loop = ArchitectureLoop(ArchitectureSettings(space=Space.DATA_FLOW, path_flips=0.5), [{"name": "t"}], inner, start,
                            (start,), depth=lambda digest: depth_of(court.registry.path(digest)))
    outcome = run_cycle(house, loop, None, 0, start, start, Budget(1e6, 10**9, 100))
    assert outcome.verdict is Verdict.REFUSED
    assert outcome.reason.startswith(f"{bound}: ")
    assert court.runner.ran == []
    assert loop.propose(court.ledger.loop_state(loop.name) or {}, start, start, 1).change["kind"] == "path"


def test_what_is_at_the_limit_passes_and_one_parameter_more_does_not(models: dict[str, Path]) -> None:
    bounds = replace(Bounds(), warn={"model.max_parameters": 10.0})
    found = forecast(path((0, 0)), lambda digest: sizes_of(models[digest]))
    assert bounds.foresee(found) is None
    assert bounds.foresee({}) is None
    tight = replace(Bounds(), model=replace(Bounds().model, max_parameters=found["parameters"]))
    assert tight.foresee(found) is None
    refusal = tight.foresee({"parameters": found["parameters"] + 1})
    assert refusal is not None and str(refusal).startswith("model.max_parameters: ")
    assert bounds.warnings({"model.max_parameters": found["parameters"]})


def test_a_model_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    court = Court(tmp_path, {})
    assert foresight(court.registry, Beginnings("", "", (), {}, (), "", "", ""))(path((0, 0))) == {}
