"""A whole kaizend folder in seconds: really trained models, both files, nothing started yet.

The same world as the demo's, with shorter courses, fewer items and smaller budgets, so that a test can afford to run
the daemon for a dozen cycles of all three loops. `miniature` copies from one that is made once per test run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CYCLES = 8                                    # enough for merges, one training and the nominations in between

CONFIG = """\
seed = 8

[models]
start = "models/expert-maths"
base = "models/base"
parents = ["models/expert-maths", "models/expert-language"]

[data]
maths = "models/data/expert_maths.jsonl"
language = "models/data/expert_language.jsonl"

[[tasks]]
name = "maths2"
role = "target"
vault_items = 2000
source = { kind = "bilingual", family = "maths2" }

[[tasks]]
name = "maths1"
role = "guard"
guard_items = 300
source = { kind = "bilingual", family = "maths1" }

[service]
workers = 1
threads = 1
device = "cpu"
log = "json"
stop_seconds = 5

[architecture]
coarse_proposals = 3
patience = 2
merges_between = 2
inner_trials = 3
fitness_items = 64
fresh_items = 256
batch_items = 64

[pipeline]
rungs = 2
eta = 2
segment_steps = 4
fresh_items = 256

[pipeline.sft]
stage = "sft"
learning_rate = 1e-3
batch = 16
steps = 16

[pipeline.grpo]
stage = "grpo"
learning_rate = 2e-4
batch = 4
group = 4
steps = 16
replay = 1.0
"""

BOUNDS = """\
[rate]
dwell_seconds = 0.0
cycles_between_nominations = 1
releases_per_day = 1000

[gate]
alpha = 0.3

[guards]
margin = 0.2

[resources]
min_disk_free_gib = 0.1

[serving]                       # a machine that is busy with other tests must not decide what is released
latency_ratio = 100.0
speed_ratio = 0.01
"""


def make_models(folder: Path) -> None:
    """The demo's models by courses a sixth as long. Runs in a process of its own: tests must not import torch."""
    subprocess.run([sys.executable, __file__, str(folder)], check=True, cwd=ROOT, env=environment())


def write_files(folder: Path) -> None:
    (folder / "kaizend.toml").write_text(CONFIG)
    (folder / "bounds.toml").write_text(BOUNDS)


def copy_of(made: Path, folder: Path) -> Path:
    """A fresh folder with the models of `made` and the two files."""
    shutil.copytree(made / "models", folder / "models")
    write_files(folder)
    return folder


def environment(**more: str) -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KAIZEND")}
    return {**kept, **quiet, **more}


def kaizend(folder: Path, *words: str, seconds: float = 300.0, **more: str) -> subprocess.CompletedProcess[str]:
    """One command of the real program, as a user would run it in `folder`."""
    command = [sys.executable, "-m", "daemon", *words]
    env = environment(PYTHONPATH=str(ROOT), **more)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=seconds, check=False)


def start(folder: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    """A daemon in the background, in a process group of its own."""
    command = [sys.executable, "-m", "daemon", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment(PYTHONPATH=str(ROOT), **more), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from loops.work import pretrain

    pretrain.BASE = replace(pretrain.BASE, steps=120, rows=12_000)
    pretrain.EXPERTS = {
        name: replace(course, steps=70, rows=3_000) for name, course in pretrain.EXPERTS.items()
    }
    pretrain.make_demo_models(Path(sys.argv[1]) / "models", seed=5, threads=1, progress=lambda what, done: None)
