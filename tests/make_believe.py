"""A kaizend folder whose models are make-believe: one number says how skilled each is, and every job takes no time.

Everything else is real: the daemon, its worker processes, the three loops, the gate, and the checkpoints that training
writes. `JOBS` goes to `brood.py`; `make_folder` writes what the operator would. A job is deterministic in its spec.
"""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from court import canned
from synthetic import PROBE, evidence_after

from safety.yardstick.compare import paired
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject

CONFIG = """\
seed = 3

[models]
start = "models/one"
base = "models/base"
parents = ["models/one", "models/two"]

[data]
rows = "models/rows.jsonl"

[[tasks]]
name = "maths2"
role = "target"
vault_items = 100
source = { kind = "bilingual", family = "maths2" }

[[tasks]]
name = "maths1"
role = "guard"
guard_items = 100
source = { kind = "bilingual", family = "maths1" }

[service]
workers = 1
threads = 1
device = "cpu"
log = "json"
stop_seconds = 1

[architecture]
coarse_proposals = 2
patience = 1
merges_between = 1
inner_trials = 2
inner_child_trials = 4
fitness_items = 64
fresh_items = 64

[pipeline]
rungs = 1
segment_steps = 4
fresh_items = 64

[pipeline.sft]
stage = "sft"
learning_rate = 1e-3
batch = 8
steps = 4

[pipeline.grpo]
stage = "grpo"
learning_rate = 2e-4
batch = 4
group = 4
steps = 8
"""

BOUNDS = """\
[rate]
dwell_seconds = 0.0
cycles_between_nominations = 1
releases_per_day = 1000

[gate]
alpha = 0.3
watch_items = 600

[guards]
margin = 0.2

[resources]
min_disk_free_gib = 0.0001
"""


def make_folder(folder: Path) -> Path:
    """Models, data and both files; nothing started yet."""
    for name, skill in (("base", 0.2), ("one", 0.3), ("two", 0.35)):
        write_model(folder / "models" / name, skill, name)
    (folder / "models" / "rows.jsonl").write_text('{"prompt": "one plus one", "answer": "two"}\n')
    (folder / "kaizend.toml").write_text(CONFIG)
    (folder / "bounds.toml").write_text(BOUNDS)
    return folder


