"""A training process killed anywhere and run again in the same folder ends with the bits of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from coaching import desk, hashes, make_classroom, prefer_spec, segment_spec, train_spec

from loops.work.prefer import prefer
from loops.work.reinforce import segment
from loops.work.train import train
from state.jobs import JobFunction, JobSpec

JOBS = {"train": (train, train_spec), "prefer": (prefer, prefer_spec), "segment": (segment, segment_spec)}
ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = {
    "train": ["step 4", "step 9", "checkpoint.unsealed:1", "checkpoint.unnamed:2", "checkpoint.after:1"],
    "prefer": [
        "checkpoint.unnamed:1", "step 4", "step 9", "checkpoint.unsealed:1", "checkpoint.unnamed:2",
        "checkpoint.after:1",
    ],
    "prefer dora": ["step 7", "checkpoint.unsealed:1"],
    "segment": ["step 5", "checkpoint.unsealed:2", "checkpoint.unnamed:1"],
    "capped train": ["step 4", "step 9", "checkpoint.unsealed:1"],
    "capped segment": ["step 5", "checkpoint.unsealed:2", "checkpoint.unnamed:1"],
}
CHANGES = {"prefer dora": {"adapter": {"kind": "dora", "rank": 4, "alpha": 8.0}}}
STEPS = {"capped train": 10, "capped segment": 6, "segment": 8}
CAPS = {"capped train": 1060, "capped segment": 5300}
ATTEMPTS = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from coaching import desk
from test_training_kills import asked

classroom, folder = Path(sys.argv[2]), Path(sys.argv[3])
job, spec = asked(sys.argv[1])

def attempt(fatal):
    os.environ["KAIZEND_FAILPOINT"] = fatal

    def progress(done, note):
        if note == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    given = replace(desk(classroom, folder), progress=progress, threads=1 if fatal else 2)
    (folder / "values.json").write_text(json.dumps(job(spec, given).values))

statuses = []
for fatal in [*json.loads(sys.argv[4]), ""]:
    child = os.fork()
    if child == 0:
        attempt(fatal)
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""


def asked(kind: str) -> tuple[JobFunction, JobSpec]:
    """The job of that kind and what it is asked for."""
    job, spec = next(entry for name, entry in JOBS.items() if name in kind)
    return job, spec(max_tokens=CAPS.get(kind), **CHANGES.get(kind, {}))


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classroom(tmp_path_factory.mktemp("classroom"))


@pytest.mark.parametrize("kind", list(KILLS))
def test_killed_again_and_again_it_ends_with_the_same_bits(kind: str, classroom: Path, tmp_path: Path) -> None:
    """Each attempt is a process of its own, forked from one that has done nothing but import; the last one is left in
    peace and has another number of threads.
    """
    job, spec = asked(kind)
    undisturbed = job(spec, desk(classroom, tmp_path / "undisturbed"))
    assert undisturbed.values["steps"] == STEPS.get(kind, 12)
    assert kind not in CAPS or undisturbed.tokens <= CAPS[kind]
    folder = tmp_path / "disturbed"
    command = [sys.executable, "-c", ATTEMPTS, kind, str(classroom), str(folder), json.dumps(KILLS[kind])]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'crash'}", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout
    assert json.loads(told.splitlines()[-1]) == [-signal.SIGKILL] * len(KILLS[kind]) + [0]
    assert list((folder / "steps").glob("step-*"))
    assert json.loads((folder / "values.json").read_text()) == undisturbed.values
    for output in ("model", "checkpoint"):
        assert hashes(folder / output) == hashes(undisturbed.outputs[output])
