"""Pairs of answers and the spec of a reward model for tests: files, and seconds of work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coaching import TASK

from safety.yardstick.items import TaskSpec
from safety.yardstick.tasks import draw
from state.jobs import JobSpec
from state.records import Split


def write_pairs(file: Path, count: int = 48, seed: int = 1) -> Path:
    """The right answer against the right one said twice, to `count` prompts: what tells them apart holds everywhere."""
    items = draw(TaskSpec.from_json(TASK), Split.SEARCH, count, seed)
    rows = [{"prompt": i.prompt, "chosen": i.answer, "rejected": f"{i.answer} {i.answer}"} for i in items]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def reward_spec(seed: int = 7, **changes: Any) -> JobSpec:
    params = {"learning_rate": 3e-3, "batch": 8, "steps": 12, "save_steps": 5, **changes}
    return JobSpec("reward_model", {}, params, seed)