def write_model(folder: Path, skill: float, made_by: str) -> Path:
    """A model folder that passes every look at its headers."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"layers.0.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", skill))
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "skill.json").write_text(json.dumps({"skill": skill, "made_by": made_by}))
    return folder


def skill_of(folder: Path) -> float:
    return float(json.loads((folder / "skill.json").read_text())["skill"])


def seal(spec: JobSpec, desk: Desk) -> Produced:
    for kind in ("vault", "guard", "seal"):
        (desk.folder / kind).mkdir(exist_ok=True)
        (desk.folder / kind / "maths2.json").write_text(json.dumps([kind]))
    return Produced({}, {kind: desk.folder / kind for kind in ("vault", "guard", "seal")})


def measure(spec: JobSpec, desk: Desk) -> Produced:
    return canned()["measure"](spec, desk)


def mark(spec: JobSpec) -> str:
    """The digest of a spec whatever the code version, so that every version lives the same life."""
    return replace(spec, code="").digest


def serve(spec: JobSpec, desk: Desk) -> Produced:
    return canned()["serve"](spec, desk)


def deal(spec: JobSpec, desk: Desk) -> Produced:
    return canned()["deal"](spec, desk)


def watch(spec: JobSpec, desk: Desk) -> Produced:
    return canned()["watch"](spec, desk)


def gate(spec: JobSpec, desk: Desk) -> Produced:
    if spec.params.get("aa"):
        return canned()["gate"](spec, desk)
    better = skill_of(desk.inputs["model:new"]) > skill_of(desk.inputs["model:old"])
    return canned("release" if better else "undecided")["gate"](spec, desk)


def screen(spec: JobSpec, desk: Desk) -> Produced:
    """Every second merge, by its digest, is better than the incumbent."""
    won, fitness = int(mark(spec)[0], 16) % 2 == 0, int(mark(spec)[1:4], 16) / 4096
    comparison = {"n": 64, "mean": 0.1, "stderr": 0.01, "p_value": 0.001 if won else 0.9, "wins": 9, "losses": 1}
    return Produced({
        "fitness": fitness, "incumbent_fitness": 0.5, "fitness_scores": "10",
        "race": {"decision": None, "n": 64, "mean": 0.1, "e": 1.0}, "comparison": comparison,
    }, items=64)


def build(spec: JobSpec, desk: Desk) -> Produced:
    skill = max(skill_of(path) for name, path in desk.inputs.items() if name.startswith("model:"))
    return Produced({}, {"model": write_model(desk.folder / "model", min(0.9, skill + 0.03), mark(spec))})


def compare(spec: JobSpec, desk: Desk) -> Produced:
    draw = random.Random(spec.params["seed"])
    levels = [draw.random() for _ in range(spec.params["count"])]
    skills = [skill_of(desk.inputs[name]) for name in ("model:new", "model:old")]
    new, old = ([float(level < skill) for level in levels] for skill in skills)
    race = {"decision": "better" if skills[0] > skills[1] else None, "n": 64, "mean": 0.1, "e": 30.0}
    return Produced({"pooled": paired(new, old).to_json(), "race": race}, items=2 * len(levels))


def train(spec: JobSpec, desk: Desk) -> Produced:
    steps = spec.params["to_step"] - spec.params["from_step"]
    named = [name.removeprefix("data:") for name in spec.inputs if name.startswith("data:")]
    values = {
        "steps": steps, "tokens": steps * 10, "loss_first": 2.0, "loss_last": 1.0, "stopped": None, "learned": {},
        "sources": {name: {"tokens": steps * 5, "loss_drop": 0.1} for name in named},
    }
    return trained(spec, desk, spec.params["to_step"], steps, values)


def segment(spec: JobSpec, desk: Desk) -> Produced:
    steps, before = spec.params["steps"], skill_of(desk.inputs["model"])
    draw = random.Random(spec.params["probe_seed"])
    noise = [draw.gauss(0, 0.001) for _ in range(PROBE)]
    truth = [before + 0.01 * step for step in range(steps)]
    values = {
        "evidence": evidence_after(spec.params["evidence"], before), "success": before, "groups": 8 * steps,
        "mixed_groups": 9, "proxy": truth, "truth": truth, "shaping_trace": [0.0] * steps, "rank_correlation": 0.4,
        "q_before": [before + n for n in noise], "q_after": [before + 0.01 * steps + n for n in noise], "kl": 0.1,
        "steps": steps, "cut": 0, "stopped": None, "tokens": steps * 10,
    }
    return trained(spec, desk, spec.params["from_step"] + steps, steps, values)


def trained(spec: JobSpec, desk: Desk, reached: int, steps: int, values: JsonObject) -> Produced:
    """What training leaves, with real checkpoints on the way."""
    import torch

    from loops.work import checkpoint

    root = desk.folder / "steps"
    latest = checkpoint.latest(root)
    for step in range(latest.state["step"] if latest else 0, steps):
        checkpoint.write_step(root, step + 1, {"weights": {"w": torch.tensor([float(step)])}}, {"step": step + 1})
    skill = min(0.95, skill_of(desk.inputs["model"]) + 0.01 * steps)
    kept = desk.folder / "checkpoint"
    kept.mkdir(exist_ok=True)
    (kept / "state.json").write_text(json.dumps({"step": reached, "made_by": mark(spec)}))
    model = write_model(desk.folder / "model", skill, mark(spec))
    return Produced(values, {"model": model, "checkpoint": kept}, tokens=steps * 10)


JOBS: dict[str, Any] = {
    name: f"make_believe:{name}"
    for name in ("seal", "measure", "serve", "gate", "deal", "watch", "screen", "build", "compare", "train", "segment")
}
