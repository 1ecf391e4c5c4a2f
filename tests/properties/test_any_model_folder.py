"""Whatever lies in a model folder: preflight looks at it in no time, changes nothing and says what is wrong in a line.

What it lets through, the safetensors library reads alike: two readers that differ could be made to see two models.
`make soak` runs the full thousand.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from mutations import assert_one_line, no_longer_than, snapshot
from safetensors import safe_open
from spoiled_models import BROKEN, HARMLESS, Spoil, chosen
from tiny import tiny_model

from safety.bounds import Bounds
from safety.headers import tensor_headers, weight_files
from safety.licences import obligations_of
from safety.preflight import Problem, preflight

LIMIT_SECONDS = 15.0
WORDS = ["one", "two", "three"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("models") / "sound", WORDS, width=8)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    return folder


def looked_at(sound: Path, folder: Path) -> list[Problem]:
    """What preflight says of a folder beside a sound one, as `check` and `run` ask, after looking for side effects."""
    before = snapshot(folder)
    with no_longer_than(LIMIT_SECONDS):
        problems = preflight([sound, folder], Bounds())
        obligations_of([folder])
    assert snapshot(folder) == before
    for problem in problems:
        assert_one_line(str(problem))
        assert str(problem).startswith(str(folder)), str(problem)
    return problems


def assert_read_alike(folder: Path) -> None:
    """What preflight saw is what the library sees."""
    seen = tensor_headers(folder)
    names = set()
    for file in weight_files(folder):
        with safe_open(file, "numpy") as weights:
            for name in weights.keys():                                          # noqa: SIM118  it is no mapping
                assert tuple(weights.get_slice(name).get_shape()) == seen[name].shape
                names.add(name)
    assert names == seen.keys()


def spoiled(sound: Path, folder: Path, spoil: Spoil) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    spoil(folder)
    return folder


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_what_is_broken_is_refused(sound: Path, tmp_path: Path, how: str) -> None:
    assert looked_at(sound, spoiled(sound, tmp_path / "model", BROKEN[how]))


@pytest.mark.parametrize("how", sorted(HARMLESS))
def test_what_harms_nobody_is_not(sound: Path, tmp_path: Path, how: str) -> None:
    folder = spoiled(sound, tmp_path / "model", HARMLESS[how])
    assert looked_at(sound, folder) == []
    assert_read_alike(folder)


def spoil_often(sound: Path, place: Path, count: int, record_property: Callable[[str, object], None]) -> None:
    seen: Counter[str] = Counter()

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    )
    @given(chosen())
    def each(choice: tuple[str, Spoil, bool]) -> None:
        how, spoil, must_be_refused = choice
        folder = spoiled(sound, place / "model", spoil)
        problems = looked_at(sound, folder)
        seen["refused" if problems else "accepted"] += 1
        assert problems or not must_be_refused, how
        if not problems:
            assert_read_alike(folder)

    each()
    for what, number in sorted(seen.items()):
        record_property(what, number)
    assert seen["refused"] + seen["accepted"] >= count
    assert seen["refused"] > 0.4 * count
    assert seen["accepted"] > 0.02 * count


def test_any_model_folder_is_accepted_or_refused_in_one_line_without_effect(
    sound: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    spoil_often(sound, tmp_path, 150, record_property)


@pytest.mark.long
def test_a_thousand_model_folders(
    sound: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    spoil_often(sound, tmp_path, 1_000, record_property)
