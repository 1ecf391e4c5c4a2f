"""A training process killed anywhere and run again in the same folder ends with the bits of an undisturbed one.

So does one that breaks off after any step or between the parts of one, and one whose checkpoints were torn meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from coaching import desk, hashes, make_classroom, prefer_spec, segment_spec, train_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import DPOTrainer, GRPOTrainer, SFTTrainer

from loops.work.prefer import prefer
from loops.work.reinforce import segment
from loops.work.train import train
from loops.work.watch import Watch
from state.jobs import JobFunction, JobSpec

JOBS: dict[str, JobFunction] = {"train": train, "prefer": prefer, "segment": segment}
SPECS: dict[str, Callable[..., JobSpec]] = {"train": train_spec, "prefer": prefer_spec, "segment": segment_spec}
ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = {
    "train": ["step 4", "step 9", "checkpoint.unsealed:1", "checkpoint.unnamed:2", "checkpoint.after:1"],
    "prefer": [
        "checkpoint.unnamed:1", "step 4", "step 9", "checkpoint.unsealed:1", "checkpoint.unnamed:2",
        "checkpoint.after:1",
    ],
    "segment": ["step 5", "checkpoint.unsealed:2", "checkpoint.unnamed:1"],
    "capped train": ["step 4", "step 9", "checkpoint.unsealed:1"],
    "capped segment": ["step 5", "checkpoint.unsealed:2", "checkpoint.unnamed:1"],
}
DONE = {"capped train": 10, "capped segment": 6, "segment": 8}
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
    name = next(name for name in JOBS if name in kind)
    return JOBS[name], SPECS[name](max_tokens=CAPS.get(kind))


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
    assert undisturbed.values["steps"] == DONE.get(kind, 12)
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


LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}
STEPS, PARTS = 7, 2
TRAINERS = ((SFTTrainer, "input_ids", 4), (DPOTrainer, "input_ids", 8), (GRPOTrainer, "prompt_ids", 6))
"""With the rows of half a batch."""
Death = tuple[int, int]
"""The step and the part of its batch after which a run breaks off."""


class BrokeOff(BaseException):
    """What nobody catches."""


def asked_for(kind: str, save_steps: int, adapter: dict[str, Any]) -> JobSpec:
    """A job of `STEPS` steps; reinforcement with a KL term and replay."""
    if kind != "segment":
        return SPECS[kind](0, STEPS, save_steps=save_steps, adapter=adapter)
    return segment_spec(0, STEPS, save_steps=save_steps, adapter=adapter, beta=0.2, learning_rate=5e-3)


@contextmanager
def in_parts() -> Iterator[None]:
    """There is memory for half a batch and no more, so each step is done in two parts."""
    with ExitStack() as stack:
        for trainer, ids, most in TRAINERS:

            def narrow(
                self: Any, model: Any, inputs: Any, *rest: Any, ids: str = ids, most: int = most,
                honest: Any = trainer.compute_loss, **more: Any,
            ) -> Any:
                if len(inputs[ids]) > most:
                    raise torch.OutOfMemoryError("too much")
                return honest(self, model, inputs, *rest, **more)

            stack.enter_context(patch.object(trainer, "compute_loss", narrow))
        yield


@contextmanager
def breaking_off(death: Death) -> Iterator[None]:
    """Break off right after the gradient of one part of one step was added up."""
    done: list[int] = []
    with ExitStack() as stack:
        for trainer, _, _ in TRAINERS:

            def step(self: Any, *rest: Any, honest: Any = trainer.training_step, **more: Any) -> Any:
                watch = next(each for each in self.callback_handler.callbacks if isinstance(each, Watch))
                loss = honest(self, *rest, **more)
                done.append(watch.first_step + self.state.global_step + 1)
                if (done[-1], done.count(done[-1])) == death:
                    raise BrokeOff
                return loss

            stack.enter_context(patch.object(trainer, "training_step", step))
        yield


def ends_the_same(kind: str, classroom: Path, folder: Path, spec: JobSpec, deaths: Sequence[Death]) -> None:
    """A run that breaks off at each of these moments in turn ends as one that does not."""
    job = JOBS[kind]
    undisturbed = job(spec, desk(classroom, folder / "undisturbed"))
    here = desk(classroom, folder / "disturbed")
    for death in deaths:
        with breaking_off(death), pytest.raises(BrokeOff):
            job(spec, here)
    again = job(spec, here)
    assert again.values == undisturbed.values
    for output in ("model", "checkpoint"):
        assert hashes(again.outputs[output]) == hashes(undisturbed.outputs[output])


@pytest.mark.parametrize(("kind", "adapter"), [
    ("train", {"kind": "none"}), ("train", LORA), ("segment", {"kind": "none"}), ("segment", LORA), ("prefer", LORA),
    pytest.param("prefer", {"kind": "none"}, marks=pytest.mark.long),
])
def test_one_that_breaks_off_inside_every_step_in_turn_ends_with_the_same_bits(
    classroom: Path, tmp_path: Path, kind: str, adapter: dict[str, Any]
) -> None:
    with in_parts():
        spec = asked_for(kind, 2, adapter)
        ends_the_same(kind, classroom, tmp_path, spec, [(step, 1 + step % PARTS) for step in range(1, STEPS + 1)])


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_that_breaks_off_anywhere_ends_with_the_same_bits(
    classroom: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(list(JOBS)))
    spec = asked_for(kind, data.draw(st.integers(1, 4)), data.draw(st.sampled_from([{"kind": "none"}, LORA])))
    parted = data.draw(st.booleans())
    moments = st.tuples(st.integers(1, STEPS), st.integers(1, PARTS if parted else 1))
    deaths = data.draw(st.lists(moments, min_size=1, max_size=4).map(sorted))
    with ExitStack() as stack:
        if parted:
            stack.enter_context(in_parts())
        ends_the_same(kind, classroom, tmp_path_factory.mktemp("run"), spec, deaths)


def shortened(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def flipped(folder: Path) -> None:
    content = bytearray((folder / "optimizer.safetensors").read_bytes())
    content[len(content) // 2] ^= 16
    (folder / "optimizer.safetensors").write_bytes(content)


def lost(folder: Path) -> None:
    (folder / "state.json").unlink()


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"")


@pytest.mark.parametrize("kind", ["train", "segment", pytest.param("prefer", marks=pytest.mark.long)])
@pytest.mark.parametrize("torn", [
    [shortened], [flipped, lost], *(pytest.param(tear, marks=pytest.mark.long) for tear in (
        [lost], [flipped], [empty], [shortened, empty], [lost, shortened]
    )),
], ids=lambda tears: "-".join(tear.__name__ for tear in tears))
def test_a_torn_checkpoint_is_passed_over_for_the_one_before_or_the_start(
    classroom: Path, tmp_path: Path, kind: str, torn: list[Callable[[Path], None]]
) -> None:
    """The newest is torn, or both that there are."""
    job, spec = JOBS[kind], asked_for(kind, 2, {"kind": "none"})
    undisturbed = job(spec, desk(classroom, tmp_path / "undisturbed"))
    here = desk(classroom, tmp_path / "disturbed")
    with breaking_off((6, 1)), pytest.raises(BrokeOff):
        job(spec, here)
    saved = sorted((here.folder / "steps").iterdir(), reverse=True)
    assert [folder.name for folder in saved] == ["step-000000004", "step-000000002"]
    for tear, folder in zip(torn, saved, strict=False):
        tear(folder)
    again = job(spec, here)
    assert again.values == undisturbed.values
    for output in ("model", "checkpoint"):
        assert hashes(again.outputs[output]) == hashes(undisturbed.outputs[output])
