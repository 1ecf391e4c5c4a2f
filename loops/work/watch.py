"""What watches a TRL trainer step by step: seeds, losses that are no numbers, stops, checkpoints and progress.

Every step draws its random numbers from a seed of its own, so no generator state has to be kept and a run that is
carried on at any step goes on with the same bits. TRL's own saving, logging and resuming stay off.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from huggingface_hub import constants
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loops.work.blocks import keep_every_block
from state.records import JsonObject, seed_from

CLIP = 1.0
NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
T = TypeVar("T")


class Diverged(Exception):
    """The loss or the gradient is no finite number; the text says at which step."""


Logs = dict[str, Any]


@dataclass(slots=True)
class Watch(TrainerCallback):  # type: ignore[misc]
    """`after` is told the whole run's step and its logs and may answer with a reason to stop; `save` follows it every
    `save_steps` steps, so that what it keeps covers the step.
    """

    seed: int
    first_step: int
    last_step: int
    save_steps: int
    after: Callable[[int, Logs], str | None]
    save: Callable[[int], None]
    progress: Callable[[float, str], None]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        reseed(seed_from(self.seed, "step", self.first_step + state.global_step))
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Logs | None = None, **_: Any
    ) -> TrainerControl:
        if logs is None or "loss" not in logs:
            return control
        step = self.first_step + state.global_step
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise Diverged(f"{name} is {logs[name]} at step {step}")
        control.should_training_stop = self.after(step, logs) is not None or control.should_training_stop
        if step < self.last_step and step % self.save_steps == 0:
            self.save(step)
        self.progress((step - self.first_step) / (self.last_step - self.first_step), f"step {step}")
        return control


def quiet_arguments(device: str, steps: int, seed: int) -> JsonObject:
    """The arguments both trainers share: nothing leaves the process, nothing is saved or printed, each step is logged
    to the watch, and losses that are no numbers are not hidden.
    """
    constants.HF_HUB_DISABLE_TELEMETRY = True
    cuda = device == "cuda"
    return {
        "use_cpu": not cuda, "bf16": cuda, "fp16": False, "max_steps": steps, "seed": seed % 2**32,
        "max_grad_norm": CLIP, "logging_strategy": "steps", "logging_steps": 1,
        "logging_nan_inf_filter": False, "save_strategy": "no", "eval_strategy": "no", "report_to": [],
        "disable_tqdm": True, "dataloader_num_workers": 0, "dataloader_pin_memory": False,
        "remove_unused_columns": False, "activation_checkpointing": False,
        "push_to_hub": False,
    }


def run_trainer(trainer: Any) -> None:
    """Train to the end or to the watch's stop."""
    trainer.remove_callback(PrinterCallback)
    keep_every_block()                 # each step asks for what the one before it left
    gc.freeze()                        # the trainer collects garbage first thing: spare it everything that was imported
    try:
        trainer.train()
    finally:
        gc.unfreeze()


def reseed(seed: int) -> None:
    """As `torch.manual_seed`, which writes down the whole call stack for every device that is not in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


def halving(batch: int, attempt: Callable[[int], T]) -> T:
    """Run `attempt`; out of memory, once more with half the batch at a time (it is told how many; 0 means all)."""
    try:
        return attempt(0)
    except Exception as error:
        if batch % 2 or not ran_out_of_memory(error):
            raise
    gc.collect()                         # outside the except: its traceback still holds the first attempt's tensors,
    torch.cuda.empty_cache()             # and a trainer and its callbacks hold each other
    return attempt(batch // 2)


def ran_out_of_memory(error: Exception) -> bool:
    """Whether it was memory that failed: a device's, or the host's, which libraries tell of in words only."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY))
