"""A small model, rows and questions for tests of the training jobs: real files, seconds of work."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tiny import teach, tiny_model

from safety.yardstick import bilingual
from state.jobs import Desk, JobSpec

TASK = {"name": "maths2", "role": "target", "source": {"kind": "bilingual", "family": "maths2"}, "vault_items": 10}


def make_classroom(folder: Path) -> Path:
    """A model that answers some questions of maths2, two data sources and one of preferences. Returns the folder."""
    raw = tiny_model(folder / "raw", bilingual.VOCABULARY[3:], seed=1)
    pairs = bilingual.items("maths2", "search", 96, 4)
    teach(raw, pairs, folder / "model", steps=120, rate=5e-3)
    (folder / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for number, kind in enumerate(("expert_maths", "expert_language")):
        source = folder / kind
        source.mkdir()
        rows = bilingual.corpus(kind, number, 200)
        (source / "rows.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    (folder / "preferences").mkdir()
    bodies = [{"prompt": prompt, "chosen": answer, "rejected": other}
              for (prompt, answer), (_, other) in pairwise(pairs[:25]) if answer != other]
    (folder / "preferences" / "rows.jsonl").write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return folder


def recipe(stage: str, **changes: Any) -> dict[str, Any]:
    common = {
        "stage": stage, "learning_rate": 1e-3, "batch": 8, "steps": 20, "warmup": 0.1, "schedule": "linear",
        "adapter": {"kind": "none"}, "mixture": {"expert_maths": 0.75, "expert_language": 0.25},
    }
    own = {"grpo": {"batch": 3, "group": 4, "replay": 1.0}, "dpo": {"beta": 0.2, "mixture": {}}}
    return {**common, **own.get(stage, {}), **changes}


def train_spec(
    from_step: int = 0, to_step: int = 12, seed: int = 7, save_steps: int = 5, max_tokens: int | None = None,
    **changes: Any,
) -> JobSpec:
    params = {
        "recipe": recipe("sft", **changes), "from_step": from_step, "to_step": to_step, "save_steps": save_steps,
        "max_tokens": max_tokens,
    }
    return JobSpec("train", {}, params, seed)


def prefer_spec(
    from_step: int = 0, to_step: int = 12, seed: int = 7, save_steps: int = 5, max_tokens: int | None = None,
    **changes: Any,
) -> JobSpec:
    given = train_spec(from_step, to_step, seed, save_steps, max_tokens)
    return JobSpec("prefer", {}, {**given.params, "recipe": recipe("dpo", **changes)}, seed)


def segment_spec(
    from_step: int = 0, steps: int = 8, seed: int = 7, save_steps: int = 3, max_tokens: int | None = None,
    **changes: Any,
) -> JobSpec:
    params = {
        "recipe": recipe("grpo", **changes), "from_step": from_step, "steps": steps, "save_steps": save_steps,
        "shaping": {"weights": {"places": 1.0}, "strength": 0.3}, "tasks": [TASK], "evidence": None,
        "probe_seed": 5, "probe_items": 24, "max_tokens": max_tokens,
    }
    return JobSpec("segment", {}, params, seed)


def desk(classroom: Path, folder: Path, **inputs: Path) -> Desk:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"model": classroom / "model", "reference": classroom / "model"} | {
        f"data:{name}": classroom / name for name in ("expert_maths", "expert_language", "preferences")
    }
    return Desk(folder, given | inputs)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
