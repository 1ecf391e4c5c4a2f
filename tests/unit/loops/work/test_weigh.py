"""The job "weigh" tells what a source does to the target, and neither more tokens nor other bits than it should."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from coaching import TASK, make_classroom, recipe

from loops.work import weigh as job
from loops.work.weigh import weigh
from safety.yardstick import bilingual
from state.jobs import Desk, JobSpec, Produced


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_classroom(tmp_path_factory.mktemp("classroom"))
    asked = bilingual.items("maths2", "search", 400, 4)
    wrong = [(prompt, answer) for (prompt, _), (_, answer) in pairwise(asked)]
    for name, rows in (("right", asked), ("wrong", wrong)):
        lines = [json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def run(
    classroom: Path, folder: Path, max_tokens: int | None = None, kind: str = "none", draws: int = 1
) -> Produced:
    folder.mkdir(exist_ok=True)
    asked = recipe("sft", batch=32, adapter={"kind": kind, "rank": 4, "alpha": 8.0})
    params = {"recipe": asked, "tasks": [TASK], "steps": 6, "draws": draws, "items": 128, "max_tokens": max_tokens}
    data = {f"data:{name}": classroom / f"{name}.jsonl" for name in ("right", "wrong")}
    return weigh(JobSpec("weigh", {}, params, 5), Desk(folder, {"model": classroom / "model", **data}))


def test_right_answers_do_the_target_clearly_more_good_than_wrong_ones_to_the_same_questions(
    classroom: Path, tmp_path: Path
) -> None:
    made = run(classroom, tmp_path)
    right, wrong = made.values["weighed"]["right"], made.values["weighed"]["wrong"]
    assert right["error"] > 0 < wrong["error"]
    assert wrong["gain"] < right["gain"] - 2 * math.hypot(wrong["error"], right["error"])
    assert made.tokens == made.values["tokens"] == right["tokens"] + wrong["tokens"]
    assert made.outputs == {}


def test_the_same_spec_gives_the_same_values_and_the_order_of_sources_does_not_matter(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = run(classroom, tmp_path)
    assert run(classroom, tmp_path).values == once.values
    mixed, read = job.mixed, job.read_rows
    monkeypatch.setattr(job, "read_rows", lambda inputs: (rows := read(inputs)).__class__(
        rows.texts, dict(reversed(rows.sources.items()))
    ))
    assert run(classroom, tmp_path).values == once.values and job.mixed is mixed


def test_what_is_clear_is_learned_once_and_what_is_not_again_on_other_rows_whose_spread_is_in_the_error(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "CLEAR", -math.inf)
    once = run(classroom, tmp_path, draws=2)
    assert once.values["draws"] == 1
    monkeypatch.setattr(job, "CLEAR", math.inf)
    twice = run(classroom, tmp_path, draws=2)
    assert (twice.values["steps"], twice.values["draws"]) == (6, 2)
    for name, found in twice.values["weighed"].items():
        first = once.values["weighed"][name]
        second = 2 * found["gain"] - first["gain"]
        assert second != first["gain"]
        assert found["error"] > abs(second - first["gain"]) / 2
        assert (found["rows"], first["rows"]) == (2 * 6 * 32, 6 * 32)
    assert twice.tokens == sum(found["tokens"] for found in twice.values["weighed"].values()) > 1.9 * once.tokens
    assert run(classroom, tmp_path, twice.tokens - 1, draws=2).values == once.values


def test_the_best_source_is_told_apart_where_it_leads_every_other_over_the_same_items() -> None:
    items = np.random.default_rng(3).normal(size=400)
    near, far = items - 0.001 * np.sign(items), items - 1.0
    assert job._told_apart({"best": [items + 0.1], "near": [items], "far": [far]})
    assert not job._told_apart({"best": [items], "near": [near], "far": [far]})
    assert not job._told_apart({"best": [items], "as good": [items]})
    assert job._told_apart({"alone": [items]})


@pytest.mark.parametrize("part", [0.99, 0.5, 0.01])
def test_it_keeps_to_its_tokens(classroom: Path, tmp_path: Path, part: float) -> None:
    cap = int(part * run(classroom, tmp_path).tokens)
    capped = run(classroom, tmp_path, cap)
    assert capped.tokens <= cap
    assert capped.values["steps"] == (5 if part == 0.99 else 3 if part == 0.5 else 0)
    assert bool(capped.values["weighed"]) == (capped.values["steps"] > 0)


def test_half_a_batch_at_a_time_learns_the_same(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, step, seen = run(classroom, tmp_path), job._step, []

    def scarce(learner, tokens, places, micro):                                          # type: ignore[no-untyped-def]
        seen.append(micro)
        if micro > 16:
            raise torch.OutOfMemoryError("out of memory")
        step(learner, tokens, places, micro)

    monkeypatch.setattr(job, "_step", scarce)
    halved = run(classroom, tmp_path)
    assert seen[:2] == [32, 16]
    for name, found in halved.values["weighed"].items():
        assert found["gain"] == pytest.approx(whole.values["weighed"][name]["gain"], abs=2e-4)


def test_an_adapter_is_weighed_as_it_is_trained(classroom: Path, tmp_path: Path) -> None:
    weighed = run(classroom, tmp_path, kind="lora").values["weighed"]
    assert weighed["right"]["gain"] > weighed["wrong"]["gain"]
