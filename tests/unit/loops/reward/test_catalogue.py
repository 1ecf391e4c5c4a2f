"""Reward features that other packages bring: found by name, tried out before use, named in what is recorded."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from loops.reward import catalogue
from loops.reward.catalogue import feature, main, measure, source_of, sources, try_out
from loops.reward.features import FEATURES, Feature, FeatureClass, Phi
from loops.reward.loop import RewardLoop, RewardSettings
from loops.reward.shaping import bonus

COURTEOUS = '''\
from loops.reward.features import Feature, FeatureClass

def _courteous(prompt, completion, reference, siblings):
    return float("please" in completion)

courteous = Feature("courteous", FeatureClass.RIGHT, _courteous)
misnamed = Feature("other", FeatureClass.ONE, _courteous)
wild = Feature("wild", FeatureClass.ONE, lambda prompt, completion, reference, siblings: len(completion))
'''


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with an installed package that brings three features."""
    bring(tmp_path, "manners", COURTEOUS, ("courteous", "misnamed", "wild"))
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield tmp_path
    forget()


def bring(folder: Path, package: str, code: str, names: tuple[str, ...]) -> None:
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (folder / f"{package}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = [f"{name} = {package}:{name}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[kaizend.features]", *lines]) + "\n")


def forget() -> None:
    feature.cache_clear()
    catalogue._registered.cache_clear()
    sys.modules.pop("manners", None)


def made(phi: Phi) -> Feature:
    return Feature("mine", FeatureClass.ONE, phi)


def test_a_package_brings_a_feature_and_is_imported_only_where_it_is_used(packages: Path) -> None:
    assert source_of("courteous") == "manners 1.2"
    assert sources(["places", "courteous"]) == {"courteous": "manners 1.2"}
    assert "manners" not in sys.modules
    assert measure(["courteous", "varied"], "", "4, please please", None, []) == {"courteous": 1.0, "varied": 1.0}
    assert feature("courteous").klass is FeatureClass.RIGHT
    assert bonus(1, {"courteous": 1.0}, {"courteous": 1.0}) == 0.5
    assert bonus(0, {"courteous": 1.0}, {"courteous": 1.0}) == 0.0


def test_settings_take_it_by_name_and_the_candidate_says_where_it_comes_from(packages: Path) -> None:
    loop = RewardLoop(RewardSettings(features=("places", "courteous")), [], "seal", {}, {
        "recipe": {"steps": 8}, "checkpoint": None, "from_step": 0, "steps": 8, "segment": 0, "lineage": "l",
    })
    assert loop.propose(loop.start(), "m", "m", 1).change["features"] == {"courteous": "manners 1.2"}
    own = RewardLoop(RewardSettings(), [], "seal", {}, loop.assignment)
    assert "features" not in own.propose(own.start(), "m", "m", 1).change
    with pytest.raises(ValueError, match=r"unknown feature 'rude': choose from places, .*courteous, misnamed, wild"):
        RewardSettings(features=("rude",))


def test_a_name_that_two_packages_bring_is_refused_and_none_of_kaizends_own_can_be_replaced(packages: Path) -> None:
    bring(packages, "etiquette", COURTEOUS, ("courteous", "places"))
    with pytest.raises(ValueError, match=r"'courteous' is brought by more than one package"):
        source_of("courteous")
    assert feature("places") is FEATURES["places"]


def test_what_a_package_brings_must_be_a_feature_of_that_name_within_its_range(packages: Path) -> None:
    with pytest.raises(ValueError, match=r"misnamed: manners 1.2 has no Feature of that name there"):
        feature("misnamed")
    with pytest.raises(ValueError, match=r"wild gave .*, which is no number from 0 to 1"):
        main(["courteous", "wild"])


@pytest.mark.parametrize("phi", [1.5, -0.1, float("nan"), float("inf"), "1", None])
def test_a_phi_that_is_no_number_from_0_to_1_is_refused(phi: object) -> None:
    with pytest.raises(ValueError, match=r"which is no number from 0 to 1"):
        try_out(made(lambda *given: phi))                            # type: ignore[arg-type,return-value]


def test_a_feature_that_remembers_or_draws_is_refused() -> None:
    calls, chance = count(), random.Random(1)
    for phi in (lambda *given: (next(calls) % 3) / 3, lambda *given: chance.random()):
        with pytest.raises(ValueError, match=r"mine is no function of the texts"):
            try_out(made(phi))


def test_a_feature_that_takes_too_long_is_refused_and_every_own_one_is_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "SLOWEST_SECONDS", 0.005)
    with pytest.raises(ValueError, match=r"more than 0.005"):
        try_out(made(lambda *given: time.sleep(0.01) or 0.5))
    monkeypatch.undo()
    for own in FEATURES.values():
        try_out(own)
