"""Job "serve": two models side by side, in turn, so that a busy machine decides nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from court import SERVED
from tiny import tiny_model

from safety import serving
from safety.bounds import Bounds
from safety.conditions import served
from safety.serving import MOST_ROUNDS, ROUNDS, TOKENS, answer, measured, serve, settled
from safety.yardstick.items import Item
from safety.yardstick.scoring import load_model
from state.jobs import Desk, JobSpec
from state.records import canonical

WORDS = ["one", "two", "three", "four"]
PROBE = [[f"one {word}", "two"] for word in WORDS]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    return {"old": tiny_model(folder / "old", WORDS), "new": tiny_model(folder / "new", WORDS, layers=8, width=64)}


def test_a_model_that_is_four_times_as_deep_is_slower_and_larger(models: dict[str, Path], tmp_path: Path) -> None:
    values = serve(JobSpec("serve", {}, {"probe": PROBE}), Desk(tmp_path, models)).values
    canonical(values)
    assert values.keys() == SERVED.keys()
    assert values["latency_ratio"] > 1.3
    assert values["speed_ratio"] < 0.8
    assert values["memory_ratio"] > 4
    assert served(values, Bounds()) is not None


def test_without_prompts_there_is_nothing_to_measure(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        serve(JobSpec("serve", {}, {"probe": []}), Desk(tmp_path, models))


def test_every_answer_is_as_long_as_the_others(models: dict[str, Path]) -> None:
    items = [Item.of("one", "two"), Item.of("one two three four", "two")]
    written = answer(load_model(models["old"], "cpu"), items)
    assert tuple(written.shape) == (2, 4 + TOKENS)


def test_models_take_turns_and_change_who_is_first(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[str] = []
    loaded: dict[int, str] = {}

    def load(path: Path, device: str) -> Any:
        scored = load_model(path, device)
        loaded[id(scored)] = path.name
        return scored

    def times(scored: Any, items: Any) -> tuple[float, float]:
        met.append(loaded[id(scored)])
        return 1.0, 1.0

    monkeypatch.setattr(serving, "load_model", load)
    monkeypatch.setattr(serving, "times", times)
    serve(JobSpec("serve", {}, {"probe": PROBE}), Desk(tmp_path, models))
    assert len(met) == 2 * (ROUNDS + 1)
    assert met[:4] == ["old", "new", "new", "old"]


def test_a_machine_that_is_busy_in_some_rounds_changes_nothing() -> None:
    calm = {"new": (0.011, 110.0), "old": (0.010, 100.0)}
    busy = {"new": (0.300, 110.0), "old": (0.010, 3.0)}
    values = measured([calm, busy, calm, busy, calm], {"new": 3 * 2**30, "old": 2 * 2**30})
    assert values["latency_ratio"] == pytest.approx(1.1)
    assert values["speed_ratio"] == pytest.approx(1.1)
    assert (values["memory_ratio"], values["memory_gib"]) == (1.5, 3.0)


@pytest.mark.parametrize("value", [None, float("nan"), "fast", True])
def test_what_is_no_number_breaks_its_limit(value: Any) -> None:
    refusal = served({**SERVED, "latency_ratio": value}, Bounds())
    assert refusal is not None
    assert refusal.bound == "serving.latency_ratio"


def test_rounds_go_on_until_the_best_no_longer_get_better() -> None:
    def busy(latency: float) -> serving.Round:
        return {"new": (latency, 100.0), "old": (0.010, 100.0)}

    assert not settled([busy(0.3)] * ROUNDS)
    assert settled([busy(0.3)] * (ROUNDS + 1))
    still = [busy(0.3)] * ROUNDS + [busy(0.02)]
    assert not settled(still)
    assert not settled([*still, *[busy(0.03)] * (ROUNDS - 1)])
    assert settled([*still, *[busy(0.03)] * ROUNDS])
    assert not settled([*still, *[busy(0.03)] * (ROUNDS - 1), {"new": (0.02, 120.0), "old": (0.010, 100.0)}])
    assert settled([busy(0.9 ** number) for number in range(MOST_ROUNDS)])
