"""The training of a reward model killed anywhere and run again in the same folder ends with the undisturbed bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from coaching import hashes
from judging import reward_spec, write_pairs
from tiny import tiny_model

from loops.work.reward_model import reward_model
from safety.yardstick import bilingual
from state.jobs import Desk

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = ["step 4", "checkpoint.unsealed:1", "checkpoint.unnamed:1", "step 7", "checkpoint.after:1", "step 12"]
ATTEMPTS = """
import json, os, signal, sys
from pathlib import Path
from judging import reward_spec
from loops.work.reward_model import reward_model
from state.jobs import Desk

classroom, folder = Path(sys.argv[1]), Path(sys.argv[2])

def attempt(fatal):
    os.environ["KAIZEND_FAILPOINT"] = fatal

    def progress(done, note):
        if note == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    inputs = {name.split(".")[0]: classroom / name for name in ("model", "pairs.jsonl")}
    desk = Desk(folder, inputs, threads=1 if fatal else 2, progress=progress)
    (folder / "values.json").write_text(json.dumps(reward_model(reward_spec(), desk).values))

statuses = []
for fatal in [*json.loads(sys.argv[3]), ""]:
    child = os.fork()
    if child == 0:
        attempt(fatal)
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""


def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Each attempt is a process of its own, forked from one that has done nothing but import; the last one is left in
    peace and has another number of threads.
    """
    model = tiny_model(tmp_path / "model", bilingual.VOCABULARY[3:], seed=1)
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    undisturbed = reward_model(reward_spec(), Desk(tmp_path / "undisturbed", {"model": model, "pairs": pairs}))
    folder = tmp_path / "disturbed"
    folder.mkdir()
    command = [sys.executable, "-c", ATTEMPTS, str(tmp_path), str(folder), json.dumps(KILLS)]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout
    assert json.loads(told.splitlines()[-1]) == [-signal.SIGKILL] * len(KILLS) + [0]
    assert list((folder / "steps").glob("step-*"))
    assert json.loads((folder / "values.json").read_text()) == undisturbed.values
    assert hashes(folder / "model") == hashes(undisturbed.outputs["model"])
