"""kaizend.toml as `kaizend init` writes it, and merges that its parents do not fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.checkup import _features, _tasks
from daemon.settings import load_settings
from daemon.starting_point import CONFIG_TOML
from loops.pipeline.recipe import Loss, Stage
from loops.pipeline.space import Choice
from loops.reward.loop import RewardSettings
from safety.bounds import Bounds
from safety.families import GuardBounds, RewardBounds
from safety.operators import Operator
from safety.yardstick.items import TaskSpec
from state.errors import UserError


def config(folder: Path, operators: list[str], parents: int) -> Path:
    path, models = folder / "kaizend.toml", [f"models/{place}" for place in range(parents)]
    text = CONFIG_TOML.replace('operators = ["task_arithmetic"]', f"operators = {operators!r}")
    path.write_text(text.replace('parents = ["models/expert-a", "models/expert-b"]', f"parents = {models!r}"))
    return path


@pytest.mark.parametrize("parents", range(1, 9))
def test_every_operator_may_be_searched_over_as_many_parents_as_it_joins(tmp_path: Path, parents: int) -> None:
    fitting = [str(operator) for operator in Operator if operator is not Operator.SLERP or parents == 2]
    assert load_settings(config(tmp_path, fitting, parents)).architecture.operators == tuple(fitting)


@pytest.mark.parametrize(("operators", "parents", "said"), [
    (["task_arithmetic", "slerp"], 3, "architecture.operators: slerp joins exactly 2 parents, not 3 as in models"),
    (["linear"], 9, "models.parents: "),
    (["model_stock"], 2, "architecture: .*one with genes to search over beside model_stock"),
    (["magic"], 2, "operators must be some of linear, task_arithmetic"),
])
def test_what_cannot_be_merged_is_one_line_that_names_the_key(
    tmp_path: Path, operators: list[str], parents: int, said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_settings(config(tmp_path, operators, parents))
    assert "\n" not in str(error.value)


def test_the_check_says_where_the_bounds_do_not_allow_the_learned_feature() -> None:
    asked = SimpleNamespace(reward=RewardSettings(learned=True))
    said = "learned: reward.features in bounds.toml does not allow it"
    assert [found[1:] for found in _features(asked, Bounds())] == [(False, said)]
    allowing = Bounds(reward=RewardBounds(features=("places", "learned")))
    assert list(_features(asked, allowing)) == []
    assert list(_features(SimpleNamespace(reward=RewardSettings()), Bounds())) == []


def test_the_check_says_which_margin_has_no_guard() -> None:
    task = TaskSpec("maths1", "guard", {"kind": "bilingual", "family": "maths1"}, guard_items=300)
    bounds = Bounds(guards=GuardBounds(margins={"maths1": 0.2, "mats1": 0.05}))
    said = "mats1: guards.margins in bounds.toml names it, and there is no guard task of this name"
    assert [found[1:] for found in _tasks((task,), bounds) if not found[1]] == [(False, said)]


def test_preferences_have_a_recipe_and_ranges_and_a_source_that_no_data_may_be_called_like(tmp_path: Path) -> None:
    path = config(tmp_path, ["linear"], 2)
    recipe = 'stage = "dpo"\nlearning_rate = 1e-4\nbatch = 8\nsteps = 30\nbeta = 0.2\nloss = "ipo"\n'
    text = path.read_text().replace('stages = ["sft", "grpo"]', 'stages = ["sft", "dpo", "grpo"]')
    path.write_text(f'{text}\n[pipeline.dpo]\n{recipe}\n[pipeline.ranges]\nlosses = ["ipo"]\n')
    settings = load_settings(path).pipeline
    assert (settings.dpo.loss, settings.dpo.beta, settings.stages) == (Loss.IPO, 0.2, tuple(Stage))
    assert settings.space.genes(Stage.DPO, ())["dpo.loss"] == Choice(("ipo",))
    path.write_text(path.read_text().replace("[data]\n", '[data]\nown = "data/own.jsonl"\n'))
    with pytest.raises(UserError, match=r"data\.own: this name is kept for the pairs"):
        load_settings(path)
    path.write_text(text.replace("[reward]", f"[pipeline.dpo]\n{recipe}[reward]").replace("beta = 0.2", "beta = 0"))
    with pytest.raises(UserError, match="beta must be above 0 for dpo") as error:
        load_settings(path)
    assert "\n" not in str(error.value)
