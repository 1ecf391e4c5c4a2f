"""A segment of the reward loop with the real jobs: pairs are made, a reward model learns from them, and it is used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from coaching import TASK, make_classroom, recipe

from loops.reward.features import LEARNED
from loops.reward.learned import clears
from loops.reward.loop import RewardLoop, RewardSettings
from loops.reward.shaping import Evidence
from loops.work.pairs import pairs
from loops.work.reinforce import segment
from loops.work.reward_model import reward_check, reward_model
from state.jobs import Desk, JobResult, JobSpec
from state.records import Budget, Cost, JsonObject, seed_from

JOBS = {"pairs": pairs, "segment": segment, "reward_model": reward_model, "reward_check": reward_check}


class Workshop:
    """A bench that does each job here and now, and knows artefacts by a name."""

    def __init__(self, folder: Path, state: JsonObject, artefacts: dict[str, Path]) -> None:
        self.folder, self.state, self.artefacts = folder, state, artefacts
        self.number = 0
        self.cycle, self.left, self.done = self, Budget(1e6, 10**7, 10), list[tuple[JobSpec, JsonObject]]()

    def seed(self, *parts: object) -> int:
        return seed_from(self.number, *parts)

    def spec(self, kind: str, inputs: Any, params: Any, seed: int = 0) -> JobSpec:
        return JobSpec(kind, inputs, params, seed)

    def jobs(self, specs: list[JobSpec]) -> list[JobResult]:
        return [self._do(spec) for spec in specs]

    def _do(self, spec: JobSpec) -> JobResult:
        folder = self.folder / spec.digest
        folder.mkdir()
        made = JOBS[spec.kind](spec, Desk(folder, {name: self.artefacts[at] for name, at in spec.inputs.items()}))
        outputs = {name: hashlib.sha256(str(path).encode()).hexdigest() for name, path in made.outputs.items()}
        self.artefacts |= {digest: made.outputs[name] for name, digest in outputs.items()}
        self.done.append((spec, made.values))
        return JobResult(made.values, outputs, Cost(1.0, tokens=made.tokens))


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_classroom(tmp_path_factory.mktemp("classroom"))
    (folder / "seal").mkdir()
    return folder


def test_it_is_made_measured_examined_and_paid_for(classroom: Path, tmp_path: Path) -> None:
    settings = RewardSettings(features=("places", "prefix"), learned=True, pair_prompts=96, probe_items=16)
    loop = RewardLoop(settings, [TASK], "seal", {}).on({
        "recipe": recipe("grpo", steps=20, replay=0.0), "checkpoint": None, "from_step": 0, "steps": 4, "segment": 0,
        "lineage": "c",
    })
    state = {**loop.start(), "switch": "on"}
    shop = Workshop(tmp_path, state, {"model": classroom / "model", "seal": classroom / "seal"})
    first = loop.propose(state, "model", "model", 0)
    outcome = loop.judge(first, loop.run(first, shop))
    assert [spec.kind for spec, _ in shop.done] == ["pairs", "reward_model", "segment"]
    assert outcome.evidence["learned"]["trained"]
    assert outcome.evidence["learned"]["pairs"] >= 32
    after = {**loop.learn(state, first, outcome), "switch": "on"}
    seen = Evidence.from_json(after["evidence"])
    assert seen.sxx[-1] > 0

    told = Evidence(seen.features, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), (0.5, 0.0, 0.4), 9.0, 9, 9, 1.0, 0.0)
    shop.state, shop.number = {**after, "evidence": told.to_json()}, 1
    second = loop.propose(shop.state, "model", "model", 0)
    assert LEARNED in second.change["shaping"]["weights"]
    outcome = loop.judge(second, loop.run(second, shop))
    assert [spec.kind for spec, _ in shop.done[3:]] == ["pairs", "reward_check", "segment", "segment"]
    examined, shaped = shop.done[4][1], shop.done[6][0]
    used = clears(examined["accuracy"], examined["pairs"])
    assert outcome.evidence["learned"]["accuracy"] == examined["accuracy"]
    assert (outcome.evidence["learned"]["left_out"] is None) == used
    assert (LEARNED in shaped.params["shaping"]["weights"]) == used
    assert outcome.evidence["trace"].keys() == {"zero", "shaped"}
