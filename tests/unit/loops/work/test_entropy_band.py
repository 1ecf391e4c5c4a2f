"""A segment measures how sure the model is of its answers, where a feature asks for it, and resumes bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from coaching import desk, hashes, make_classroom, segment_spec

from loops.reward.features import ENTROPY_BAND, USUAL
from loops.reward.shaping import Evidence
from loops.work.reinforce import segment
from loops.work.rows import answer_entropy
from state.jobs import JobSpec


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classroom(tmp_path_factory.mktemp("classroom"))


def spec(weights: dict[str, float]) -> JobSpec:
    asked = segment_spec(0, 4, save_steps=2)
    evidence = Evidence.empty((*USUAL, ENTROPY_BAND)).to_json()
    params = {**asked.params, "evidence": evidence, "shaping": {"weights": weights, "strength": 0.4}}
    return replace(asked, params=params)


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


def test_it_enters_the_evidence_and_pays_as_any_other_feature(classroom: Path, tmp_path: Path) -> None:
    alone = segment(spec({"places": 0.5}), desk(classroom, tmp_path / "alone")).values
    evidence = Evidence.from_json(alone["evidence"])
    place, width = evidence.features.index(ENTROPY_BAND), len(evidence.features)
    assert evidence.sxx[place * width + place] > 0
    paid = segment(spec({"places": 0.5, ENTROPY_BAND: 0.5}), desk(classroom, tmp_path / "paid")).values
    assert paid["truth"][0] == alone["truth"][0]
    assert paid["shaping_trace"][0] != alone["shaping_trace"][0]


def test_one_that_broke_off_ends_as_if_it_had_not(classroom: Path, tmp_path: Path) -> None:
    asked = spec({"places": 0.5, ENTROPY_BAND: 0.5})
    undisturbed = segment(asked, desk(classroom, tmp_path / "undisturbed"))
    disturbed = desk(classroom, tmp_path / "disturbed")

    def trip(done: float, note: str) -> None:
        if note == "step 3":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        segment(asked, replace(disturbed, progress=trip))
    again = segment(asked, disturbed)
    assert again.values == undisturbed.values
    assert hashes(again.outputs["model"]) == hashes(undisturbed.outputs["model"])
