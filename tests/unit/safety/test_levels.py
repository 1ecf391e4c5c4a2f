"""Warning levels: what they read, when they speak, and that they decide nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
from court import canned_court

from safety.bounds import Bounds, BoundsError, load_bounds
from safety.release import nominate
from state.records import Verdict


def read(tmp_path: Path, text: str) -> Bounds:
    (tmp_path / "bounds.toml").write_text(text)
    return load_bounds(tmp_path / "bounds.toml")


def test_levels_are_written_by_the_names_of_the_bounds_in_either_way_of_toml(tmp_path: Path) -> None:
    dotted = read(tmp_path, "[warn]\ndrift.stable.kl_mean = 2\nrate.dwell_seconds = 120.0\n")
    tables = read(tmp_path, "[warn.drift.stable]\nkl_mean = 2.0\n[warn.rate]\ndwell_seconds = 120\n")
    assert dotted.warn == tables.warn == {"drift.stable.kl_mean": 2.0, "rate.dwell_seconds": 120.0}


@pytest.mark.parametrize(("text", "words"), [
    ("[warn]\ndrift.stable.kl_meen = 2.0", ["'drift.stable.kl_meen'", "[warn]", "'drift.stable.kl_mean'"]),
    ("[warn]\ndrift = 2.0", ["'drift'", "[warn]"]),
    ("[warn]\nmodel.dtypes = 2.0", ["'model.dtypes'", "number"]),
    ("[warn]\nmodel.same_schema = 1", ["'model.same_schema'", "number"]),
    ("[warn]\nrate.dwell_seconds = \"long\"", ["'rate.dwell_seconds'", "number"]),
    ("[warn]\nrate.dwell_seconds = nan", ["'rate.dwell_seconds'", "number"]),
    ("[warn]\ngate.alpha = 0.06", ["'gate.alpha'", "past the limit 0.05"]),
    ("[warn]\nresources.min_disk_free_gib = 4.0", ["'resources.min_disk_free_gib'", "past the limit 5"]),
    ("warn = 3", ["[warn]", "section"]),
    ("[warn]\nrate.dwell_seconds = 1" + 400 * "0", ["'rate.dwell_seconds'", "number"]),
    ("[warn]\nrate.dwell_seconds = -1" + 400 * "0", ["'rate.dwell_seconds'", "number"]),
    ("[rate]\nreleases_per_day = 0x1" + 5000 * "0", ["a number of thousands of digits"]),
    ("[gate]\nalpha = [{ a = 0x1" + 5000 * "0" + " }]", ["a number of thousands of digits"]),
])
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(BoundsError) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_level_speaks_past_itself_on_the_side_on_which_its_bound_loosens() -> None:
    bounds = replace(Bounds(), warn={"drift.stable.kl_mean": 2.0, "resources.min_disk_free_gib": 20.0})
    assert bounds.warnings({}) == []
    assert bounds.warnings({"drift.stable.kl_mean": 2.0, "resources.min_disk_free_gib": 20.0}) == []
    assert bounds.warnings({"drift.stable.kl_mean": 2.5, "resources.min_disk_free_gib": 19.0}) == [
        "drift.stable.kl_mean: 2.5 is past the warning level 2 (limit 4)",
        "resources.min_disk_free_gib: 19 is past the warning level 20 (limit 5)",
    ]


def test_a_release_past_a_level_is_released_and_says_so(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state", kl=2.5, calibration=0.3)
    court.bounds = replace(Bounds(), warn={"drift.stable.kl_mean": 2.0, "behaviour.calibration": 0.4})
    court.move_working(court.text_model("second"))
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.PROMOTED
    assert row.evidence["warnings"] == ["drift.stable.kl_mean: 2.5 is past the warning level 2 (limit 4)"]


def test_a_release_refused_by_a_limit_names_what_is_past_its_level_too(tmp_path: Path) -> None:
    court = canned_court(tmp_path / "state", kl=4.5)
    court.bounds = replace(Bounds(), warn={"drift.reference.kl_mean": 2.0})
    court.move_working(court.text_model("second"))
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.REFUSED
    assert row.evidence["warnings"] == ["drift.reference.kl_mean: 4.5 is past the warning level 2 (limit 4)"]
