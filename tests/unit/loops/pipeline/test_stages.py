"""Supervised training, preferences and reinforcement in one life, each on what the one before made: real models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from coaching import TASK
from court import InlineRunner
from sealing import seal_of
from synthetic import ALLOWED, BUDGET
from tiny import teach, tiny_model

from daemon.kinds import artefact_kind
from loops.cycle import House, run_cycle
from loops.pipeline.loop import PipelineLoop
from loops.pipeline.recipe import Adapter, AdapterKind, Recipe, Stage
from loops.pipeline.settings import PipelineSettings
from loops.reward.loop import RewardLoop, RewardSettings
from loops.work.pairs import pairs
from loops.work.prefer import prefer
from loops.work.reinforce import segment
from loops.work.train import train
from safety.drift import measure
from safety.yardstick import bilingual
from safety.yardstick.items import TaskSpec
from safety.yardstick.jobs import compare
from state.database import Database
from state.jobbook import JobBook
from state.ledger import Ledger
from state.records import Channel, Entry, Event, Verdict
from state.registry import Registry

JOBS = {"train": train, "pairs": pairs, "prefer": prefer, "segment": segment, "compare": compare, "measure": measure}
ITEMS = bilingual.items("maths2", "search", 96, 4)
LORA = Adapter(AdapterKind.LORA, 8, 16.0)
RECIPES = {
    "sft": Recipe(Stage.SFT, learning_rate=2e-3, batch=16, steps=8),
    "dpo": Recipe(Stage.DPO, learning_rate=1e-3, batch=16, steps=12, beta=0.1, adapter=LORA),
    "grpo": Recipe(Stage.GRPO, learning_rate=1e-3, batch=4, steps=4, group=4, replay=1.0),
}


def written(file: Path, rows: list[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_in_one_life_preferences_follow_supervision_and_reinforcement_follows_both(tmp_path: Path) -> None:
    """Each stage is judged against an untrained model, so that their order is tested and not what each is worth."""
    raw = tiny_model(tmp_path / "raw", bilingual.VOCABULARY[3:], seed=1)
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in ITEMS]
    database = Database(tmp_path / "kaizend.db")
    database.migrate()
    registry = Registry(tmp_path, database)
    ledger = Ledger(database, registry)
    runner = InlineRunner(registry, JobBook(database), JOBS, kind_of=artefact_kind)
    house = House(ledger, runner, lambda: ALLOWED, "code", 7)
    untrained = registry.add_copy(raw, "model")
    start = registry.add_copy(teach(raw, ITEMS, tmp_path / "model", steps=90, rate=5e-3), "model")
    sources = {"rows": registry.add_copy(written(tmp_path / "rows.jsonl", rows), "data")}
    seal = registry.add_copy(seal_of([TaskSpec.from_json(TASK)], tmp_path / "seal"), "seal")
    settings = PipelineSettings(
        (Stage.SFT, Stage.DPO, Stage.GRPO), **RECIPES, rungs=1, segment_steps=4, fresh_items=64, pair_prompts=48,
    )
    reward = RewardLoop(RewardSettings(probe_items=64), [TASK], seal, sources)
    loop = PipelineLoop(settings, [TASK], seal, sources, reward)
    base, stages = start, []
    for ordinal in range(3):
        ledger.append(Entry(Event.OPERATOR, "as at first"), move=(Channel.WORKING, untrained))
        outcome = run_cycle(house, loop, None, ordinal, base, untrained, replace(BUDGET, trials=8))
        assert (outcome.verdict, outcome.evidence["complete"]) == (Verdict.PROMOTED, True)
        assert outcome.result not in (None, base)
        stages, base = [*stages, outcome.evidence["stage"]], outcome.result
    assert stages == ["sft", "dpo", "grpo"]
    asked = {spec.kind: spec.inputs for spec in runner.ran}
    made = {(spec.kind, output) for spec in runner.ran for output in runner.book.result(spec.digest).outputs.values()}
    assert asked["train"]["model"] == start
    assert asked["pairs"]["model"] == asked["prefer"]["model"] == asked["prefer"]["reference"]
    assert {("train", asked["prefer"]["model"]), ("prefer", asked["segment"]["model"]), ("segment", base)} <= made
    database.close()
