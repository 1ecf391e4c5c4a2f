"""The tuner's study: its arms keep to their tokens and restart or never repeat a step; its page says what was found."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from state.jobs import JobResult, JobSpec
from state.records import Cost, digest_of
from studies.tuner import ARMS, OURS, RANDOM, RESTART, SOURCES, STEPS, UNWEIGHED, Course, Field, Moment
from studies.tuner_page import page

ROW = 12
PAYS = {"language": 0.05, "maths": 0.0, "spoiled": -0.05}
FIELD = Field(3, "base", dict.fromkeys(SOURCES, "d"), "seal", ())


@dataclass
class MakeBelieve:
    """A workshop in which a model is as good as the steps at a good rate on good data that it has behind it."""

    skill: dict[str, float] = field(default_factory=lambda: {"base": 0.2})
    trained: list[JobSpec] = field(default_factory=list)

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        if spec.kind == "compare":
            gap = self.skill[spec.inputs["model:new"]] - self.skill[spec.inputs["model:old"]]
            return JobResult({"pooled": {"mean": gap, "n": 999, "p_value": 0.01}}, {}, Cost())
        if spec.kind == "weigh":
            assert spec.params["steps"] * len(SOURCES) * 32 * ROW <= spec.params["max_tokens"]
            each = {"error": 0.001, "rows": 10, "tokens": 10 * ROW}
            weighed = {name: {"gain": gain, **each} for name, gain in PAYS.items()}
            return JobResult({"weighed": weighed}, {}, Cost(tokens=len(weighed) * 10 * ROW))
        recipe, first = spec.params["recipe"], spec.params["from_step"]
        cost = recipe["batch"] * ROW
        steps = min(spec.params["to_step"] - first, spec.params["max_tokens"] // cost)
        if not steps:
            return JobResult({"steps": 0, "stopped": "no tokens"}, {}, Cost())
        self.trained.append(spec)
        far = abs(math.log(recipe["learning_rate"] / 3e-3))
        spoiled = recipe["mixture"]["spoiled"] / sum(recipe["mixture"].values())
        made, before = digest_of(spec.to_json()), self.skill[spec.inputs["model"]]
        self.skill[made] = before + steps / STEPS * (1.0 - before) * max(-0.5, 1.0 - far / 3.0 - 2.0 * spoiled)
        values = {"steps": steps, "tokens": steps * cost, "stopped": None, "sources": {}}
        outputs = {"model": made, "checkpoint": digest_of([made])}
        return JobResult(values, outputs, Cost(tokens=steps * cost))


@pytest.fixture(scope="module")
def runs() -> dict[str, tuple[MakeBelieve, list[Moment]]]:
    found = {}
    for name, arm in ARMS.items():
        workshop: Any = MakeBelieve()
        found[name] = workshop, arm(FIELD, workshop, 8 * STEPS * 32 * ROW)
    return found


def test_every_arm_uses_the_tokens_it_may_have_and_no_more(runs: Any) -> None:
    for _, moments in runs.values():
        used = [moment.tokens for moment in moments]
        assert used == sorted(used)
        assert 0.97 * 8 * STEPS * 32 * ROW < used[-1] <= 8 * STEPS * 32 * ROW
        assert moments[0] == Moment(0, "base", 0)
        assert moments[-1].trials >= 8
        assert moments[-1].model == moments[-2].model


def test_only_the_loop_goes_on_from_checkpoints_and_only_it_never_repeats_a_step(runs: Any) -> None:
    for name in (RESTART, RANDOM):
        assert {spec.params["from_step"] for spec in runs[name][0].trained} == {0}
        assert all("checkpoint" not in spec.inputs for spec in runs[name][0].trained)
    assert {spec.params["to_step"] for spec in runs[RANDOM][0].trained} == {STEPS}
    assert {spec.params["to_step"] for spec in runs[RESTART][0].trained} == {STEPS // 9, STEPS // 3, STEPS}
    walked: dict[tuple[str, int], set[str]] = defaultdict(set)
    for spec in runs[OURS][0].trained:
        for step in range(spec.params["from_step"], spec.params["to_step"]):
            key = (digest_of(spec.params["recipe"]), step)
            assert spec.digest not in walked[key]
            assert not walked[key]
            walked[key].add(spec.digest)


def test_all_arms_begin_with_the_same_recipe_and_only_where_sources_are_weighed_not_on_even_shares(runs: Any) -> None:
    first = {name: workshop.trained[0].params["recipe"] for name, (workshop, _) in runs.items()}
    even = dict.fromkeys(SOURCES, 1 / 3)
    assert all({**recipe, "mixture": even} == {**first[RANDOM], "mixture": even} for recipe in first.values())
    assert all(first[name]["mixture"] == even for name in (RANDOM, RESTART, UNWEIGHED))
    assert first[OURS]["mixture"]["language"] > 0.5 > 0.1 > first[OURS]["mixture"]["spoiled"]


def test_the_page_says_met_only_where_ours_always_came_there_with_half_the_tokens() -> None:
    slow = Course([(0, 0, 0.1), (200_000, 7, 0.6), (252_000, 9, 0.6)], 60.0)
    fast = Course([(0, 0, 0.1), (80_000, 20, 0.61), (252_000, 40, 0.95)], 60.0)
    never = Course([(0, 0, 0.1), (252_000, 40, 0.59)], 60.0)
    assert (fast.tokens_to(0.6), never.tokens_to(0.6), fast.final) == (80_000, None, 0.95)
    arms = dict.fromkeys(ARMS, slow)
    for ours, holds in ((fast, True), (replace(fast, points=slow.points), False)):
        text, met = page({seed: {**arms, OURS: ours} for seed in range(3)}, 3, 252_000)
        assert met is holds
        assert ("**Met**" in text) is holds
    assert "| 200 / 200 |" in text
    equal, cap = "1.00 (1.00 to 1.00)", f"{200 / 252:.2f} ({200 / 252:.2f} to {200 / 252:.2f})"
    text, met = page({seed: {**arms, RANDOM: never, OURS: slow} for seed in range(3)}, 3, 252_000)
    assert f"| {RANDOM} | {' | '.join([cap] * 4 + [equal] * 3)} |" in text
    text, met = page({0: {**arms, OURS: fast}, 1: {**arms, OURS: never}}, 2, 252_000)
    assert not met
    assert "not every seed came there" in " ".join(text.split())
    assert "| > 252 / 200 |" in text
    stuck = Course([(0, 0, 0.1), (252_000, 9, 0.1)], 60.0)
    text, met = page({seed: {**arms, OURS: fast, RANDOM: stuck} for seed in range(2)}, 2, 252_000)
    assert met
    assert "| 80 / 252 |" in text
    assert "reaches beyond" not in " ".join(text.split())
    lucky = replace(slow, points=[(0, 0, 0.1), (90_000, 2, 0.6), (252_000, 9, 0.6)])
    rarely = {seed: {**arms, OURS: fast, RANDOM: lucky if seed == 2 else slow} for seed in range(3)}
    text, met = page({**rarely, 1: {**arms, OURS: replace(fast, points=[(0, 0, 0.1), (10_000, 2, 0.61)])}}, 3, 252_000)
    assert met
    assert "**Met**" in text
    assert "by the mean over seeds, the interval reaches beyond it" in " ".join(text.split())
