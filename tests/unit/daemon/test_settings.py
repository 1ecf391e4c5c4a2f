"""kaizend.toml as `kaizend init` writes it, and merges that its parents do not fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.checkup import _features
from daemon.settings import load_settings
from daemon.starting_point import CONFIG_TOML
from loops.reward.loop import RewardSettings
from safety.bounds import Bounds
from safety.families import RewardBounds
from safety.operators import Operator
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
