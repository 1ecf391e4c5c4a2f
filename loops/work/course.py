"""A course: the steps of one recipe on rows that are all known beforehand, full weights or an adapter, with TRL.

inputs   model, checkpoint (to carry on from `from_step`), data:<source> ...
params   recipe, from_step, to_step, save_steps, max_tokens (None: no cap)
outputs  model (adapter merged), checkpoint
values   steps, tokens, loss_first, loss_last, curve, stopped, sources, learned

The jobs "train" and "prefer" are courses; a `Method` says what a row is and how it is learned from. Every step's rows
are known beforehand, so the steps that would go beyond `max_tokens` are cut off before the first one is done; "steps"
counts what was done. Where not even one fits, there are no outputs and "steps" is 0.

A pure function of the spec and its inputs. Killed anywhere and run again in the same folder, it goes on from its last
verified checkpoint and ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from loops.pipeline.recipe import Recipe
from loops.work import checkpoint
from loops.work.learner import Learner, load_learner, load_tokenizer, schedule, standing, take_up
from loops.work.rows import Batch, Places, Rows, mixed, to_device
from loops.work.stops import out_of_tokens
from loops.work.watch import Logs, Watch, halving, quiet_arguments, run_trainer
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, seed_from

PROBE_ROWS = 64
SAVE_STEPS = 100


class Material(Protocol):
    """Some rows, by their places, as what a step is made of."""

    def batch(self, places: Iterable[int]) -> Batch:
        """What the trainer's loss is given, padded on the right."""
        ...

    def count(self, places: Iterable[int]) -> int:
        """Tokens that learning from the rows takes, padding left out."""
        ...


class Method(Protocol):
    """What a row is, and how it is learned from."""

    def read(self, inputs: Mapping[str, Path]) -> Rows:
        """The rows of every source. Raises RowError."""
        ...

    def tokenise(self, rows: Rows, places: Iterable[int], tokenizer: Any) -> Material: ...

    def ready(self, material: Any, places: Sequence[int], errand: Errand, desk: Desk) -> Material:
        """The material with all that these rows need beside their tokens. No learner is in memory yet."""
        ...

    def loss(self, model: Any, batch: Batch, recipe: Recipe) -> Tensor:
        """The mean loss by which the sources are judged."""
        ...

    def trainer(self, recipe: Recipe, arguments: JsonObject, common: Mapping[str, Any]) -> Any:
        """TRL's trainer with the arguments of its configuration, to which the method adds its own, and the others."""
        ...


@dataclass(slots=True)
class Progress:
    """All that a run remembers beside weights and moments: exactly what a checkpoint keeps as its state."""

    step: int
    losses: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    micro_batch: int = 0

    def to_json(self) -> JsonObject:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Errand:
    """The spec's parameters, read once."""

    recipe: Recipe
    steps: range
    save_steps: int
    max_tokens: int | None
    seed: int

    @classmethod
    def of(cls, spec: JobSpec) -> Errand:
        params = spec.params
        steps = range(params["from_step"], params["to_step"])
        if not steps:
            raise ValueError(f"there is no step from {steps.start} to {steps.stop}")
        return cls(
            Recipe.from_json(params["recipe"]), steps, params.get("save_steps", SAVE_STEPS), params.get("max_tokens"),
            spec.seed,
        )


@dataclass(frozen=True, slots=True)
class Lesson:
    """The rows of every step that the tokens suffice for, (steps, batch), and a few fixed ones of each source on which
    loss is measured. `stopped` says in words why these are not all steps.
    """

    sources: Mapping[str, range]
    tokens: Material
    places: Places
    probes: Mapping[str, list[int]]
    steps: range
    stopped: str | None


def take_course(spec: JobSpec, desk: Desk, method: Method) -> Produced:
    """Run the steps from `from_step` to `to_step` of a recipe. Raises Diverged, and ValueError for bad inputs."""
    torch.set_num_threads(desk.threads)
    errand = Errand.of(spec)
    return halving(errand.recipe.batch, lambda micro_batch: _attempt(errand, desk, method, micro_batch))


def _attempt(errand: Errand, desk: Desk, method: Method, micro_batch: int) -> Produced:
    lesson = _set_lesson(errand, desk, method)
    if not lesson.steps:
        return Produced({"steps": 0, "tokens": 0, "stopped": lesson.stopped})
    learner = load_learner(desk.inputs["model"], errand.recipe, errand.seed, desk.device)
    progress = _begin(errand, desk, method, learner, lesson)
    progress.micro_batch = micro_batch or progress.micro_batch
    if progress.step < lesson.steps.stop:
        _run(errand, desk, method, learner, lesson, progress)
    return _finish(errand, desk, method, learner, lesson, progress)


