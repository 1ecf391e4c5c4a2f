"""A segment measures the learned feature by the reward model that it is given, and resumes with it bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coaching import desk, hashes, make_classroom, segment_spec
from judging import reward_spec, write_pairs

from loops.reward.features import FEATURES, LEARNED
from loops.reward.shaping import Evidence
from loops.work.reinforce import segment
from loops.work.reward_model import reward_model
from state.jobs import Desk, JobSpec


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_classroom(tmp_path_factory.mktemp("classroom"))
    pairs = write_pairs(folder / "pairs.jsonl")
    made = reward_model(reward_spec(), Desk(folder / "rm", {"model": folder / "model", "pairs": pairs}))
    made.outputs["model"].rename(folder / "judge")
    return folder


def spec(weights: dict[str, float], **changes: Any) -> JobSpec:
    asked = segment_spec(0, 4, save_steps=2, **changes)
    evidence = Evidence.empty((*list(FEATURES)[:7], LEARNED)).to_json()
    params = {**asked.params, "evidence": evidence, "shaping": {"weights": weights, "strength": 0.4}}
    return replace(asked, params=params)


def test_it_enters_the_evidence_and_pays_as_any_other_feature(classroom: Path, tmp_path: Path) -> None:
    given = {"reward_model": classroom / "judge"}
    zero = segment(spec({}), desk(classroom, tmp_path / "zero", **given)).values
    place = Evidence.from_json(zero["evidence"]).features.index(LEARNED)
    assert Evidence.from_json(zero["evidence"]).sxx[place * 8 + place] > 0
    paid = segment(spec({"places": 0.5, LEARNED: 0.5}), desk(classroom, tmp_path / "paid", **given)).values
    alone = segment(spec({"places": 0.5}), desk(classroom, tmp_path / "alone", **given)).values
    assert paid["truth"][0] == alone["truth"][0] == zero["truth"][0]
    assert paid["shaping_trace"][0] != alone["shaping_trace"][0]


def test_without_a_reward_model_it_is_neutral_and_nothing_may_be_paid_for_it(classroom: Path, tmp_path: Path) -> None:
    values = segment(spec({}), desk(classroom, tmp_path / "bare")).values
    place = Evidence.from_json(values["evidence"]).features.index(LEARNED)
    assert Evidence.from_json(values["evidence"]).sxx[place * 8 + place] == 0
    with pytest.raises(ValueError, match="needs a reward model"):
        segment(spec({"places": 0.5, LEARNED: 0.5}), desk(classroom, tmp_path / "paid"))


def test_one_that_broke_off_ends_as_if_it_had_not(classroom: Path, tmp_path: Path) -> None:
    given, asked = {"reward_model": classroom / "judge"}, spec({"places": 0.5, LEARNED: 0.5})
    undisturbed = segment(asked, desk(classroom, tmp_path / "undisturbed", **given))
    disturbed = desk(classroom, tmp_path / "disturbed", **given)

    def trip(done: float, note: str) -> None:
        if note == "step 3":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        segment(asked, replace(disturbed, progress=trip))
    again = segment(asked, disturbed)
    assert again.values == undisturbed.values
    assert hashes(again.outputs["model"]) == hashes(undisturbed.outputs["model"])
