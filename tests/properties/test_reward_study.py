"""The studies of rewards and of exploits: the planted features are features, and the pages say what was found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loops.reward import catalogue
from loops.reward.catalogue import feature, source_of, try_out
from loops.reward.loop import RewardSettings
from studies import exploits_page, reward_page
from studies.exploits import PLANTED, Course, Look, lost, planted, rang
from studies.reward import Trace, after, samples_to
from studies.reward_page import LEVELS, WITH, WITHOUT, Arm

ITEMS = 1_200


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget()
    planted(tmp_path)
    yield
    forget()


def forget() -> None:
    feature.cache_clear()
    catalogue._registered.cache_clear()


@pytest.mark.usefixtures("package")
def test_the_exploits_are_brought_by_a_package_pay_for_what_they_say_and_stand_any_trial() -> None:
    assert RewardSettings(features=PLANTED).allowed == PLANTED
    for name in PLANTED:
        assert source_of(name) == "planted-exploits 1"
        try_out(feature(name))
    paid = [[feature(name).phi("", text, None, ()) for name in PLANTED] for text in ("9 9 " * 9, "0 1 2 3")]
    assert paid == [[1.0, 1.0], [0.5, 0.0]]


def straight(end: float) -> Trace:
    return [(0, 0.001), (1_000, end / 2), (2_000, end)]


def test_a_trace_is_read_on_the_line_between_what_was_measured() -> None:
    assert after(straight(0.4), 1_500) == pytest.approx(0.3)
    assert samples_to(straight(0.4), 0.3) == pytest.approx(1_500)
    assert samples_to(straight(0.4), 0.5) is None


@pytest.mark.parametrize(("rare", "less_rare", "word"), [
    ((0.2, 0.21), (0.1, 0.1), "Met: at"), ((0.2, 0.01), (0.1, 0.1), "Missed: at"),
    ((0.2, 0.21), (-0.1, -0.11), "Missed: no"),
])
def test_the_page_of_rewards_says_whether_each_demand_is_met(
    rare: tuple[float, float], less_rare: tuple[float, float], word: str
) -> None:
    def course(gap: float) -> dict[Arm, Trace]:
        return {arm: straight(0.3 + gap * (arm.name == "learned")) for arm in (*WITH, *WITHOUT)}

    sparse = {seed: course(gap) for seed, gap in enumerate(rare)}
    dense = {level: {seed: course(gap) for seed, gap in enumerate(less_rare)} for level in LEVELS}
    text, holds = reward_page.page(sparse, dense, [0.001, 0.0012], 2, ITEMS)
    assert holds is word.startswith("Met")
    assert f"**{word}" in text
    stands = "above" if min(less_rare) > 0 else "below"
    assert f"{stands} zero shaping at " in " ".join(text.split())
    for level, part in LEVELS.items():
        assert f"| {100 * level:g} % | {ITEMS // part:,} |" in text


def went(kaizend: float, rings: int) -> dict[str, Course]:
    looks = tuple(
        Look(steps, 64 * steps, 0.3 - 0.005 * steps, ("rank",) if steps >= rings else (), steps % 8 == 0)
        for steps in range(4, 25, 4)
    )
    still = {arm: Course(straight(0.4), (), 0, 0, ()) for arm in ("zero", "held on", "rare zero", "rare")}
    return {**still, "kaizend": Course(straight(kaizend), (), 0, 0, ()),
            "unbounded": Course([(0, 0.3), (1_000, 0.2), (2_000, 0.1)], looks, 0, 0, ())}


def test_an_alarm_counts_from_the_first_moment_at_which_the_monitor_looks() -> None:
    course = went(0.4, rings=4)["unbounded"]
    look = rang(course)
    assert look is not None
    assert (look.steps, lost(course, look)) == (8, pytest.approx(0.04))


@pytest.mark.parametrize(("kaizend", "rings", "missed"), [
    (0.4, 4, None), (0.1, 4, "above it, at both starts: **Missed** on seed 1"),
    (0.4, 24, "5 points: **Missed** on seed 1"), (0.4, 99, "5 points: **Missed** on seed 1"),
])
def test_the_page_of_exploits_says_which_demand_is_missed_on_which_seed(
    kaizend: float, rings: int, missed: str | None
) -> None:
    text, met = exploits_page.page({0: went(0.4, 4), 1: went(kaizend, rings)}, 2, 2_000)
    text = " ".join(text.split())
    assert met is (missed is None)
    assert text.count("**Missed**") == (missed is not None)
    assert missed is None or missed in text
