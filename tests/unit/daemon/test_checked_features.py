"""`kaizend check` tries the reward features of other packages: one that ends the process is a problem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.checkup import run_checkup
from daemon.starting_point import write_starting_point
from loops.reward import catalogue

NAMES = ("fine", "leaves", "wild")
CODE = """\
import sys
from loops.reward.features import Feature, FeatureClass
fine = Feature("fine", FeatureClass.ONE, lambda *given: (print("tried"), 0.5)[1])
leaves = Feature("leaves", FeatureClass.ONE, lambda *given: sys.exit(0))
wild = Feature("wild", FeatureClass.ONE, lambda *given: 7)
"""


def test_a_feature_is_fit_only_where_trying_it_out_came_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "package" / "manners-1.2.dist-info"
    info.mkdir(parents=True)
    (info.parent / "manners.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: manners\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[kaizend.features]\n" + "".join(f"{name} = manners:{name}\n" for name in NAMES))
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.setenv("PYTHONPATH", str(info.parent))
    catalogue._registered.cache_clear()
    folder = tmp_path / "folder"
    write_starting_point(folder)
    named = f"[reward]\nfeatures = {json.dumps(NAMES)}\n"
    (folder / "bounds.toml").write_text(named)
    config = (folder / "kaizend.toml").read_text()
    (folder / "kaizend.toml").write_text(config.replace("[reward]\n", named))
    run_checkup(folder / "kaizend.toml", as_json=True)
    told = json.loads(capsys.readouterr().out)["findings"]
    catalogue._registered.cache_clear()
    assert [(finding["ok"], finding["text"]) for finding in told if finding["what"] == "feature"] == [
        (True, "fine of manners 1.2"),
        (False, "leaves of manners 1.2: it ended the process with 0"),
        (False, "wild of manners 1.2: ValueError: feature wild gave 7, which is no number from 0 to 1"),
    ]
