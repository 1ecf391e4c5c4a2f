"""The jobs "train", "prefer" and "segment" as they are, in which one step goes wrong as the spec's `mishap` says.

    loss:5        the loss of the fifth step is no number       gradient:5    its gradient alone is none
    memory:5      there is no memory for that step              kill:5        the kernel kills the process in it

With ":once" behind it, it happens once in the life of the job's folder. Everything else is the real thing. Loaded by a
nursery with `--table`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from trl import DPOTrainer, GRPOTrainer, SFTTrainer

from daemon.worker import JOBS as REAL
from loops.work import prefer as preferring
from loops.work import reinforce
from loops.work import train as supervised
from loops.work.watch import Watch
from state.jobs import Desk, JobSpec, Produced


def train(spec: JobSpec, desk: Desk) -> Produced:
    with mishap(spec, desk):
        return supervised.train(spec, desk)


def prefer(spec: JobSpec, desk: Desk) -> Produced:
    with mishap(spec, desk):
        return preferring.prefer(spec, desk)


def segment(spec: JobSpec, desk: Desk) -> Produced:
    with mishap(spec, desk):
        return reinforce.segment(spec, desk)


@contextmanager
def mishap(spec: JobSpec, desk: Desk) -> Iterator[None]:
    """Nothing goes wrong where the spec asks for nothing."""
    what, _, rest = spec.params.get("mishap", ":").partition(":")
    step, _, once = rest.partition(":")
    mark, begin = desk.folder / "struck", Watch.on_step_begin
    spoiled: list[str] = []

    def strike(self: Watch, args: Any, state: Any, control: Any, **more: Any) -> Any:
        spoiled.clear()
        if self.first_step + state.global_step + 1 == int(step) and not (once and mark.exists()):
            mark.touch()
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            spoiled.append(what)
        return begin(self, args, state, control, **more)

    if not what:
        yield
        return
    with (
        patch.object(Watch, "on_step_begin", strike), spoiling(SFTTrainer, spoiled), spoiling(DPOTrainer, spoiled),
        spoiling(GRPOTrainer, spoiled),
    ):
        yield


@contextmanager
def spoiling(trainer: Any, spoiled: list[str]) -> Iterator[None]:
    """While `spoiled` says so, the trainer's loss is no number, or looks well and has a gradient that is none."""
    honest = trainer.compute_loss

    def compute_loss(self: Any, *rest: Any, **more: Any) -> Any:
        loss = honest(self, *rest, **more)
        if "loss" in spoiled:
            return loss * float("nan")
        if "gradient" in spoiled:
            loss = loss * 1.0
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    with patch.object(trainer, "compute_loss", compute_loss):
        yield


JOBS = REAL | {kind: f"faulty_training:{kind}" for kind in ("train", "prefer", "segment")}
