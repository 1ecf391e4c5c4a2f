"""A training trial beside bare TRL: time of the same steps, start-up apart.

The job "train" as workers run it, with its look at every loss, its seeds and its checkpoints, beside SFTTrainer with
nothing of ours: the same model, rows in the same order, optimiser and learning rates. And the job "segment" beside
GRPOTrainer with the same questions, the same reward of the same verifier and the same random numbers, so that the same
answers are sampled; replay, which is more training and no overhead, is off. Time runs from the end of the first
optimiser step to the end of the last: loading, tokenising and what is written at the end are left out. Each side has a
process of its own and one thread, and they take turns step by step, so that whatever else the host does meets both;
which one begins alternates. Seconds of the clock and of the processor each give a figure.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from benchmarks.figure import Figure
from loops.pipeline.recipe import GRPO, SFT, Adapter, Recipe
from loops.pipeline.settings import PipelineSettings
from loops.work import replay
from loops.work.exercises import Exercises, plain, set_exercises
from loops.work.learner import Learner, load_learner, schedule
from loops.work.marking import REWARD_SCALE
from loops.work.pretrain import fresh_model, word_tokenizer
from loops.work.reinforce import SPARE_TOKENS, Errand, segment
from loops.work.rows import mixed, read_rows, tokenise
from loops.work.train import train
from loops.work.watch import CLIP, reseed
from safety.yardstick import bilingual
from safety.yardstick.items import TaskSpec
from safety.yardstick.tasks import NO_SEAL
from state.jobs import Desk, JobSpec
from state.records import JsonObject, seed_from

FORK = multiprocessing.get_context("fork")
PATIENCE_SECONDS = 300.0
TAKEN = "taken.json"
GOAL = 1.05
PAIRS = 5
SEED = 7
SOURCE = "expert_maths"
ADAPTER = Adapter()
SFT_RECIPE = Recipe(SFT.stage, 1e-3, batch=64, steps=200, adapter=ADAPTER)
GRPO_RECIPE = Recipe(GRPO.stage, 2e-4, batch=8, steps=200, adapter=ADAPTER, group=8)
TASK: JsonObject = {
    "name": "maths1", "role": "target", "source": {"kind": "bilingual", "family": "maths1"}, "vault_items": 10,
}

Seconds = tuple[float, float]
"""Of the clock and of the processor."""


@dataclass(slots=True)
class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """When each of so many steps began and ended: after each it is the turn of the `other` side, and then `own` says
    when to go on; `ready` is told of the first. To a trainer it gives the random numbers that a job draws in each step.
    """

    steps: int
    ready: Semaphore
    own: Semaphore
    other: Semaphore
    begun: list[Seconds] = field(default_factory=list)
    ended: list[Seconds] = field(default_factory=list)

    def mark(self) -> None:
        self.ended.append(now())
        (self.other if self.begun else self.ready).release()
        if len(self.ended) < self.steps and not self.own.acquire(timeout=PATIENCE_SECONDS):
            raise RuntimeError("the other side has stopped")
        self.begun.append(now())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.mark()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        reseed(seed_from(SEED, "step", state.global_step))

    @property
    def taken(self) -> Seconds:
        """By all steps but the first; what the processor did in the other's turns counts. RuntimeError where not all of
        them were done.
        """
        if len(self.ended) != self.steps:
            raise RuntimeError(f"{len(self.ended)} steps were done of {self.steps}: this compares nothing")
        clock = sum(end - begin for (begin, _), (end, _) in zip(self.begun, self.ended[1:], strict=False))
        return clock, self.ended[-1][1] - self.ended[0][1]


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


Side = Callable[[Path, Path, Stopwatch], None]
"""(what both are given, a folder of its own, what is told of each step)."""


def figures(pairs: int = PAIRS) -> Iterator[Figure]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kaizend-bench-") as folder:
        home = Path(folder)
        finished(in_process(made, home))
        for recipe, ours, bare in ((SFT_RECIPE, our_train, bare_train), (GRPO_RECIPE, our_segment, bare_segment)):
            took = [beside(home, recipe.steps, (ours, bare), begins=number % 2) for number in range(pairs)]
            for number, what in enumerate(("wall time", "processor time")):
                yield Figure.of(
                    f"{what} of {recipe.steps} {recipe.stage.upper()} steps in a trial, in those of bare TRL",
                    [mine[number] / theirs[number] for mine, theirs in took], GOAL,
                )


def made(home: Path) -> None:
    """The demo's rows, and a model of the demo's size that has learned some of them: reinforcement needs successes."""
    fresh_model(SEED).save_pretrained(home / "fresh")
    word_tokenizer().save_pretrained(home / "fresh")
    rows = bilingual.corpus(SOURCE, SEED, 6000)
    (home / SOURCE).write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    (home / "school").mkdir()
    given = {"model": home / "fresh", f"data:{SOURCE}": home / SOURCE}
    taught = train(train_spec(replace(SFT_RECIPE, learning_rate=5e-3)), Desk(home / "school", given))
    taught.outputs["model"].rename(home / "model")


def beside(home: Path, steps: int, sides: Sequence[Side], begins: int) -> list[Seconds]:
    """What each of two sides took; the one of number `begins` has the first turn. RuntimeError where one fails."""
    ready, turns = FORK.Semaphore(0), [FORK.Semaphore(0) for _ in sides]
    with tempfile.TemporaryDirectory(dir=home) as folder:
        folders = [Path(folder) / str(number) for number in range(len(sides))]
        started = [
            in_process(timed, side, home, own, Stopwatch(steps, ready, turn, other))
            for side, own, turn, other in zip(sides, folders, turns, reversed(turns), strict=True)
        ]
        for _ in sides:
            ready.acquire(timeout=PATIENCE_SECONDS)
        turns[begins].release()
        for process in started:
            finished(process)
        return [tuple(json.loads((own / TAKEN).read_text())) for own in folders]


def timed(side: Side, home: Path, folder: Path, stopwatch: Stopwatch) -> None:
    folder.mkdir()
    side(home, folder, stopwatch)
    (folder / TAKEN).write_text(json.dumps(stopwatch.taken))


def in_process(act: Callable[..., None], *given: Any) -> BaseProcess:
    process = FORK.Process(target=act, args=given, daemon=True)
    process.start()
    return process


def finished(process: BaseProcess) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"one side ended with code {process.exitcode}: this compares nothing")


def desk(home: Path, folder: Path, stopwatch: Stopwatch) -> Desk:
    return Desk(
        folder, {"model": home / "model", f"data:{SOURCE}": home / SOURCE},
        progress=lambda done, note: stopwatch.mark(),
    )


def train_spec(recipe: Recipe) -> JobSpec:
    params = {
        "recipe": recipe.to_json(), "from_step": 0, "to_step": recipe.steps,
        "save_steps": PipelineSettings().save_steps,
    }
    return JobSpec("train", {}, params, SEED)


def our_train(home: Path, folder: Path, stopwatch: Stopwatch) -> None:
    train(train_spec(SFT_RECIPE), desk(home, folder, stopwatch))


def bare_train(home: Path, folder: Path, stopwatch: Stopwatch) -> None:
    recipe = SFT_RECIPE
    learner = load_learner(home / "model", recipe, SEED, "cpu")
    rows = read_rows({f"data:{SOURCE}": home / SOURCE})
    order = mixed(rows, recipe.shares(rows.sources), recipe.batch, range(recipe.steps), SEED).reshape(-1).tolist()
    ids = tokenise(rows, order, learner.tokenizer).rows
    trained(SFTTrainer(
        model=learner.model,
        args=SFTConfig(
            str(folder), per_device_train_batch_size=recipe.batch, max_length=None, completion_only_loss=True,
            train_sampling_strategy="sequential", **defaults(recipe.steps),
        ),
        train_dataset=Dataset.from_list([
            {"input_ids": [*ids[place][0], *ids[place][1]],
             "completion_mask": [0] * len(ids[place][0]) + [1] * len(ids[place][1])} for place in order
        ]),
        processing_class=learner.tokenizer, optimizers=tuned(learner, recipe), callbacks=[stopwatch],
    ))


def segment_spec() -> JobSpec:
    params = {
        "recipe": GRPO_RECIPE.to_json(), "from_step": 0, "steps": GRPO_RECIPE.steps, "shaping": {
            "weights": {}, "strength": 0.0,
        }, "tasks": [TASK], "evidence": None, "probe_seed": 5, "probe_items": 32,
    }
    return JobSpec("segment", {}, params, SEED)


def our_segment(home: Path, folder: Path, stopwatch: Stopwatch) -> None:
    with patch.object(replay, "SUCCESSES_NEEDED", 10**9):
        segment(segment_spec(), desk(home, folder, stopwatch))


def bare_segment(home: Path, folder: Path, stopwatch: Stopwatch) -> None:
    recipe, errand = GRPO_RECIPE, Errand.of(segment_spec())
    learner = load_learner(home / "model", recipe, SEED, "cpu")
    exercises: Exercises = set_exercises(
        [TaskSpec.from_json(TASK)], NO_SEAL, learner.tokenizer, recipe.batch * recipe.steps, errand.question_seed,
        errand.probe_items, errand.probe_seed,
    )

    end = learner.tokenizer.eos_token_id

    def right(
        completions: list[str], completion_ids: list[list[int]], question: list[int], **_: Any
    ) -> list[float]:
        asked = [exercises.questions[place] for place in question]
        return [
            REWARD_SCALE * float(ids[-1] == end and each.verifier(each.item, text.strip()) == 1)
            for each, text, ids in zip(asked, completions, completion_ids, strict=True)
        ]

    trained(GRPOTrainer(
        model=learner.model, reward_funcs=[right],
        args=GRPOConfig(
            str(folder), per_device_train_batch_size=recipe.completions, num_generations=recipe.group,
            max_completion_length=exercises.longest + SPARE_TOKENS, temperature=recipe.temperature, beta=recipe.beta,
            scale_rewards="none", loss_type="dapo", shuffle_dataset=False, **defaults(recipe.steps),
        ),
        train_dataset=Dataset.from_dict({
            "prompt": [question.item.prompt for question in exercises.questions],
            "question": list(range(len(exercises.questions))),
        }),
        processing_class=plain(learner.tokenizer), optimizers=tuned(learner, recipe), callbacks=[stopwatch],
    ))


def defaults(steps: int) -> JsonObject:
    """What has to be said to run on a processor, and to do as many steps with the same clipping; the rest is TRL's."""
    return {
        "use_cpu": True, "bf16": False, "max_steps": steps, "seed": SEED, "max_grad_norm": CLIP, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
        "activation_checkpointing": False,
    }


def tuned(learner: Learner, recipe: Recipe) -> Any:
    return learner.optimizer, schedule(recipe, 0, learner.optimizer)


def trained(trainer: Any) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.train()


if __name__ == "__main__":
    for figure in figures(int(sys.argv[1]) if sys.argv[1:] else PAIRS):
        print(json.dumps(figure.to_json()), flush=True)
