"""The picture of a reward lineage shows what the rows of the ledger say, and bears rows that say less."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from synthetic import BUDGET, World

from daemon.plot import drawn
from daemon.reports import plot_report
from loops.pipeline.recipe import GRPO
from loops.reward.features import LEARNED
from loops.reward.loop import RewardLoop, RewardSettings
from state.errors import UserError
from state.reading import Reading
from state.records import Row

SVG = "{http://www.w3.org/2000/svg}"


def row(id: int, weights: dict[str, float], truth: float, **evidence: Any) -> Row:
    change = {"shaping": {"weights": weights, "strength": 0.4}, "lineage": "c0ffee", "from_step": 24, "steps": 4}
    arms = {name: {"truth": [truth] * 4, "proxy": [truth + 0.1] * 4, "shaping": [0.25] * 4}
            for name in (("zero", "shaped") if weights else ("zero",))}
    seen = {"arm": "zero", "success": truth, "q_after": truth, "alarms": [], "guard": None, "steps": 4, "trace": arms,
            "over_zero": {"mean": 0.01, "stderr": 0.004, "n": 64}, **evidence}
    return Row(id, "2026-01-01", "closed", id - 1, None, "reward", change, "PROMOTED", "", None, None, seen, {}, "loop",
               "", "")


ROWS = [row(2, {}, 0.004), row(4, {"places": 1.0}, 0.02), row(9, {"places": 0.5, "prefix": 0.5}, 0.05)]


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def words(text: str) -> list[str]:
    return [found.text or "" for found in parsed(text).iter(f"{SVG}text")]


def bars(text: str) -> list[float]:
    """Heights of the bars of the shapings, legends left out."""
    found = [rect.attrib for rect in parsed(text).iter(f"{SVG}rect")]
    return [float(each["height"]) for each in found if each["height"] not in ("10", "100%")]


def test_it_names_the_lineage_its_segments_and_what_they_paid_for() -> None:
    said = words(drawn(ROWS, ROWS[-1]))
    assert "lineage c0ffee: 3 segments, rows 2 to 9" in said
    assert {"2", "4", "9", "places", "prefix", "inside the segment of row 9", "kept: zero"} <= set(said)
    assert "over zero +0.0100 ± 0.0040" in said


def test_bars_are_as_high_as_strength_times_weight() -> None:
    alone, *halves = bars(drawn(ROWS, ROWS[-1]))
    assert len(halves) == 2
    assert sum(halves) == pytest.approx(alone, abs=0.2)
    assert halves[0] == pytest.approx(halves[1], abs=0.2)


def test_points_stand_higher_where_the_truth_is_higher() -> None:
    circles = [c.attrib for c in parsed(drawn(ROWS, ROWS[-1])).iter(f"{SVG}circle")]
    truth = [float(c["cy"]) for c in circles if c["fill"] == "#0072b2"][:3]
    assert truth[0] > truth[1] > truth[2]


def test_an_alarm_and_the_guard_are_named_where_they_rang() -> None:
    rang = row(11, {"varied": 1.0}, 0.01, alarms=[{"name": "cusum", "seen": "the proxy left"}], guard="q fell")
    assert "cusum, q collapsed" in words(drawn([*ROWS, rang], rang))


def test_a_feature_that_was_left_out_is_not_drawn_as_paid() -> None:
    left_out = row(11, {"places": 0.6, LEARNED: 0.4}, 0.01, learned={"left_out": "it ranks 50% of 40 fresh pairs"})
    assert LEARNED not in words(drawn([left_out], left_out))
    used = row(11, {"places": 0.6, LEARNED: 0.4}, 0.01, learned={"left_out": None})
    assert LEARNED in words(drawn([used], used))


@pytest.mark.parametrize("evidence", [{}, {"trace": None, "alarms": None}, "spoiled", {"success": float("nan")}])
def test_rows_that_say_less_are_drawn_as_far_as_they_go(evidence: Any) -> None:
    bare = Row(5, "", "closed", 4, None, "reward", {"lineage": "<&>"}, "CRASHED", "", None, None, evidence, {}, "loop",
               "", "")
    said = words(drawn([bare, *ROWS], bare))
    assert "×" in said
    assert "no trace was kept" in said
    assert "nan" not in drawn([bare, *ROWS], bare)
    assert said[0].startswith("lineage <&>")


def test_what_hangs_below_zero_stays_inside_its_panel() -> None:
    low = row(7, {"places": 1.0}, 0.0)
    low.evidence["trace"]["shaped"]["proxy"] = [-0.08, -0.02, 0.0, 0.01]
    places = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.-]+)", drawn([low], low))]
    height = float(parsed(drawn([low], low)).attrib["height"])
    assert places and all(0 <= y <= height for y in places)


def test_the_command_draws_the_lineage_of_a_cycle_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path / "var")
    loop = RewardLoop(RewardSettings(), [{"name": "t"}], "seal", {})
    for ordinal, lineage in enumerate(("one", "one", "other")):
        assignment = {"recipe": GRPO.to_json(), "checkpoint": None, "from_step": 0, "steps": 12, "segment": 0}
        world.cycle(loop.on({**assignment, "lineage": lineage}), ordinal, budget=BUDGET)
    world.close()

    class Places:
        database = tmp_path / "var" / "kaizend.db"

    monkeypatch.setattr("daemon.reports.places_of", lambda config: Places)
    with Reading(Places.database) as reading:
        closed = [each for each in reading.rows(limit=99) if each.event == "closed"]
    plot_report(None, closed[0].id, tmp_path / "one.svg", as_json=False)
    assert "2 segments of lineage one" in capsys.readouterr().out
    said = words((tmp_path / "one.svg").read_text())
    assert f"lineage one: 2 segments, rows {closed[0].id} to {closed[1].id}" in said
    plot_report(None, int(closed[2].cycle or 0), tmp_path / "other.svg", as_json=True)
    assert f'"segments": [{closed[2].id}]' in capsys.readouterr().out
    with pytest.raises(UserError, match="belongs to no reward cycle"):
        plot_report(None, 1, tmp_path / "none.svg", as_json=False)
    with pytest.raises(UserError, match="cannot be written"):
        plot_report(None, closed[0].id, tmp_path / "nowhere" / "a.svg", as_json=False)
