"""A segment measures the learned feature by the reward model that it is given, and the entropy band by the model that
answers; it resumes with either bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from coaching import desk, hashes, make_classroom, segment_spec
from judging import reward_spec, write_pairs

from loops.reward import features
from loops.reward.features import ENTROPY_BAND, LEARNED, USUAL
from loops.reward.shaping import Evidence
from loops.work.reinforce import segment
from loops.work.reward_model import reward_model
from loops.work.rows import answer_entropy
from state.jobs import Desk, JobSpec

BOTH = pytest.mark.parametrize("name", [LEARNED, ENTROPY_BAND])


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_classroom(tmp_path_factory.mktemp("classroom"))
    pairs = write_pairs(folder / "pairs.jsonl")
    made = reward_model(reward_spec(), Desk(folder / "rm", {"model": folder / "model", "pairs": pairs}))
    made.outputs["model"].rename(folder / "judge")
    return folder


def spec(name: str, weights: dict[str, float]) -> JobSpec:
    asked = segment_spec(0, 4, save_steps=2)
    evidence = Evidence.empty((*USUAL, name)).to_json()
    params = {**asked.params, "evidence": evidence, "shaping": {"weights": weights, "strength": 0.4}}
    return replace(asked, params=params)


def own_square(values: dict[str, Any], name: str) -> float:
    """What the evidence has of how the feature varies."""
    evidence = Evidence.from_json(values["evidence"])
    place, width = evidence.features.index(name), len(evidence.features)
    return float(evidence.sxx[place * width + place])


@BOTH
def test_it_enters_the_evidence_and_pays_as_any_other_feature(
    classroom: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MOST_NATS", 0.1)                 # or all answers may lie within the band
    given = {"reward_model": classroom / "judge"}
    zero = segment(spec(name, {}), desk(classroom, tmp_path / "zero", **given)).values
    assert own_square(zero, name) > 0
    paid = segment(spec(name, {"places": 0.5, name: 0.5}), desk(classroom, tmp_path / "paid", **given)).values
    alone = segment(spec(name, {"places": 0.5}), desk(classroom, tmp_path / "alone", **given)).values
    assert paid["truth"][0] == alone["truth"][0] == zero["truth"][0]
    assert paid["shaping_trace"][0] != alone["shaping_trace"][0]


def test_without_a_reward_model_it_is_neutral_and_nothing_may_be_paid_for_it(classroom: Path, tmp_path: Path) -> None:
    values = segment(spec(LEARNED, {}), desk(classroom, tmp_path / "bare")).values
    assert own_square(values, LEARNED) == 0
    with pytest.raises(ValueError, match="needs a reward model"):
        segment(spec(LEARNED, {"places": 0.5, LEARNED: 0.5}), desk(classroom, tmp_path / "paid"))


@BOTH
def test_one_that_broke_off_ends_as_if_it_had_not(classroom: Path, tmp_path: Path, name: str) -> None:
    given, asked = {"reward_model": classroom / "judge"}, spec(name, {"places": 0.5, name: 0.5})
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


class Bigrams(torch.nn.Module):
    """What comes next goes by the last token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(9, 9, generator=torch.Generator().manual_seed(3)) * 3
        self.table[4] = torch.tensor([0.0, *[-torch.inf] * 8])

    def forward(self, input_ids: Any, **_: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def test_the_entropy_of_an_answer_is_the_mean_over_its_own_places() -> None:
    rows = [([1, 2], [3, 5, 0]), ([6], [4, 0]), ([7, 7, 7, 7], [8])] * 20
    each = torch.distributions.Categorical(logits=Bigrams().table).entropy()
    assert each[4] == 0
    found = answer_entropy(Bigrams(), rows, 0, "cpu")
    assert found[:3] == pytest.approx([float(each[places].mean()) for places in ([2, 3, 5], [6, 4], [7])])
    assert found == pytest.approx(found[:3] * 20)
