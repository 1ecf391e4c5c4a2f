"""`kaizend check` tries every level of difficulty: what cannot be asked is a line of its own and exit 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.checkup import run_checkup
from daemon.starting_point import write_starting_point

LEVELS = "[reward]\nlevels = {{ sums = [{}] }}\n"


def levels_found(folder: Path, levels: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What `check` says about levels; the models of the starting point are missing, so it never says that all is well.
    """
    write_starting_point(folder)
    text = (folder / "kaizend.toml").read_text()
    (folder / "kaizend.toml").write_text(text.replace("[reward]\n", LEVELS.format(levels)))
    assert run_checkup(folder / "kaizend.toml", as_json=True) == 2
    told = json.loads(capsys.readouterr().out)["findings"]
    return [finding for finding in told if finding["what"] == "level"]


def test_levels_that_can_be_asked_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = levels_found(tmp_path, "{ max_digits = 1 }, { max_digits = 2 }", capsys)
    assert [(finding["ok"], finding["text"]) for finding in found] == [
        (True, "sums, level 1 of 3: can be asked"), (True, "sums, level 2 of 3: can be asked"),
    ]


@pytest.mark.parametrize(("level", "said"), [
    ("{ max_digit = 1 }", "refuses its config"), ("{ max_digits = 0 }", "refuses its config"),
    ('{ max_digits = "two" }', "refuses its config"), ("{ seed = 3 }", "seed and size are not settings"),
])
def test_what_the_generator_refuses_is_one_line(
    tmp_path: Path, level: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, right = levels_found(tmp_path, f"{level}, {{ max_digits = 2 }}", capsys)
    assert (wrong["ok"], right["ok"]) == (False, True)
    assert wrong["text"].startswith("sums, level 1 of 3: ")
    assert said in wrong["text"]
    assert len(wrong["text"].splitlines()) == 1
