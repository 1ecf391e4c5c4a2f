"""Whatever stands in kaizend.toml and bounds.toml: it is accepted, or refused in one line that names file and key.

Never a traceback, never an effect. `make soak` runs the full ten thousand.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import miniature
import pytest
from hypothesis import HealthCheck, given, settings
from mutations import Spoiled, assert_one_line, no_longer_than, snapshot, spoiled_files

from daemon.checkup import run_checkup
from daemon.genesis import refuse_unusable
from daemon.places import read_places
from daemon.settings import load_settings
from safety.bounds import DEFAULT_TOML, Bounds, load_bounds, loosened
from state.errors import UserError

LIMIT_SECONDS = 20.0
CONFIG = miniature.CONFIG + '\n[[tasks]]\nname = "told"\nrole = "guard"\nguard_items = 300\n' \
    'source = { kind = "jsonl", path = "told.jsonl" }\n'

Judge = Callable[[Path], str]


def write_small_model(folder: Path) -> None:
    """A model folder as small as one can be, for where nobody loads it."""
    folder.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A kaizend folder that passes `check`, with a pipe and a circle of links in it for paths to lead to."""
    folder = tmp_path / "home"
    for name in ("base", "expert-maths", "expert-language"):
        write_small_model(folder / "models" / name)
    for name in ("maths", "language"):
        file = folder / "models" / "data" / f"expert_{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text('{"prompt": "a", "answer": "b"}\n')
    (folder / "told.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "kaizend.toml").write_text(CONFIG)
    (folder / "bounds.toml").write_text(miniature.BOUNDS)
    return folder


def checked(config: Path) -> str:
    """One verdict on a folder: what reads the files first, then `check`, then what `run` refuses before any effect."""
    try:
        settings_found = load_settings(config)
        places = read_places(config)
        bounds = load_bounds(places.bounds)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as words:
            code = run_checkup(config, as_json=True)
        report = json.loads(out.getvalue())
        assert (code == 0) == report["ready"]
        assert len(words.getvalue().splitlines()) == len(report["findings"])
        for finding in report["findings"]:
            assert_one_line(finding["text"])
        refuse_unusable(settings_found, config.parent, bounds)
    except UserError as error:
        assert_one_line(str(error))
        return str(error)
    return ""


def bounded(file: Path) -> str:
    try:
        bounds = load_bounds(file)
    except UserError as error:
        assert_one_line(str(error))
        return str(error)
    json.dumps(bounds.to_json(), allow_nan=False)
    assert Bounds.from_json(json.loads(json.dumps(bounds.to_json()))) == bounds
    loosened(Bounds(), bounds)
    return ""


def spoil_often(folder: Path, name: str, text: str, judge: Judge, count: int) -> Counter[str]:
    """Judge `count` spoiled files in the place of the sound one; nothing else in the folder may change."""
    seen: Counter[str] = Counter()
    file = folder / name

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoiled_files(text))
    def each(spoiled: Spoiled) -> None:
        file.write_bytes(spoiled.content)
        before = snapshot(folder)
        with no_longer_than(LIMIT_SECONDS):
            said = judge(file)
        assert snapshot(folder) == before, spoiled.how
        seen["refused" if said else "accepted"] += 1
        if said and f"{file}: " in said and spoiled.keys and "not valid TOML" not in said:
            seen["refused by name"] += 1
            assert any(part in said for part in words_for(spoiled.keys)), (spoiled.how, said)

    each()
    return seen


def words_for(keys: tuple[str, ...]) -> list[str]:
    """Each key as a complaint may show it: plainly, as Python writes it, or with its control characters visible."""
    plain = [form for key in keys for form in (key, repr(key), repr(key)[1:-1], " ".join(key.split()))]
    return [form for form in plain if form] + (["''"] if "" in keys else []) + ["unknown key"] * ("" in keys)


def report(seen: Counter[str], record_property: Callable[[str, object], None], at_least: int) -> None:
    for what, number in sorted(seen.items()):
        record_property(what, number)
    assert seen["accepted"] + seen["refused"] >= at_least
    assert seen["refused"] > 0.3 * at_least
    assert seen["accepted"] > 0.05 * at_least


def test_the_sound_folder_is_ready(home: Path) -> None:
    """Or every refusal below would be for another reason than the one that was made."""
    assert checked(home / "kaizend.toml") == ""
    assert bounded(home / "bounds.toml") == ""


def test_any_configuration_is_accepted_or_refused_in_one_line_without_effect(
    home: Path, record_property: Callable[[str, object], None]
) -> None:
    report(spoil_often(home, "kaizend.toml", CONFIG, checked, 150), record_property, 150)


def test_any_bounds_are_accepted_or_refused_in_one_line_without_effect(
    home: Path, record_property: Callable[[str, object], None]
) -> None:
    report(spoil_often(home, "bounds.toml", DEFAULT_TOML, bounded, 150), record_property, 150)


@pytest.mark.long
def test_seven_thousand_configurations(home: Path, record_property: Callable[[str, object], None]) -> None:
    report(spoil_often(home, "kaizend.toml", CONFIG, checked, 7_000), record_property, 7_000)


@pytest.mark.long
def test_three_thousand_bounds_files(home: Path, record_property: Callable[[str, object], None]) -> None:
    report(spoil_often(home, "bounds.toml", DEFAULT_TOML, bounded, 3_000), record_property, 3_000)