def _set_lesson(errand: Errand, desk: Desk, method: Method) -> Lesson:
    rows = method.read(desk.inputs)
    shares = errand.recipe.shares(rows.sources) if rows.texts else {}
    places = mixed(rows, shares, errand.recipe.batch, errand.steps, errand.seed)
    if not places.size:
        raise ValueError("there are no rows to train on: every data source is empty")
    probes = {name: _probe_places(held, errand.seed, name) for name, held in rows.sources.items() if len(held)}
    probed = [place for probe in probes.values() for place in probe]
    tokens = method.tokenise(rows, [*places.reshape(-1).tolist(), *probed], load_tokenizer(desk.inputs["model"]))
    fit = _fitting(tokens, places, errand.max_tokens)
    stopped = out_of_tokens(errand.max_tokens, fit) if fit < len(errand.steps) else None
    if fit:
        tokens = method.ready(tokens, [*places[:fit].reshape(-1).tolist(), *probed], errand, desk)
    return Lesson(rows.sources, tokens, places[:fit], probes, errand.steps[:fit], stopped)


def _fitting(tokens: Material, places: Places, max_tokens: int | None) -> int:
    """How many steps from the first one on use no more than `max_tokens` together."""
    if max_tokens is None:
        return len(places)
    used = np.cumsum([tokens.count(row) for row in places.tolist()])
    return int(np.searchsorted(used, max_tokens, "right"))


def _begin(errand: Errand, desk: Desk, method: Method, learner: Learner, lesson: Lesson) -> Progress:
    """Where this run stands: at its own last checkpoint, else at the one it was given, else at the start."""
    take_up(learner, desk.inputs.get("checkpoint"), errand.recipe, errand.steps.start)
    found = checkpoint.latest(desk.folder / "steps")
    if found:
        learner.restore(found)
        return Progress(**found.state)
    return Progress(errand.steps.start, before=_probe(errand, method, learner, lesson))


def _run(
    errand: Errand, desk: Desk, method: Method, learner: Learner, lesson: Lesson, progress: Progress
) -> None:
    recipe, first = errand.recipe, progress.step
    micro = progress.micro_batch or recipe.batch
    left = lesson.places[first - errand.steps.start:]

    def after(step: int, logs: Logs) -> None:
        progress.step = step
        progress.losses.append(logs["loss"])

    def save(step: int) -> None:
        checkpoint.write_step(desk.folder / "steps", step, learner.groups(whole=False), progress.to_json())

    arguments = {
        "output_dir": str(desk.folder / "trl"), "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": recipe.batch // micro, "train_sampling_strategy": "sequential",
        "max_length": None, **quiet_arguments(desk.device, len(left), errand.seed),
    }
    run_trainer(method.trainer(recipe, arguments, {
        "model": learner.model,
        "train_dataset": Dataset.from_dict({"row": left.reshape(-1)}),
        "data_collator": lambda chosen: lesson.tokens.batch([row["row"] for row in chosen]),
        "processing_class": learner.tokenizer,
        "optimizers": (learner.optimizer, schedule(recipe, first, learner.optimizer)),
        "callbacks": [Watch(errand.seed, first, lesson.steps.stop, errand.save_steps, after, save, desk.progress)],
    }))


def _finish(
    errand: Errand, desk: Desk, method: Method, learner: Learner, lesson: Lesson, progress: Progress
) -> Produced:
    outputs = {"model": desk.folder / "model", "checkpoint": desk.folder / "checkpoint"}
    checkpoint.write(outputs["checkpoint"], learner.groups(whole=True), standing(errand.recipe, progress.step))
    after = _probe(errand, method, learner, lesson)
    learner.save(outputs["model"])
    used = lesson.places.reshape(-1).tolist()
    sources = {}
    for name in lesson.probes:
        mine = [place for place in used if place in lesson.sources[name]]
        drop = progress.before[name] - after[name]
        sources[name] = {"rows": len(mine), "tokens": lesson.tokens.count(mine), "loss_drop": drop}
    tokens = lesson.tokens.count(used)
    values = {
        "steps": len(lesson.steps), "tokens": tokens, "stopped": lesson.stopped, "sources": sources,
        "loss_first": progress.losses[0], "loss_last": progress.losses[-1], "curve": thinned(progress.losses),
        "learned": {"micro_batch": progress.micro_batch} if progress.micro_batch else {},
    }
    return Produced(values, outputs, items=len(used), tokens=tokens)


def _probe_places(held: range, seed: int, name: str) -> list[int]:
    generator = np.random.default_rng(seed_from(seed, "probe", name))
    return sorted(held.start + int(place) for place in generator.permutation(len(held))[:PROBE_ROWS])


def _probe(errand: Errand, method: Method, learner: Learner, lesson: Lesson) -> dict[str, float]:
    """The method's loss on each source's probe rows."""
    learner.model.eval()
    with torch.no_grad(), torch.autocast(learner.device, torch.bfloat16, enabled=learner.device == "cuda"):
        losses = {
            name: float(method.loss(
                learner.model, to_device(lesson.tokens.batch(places), learner.device), errand.recipe
            ))
            for name, places in lesson.probes.items()
        }
    learner.model.train()
    return losses


def thinned(curve: Sequence[float], points: int = 50) -> list[float]:
    """At most `points` means of neighbouring values."""
    width = max(1, -(-len(curve) // points))
    parts = [curve[begin:begin + width] for begin in range(0, len(curve), width)]
    return [sum(part) / len(part) for part in parts]

