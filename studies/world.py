"""The demo's world in one process: its models, made once a seed and kept, and the real jobs, without a daemon.

What a study finds here is found by the product's own code: loops propose, judge and learn, and their jobs are done by
the functions that workers call. Nothing is admitted by bounds, nothing is recorded. Invariant: an arm of a study has a
workshop of its own, so that no score another arm has paid for is free to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from daemon.demo import CONFIG_TOML, MODELS
from daemon.worker import JOBS, load
from loops.architecture.genome import models_of
from loops.architecture.loop import ArchitectureLoop
from loops.architecture.paths import PATH
from loops.architecture.settings import ArchitectureSettings
from loops.loop import Bench, Loop
from loops.work.screen import Bed
from safety.layers import depth_of
from safety.yardstick import bilingual
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import encode_items, load_model, score_items
from state.files import manifest_of
from state.jobs import Desk, JobFailed, JobResult, JobSpec
from state.records import Budget, Cost, Cycle, JsonObject, Outcome, Split, Verdict, digest_of, seed_from

ROOT = Path(__file__).resolve().parent.parent
NEVER = 10**6                   # a patience that no search here comes to the end of: nothing is trained
NOBODY: Any = None              # the inner loop
PLENTY = Budget(1e9, 0, 0)
BATCH = 64


@dataclass(frozen=True, slots=True)
class World:
    """The demo of one seed. `folders` are its models by digest; `tasks` those of its kaizend.toml, the target first."""

    seed: int
    base: str
    parents: tuple[str, ...]
    folders: dict[str, Path]
    settings: ArchitectureSettings
    tasks: tuple[TaskSpec, ...]

    @property
    def models(self) -> tuple[str, ...]:
        return (self.base, *self.parents)


def world_of(seed: int, models: Path) -> World:
    """The world that `kaizend demo --seed N` has with the models in that folder, its search without an end."""
    body = tomllib.loads(CONFIG_TOML.format(seed=seed))
    folders = {digest_of(manifest_of(models / name)): models / name for name in MODELS}
    base, *parents = folders
    settings = replace(
        ArchitectureSettings(**body["architecture"]), seed=seed, patience=NEVER, path_patience=NEVER,
    )
    return World(seed, base, tuple(parents), folders, settings, tuple(map(TaskSpec.from_json, body["tasks"])))


def models_of_seed(seed: int, folder: Path) -> Path:
    """The demo's models of one seed, made in `folder` where they are not there yet. CalledProcessError if they cannot
    be made.
    """
    models, partial = folder / f"seed-{seed}", folder / f"seed-{seed}.partial"
    if not models.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "loops.work.pretrain", str(partial), "--seed", str(seed), "--threads", "1"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
        partial.rename(models)
    return models


@dataclass(slots=True)
class Workshop:
    """Satisfies `state.jobs.Runner`: jobs are done at once, in this process, by the functions that workers call.

    `folders` are the models by digest, those that were built among them; `spent` counts items scored.
    """

    folder: Path
    folders: dict[str, Path]
    cache: dict[str, Any] = field(default_factory=dict)
    spent: int = 0

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        began = time.monotonic()
        produced = load(JOBS, spec.kind)(spec, self.desk(spec))
        outputs = {name: digest_of(manifest_of(path)) for name, path in produced.outputs.items()}
        self.folders |= {digest: produced.outputs[name] for name, digest in outputs.items()}
        self.spent += produced.items
        cost = Cost(time.monotonic() - began, items=produced.items, tokens=produced.tokens)
        return JobResult(produced.values, outputs, cost)

    def run_all(
        self, specs: Sequence[JobSpec], *, timeout_seconds: float | None = None
    ) -> list[JobResult | JobFailed]:
        return [self.run(spec) for spec in specs]

    def desk(self, spec: JobSpec) -> Desk:
        folder = self.folder / spec.digest
        folder.mkdir(parents=True, exist_ok=True)
        inputs = {name: self.folders[digest] for name, digest in spec.inputs.items()}
        return Desk(folder, inputs, "cpu", 1, self.cache)


@dataclass(frozen=True, slots=True)
class Climb:
    """Where a search ended: its model in force, how often that moved, how many candidates, items scored of which so
    many on paths through layers. Where data are mixed, the tokens that each cycle saw of every source.
    """

    model: str
    moves: int
    candidates: int
    spent: int
    on_paths: int
    by_source: tuple[dict[str, int], ...] = ()


def climb(
    world: World, settings: ArchitectureSettings, tasks: Sequence[TaskSpec], start: str, workshop: Workshop, items: int
) -> Climb:
    """The architecture loop from `start` until one more screening might go over `items` items scored."""
    loop = ArchitectureLoop(
        settings, [task.to_json() for task in tasks], NOBODY, world.base, world.parents,
        depth=lambda digest: depth_of(workshop.folders[digest]),
    )
    dearest = 2 * len(tasks) * (settings.fitness_items + settings.fresh_items)
    state, model, moves, candidates, paths, begun = loop.start(), start, 0, 0, 0, workshop.spent
    while workshop.spent - begun + dearest <= items:
        before, own_seed = workshop.spent, seed_from("study", settings.seed, candidates)
        candidate = loop.propose(state, model, model, own_seed)
        cycle = Cycle(candidates, loop.name, None, candidates, candidate, state, PLENTY)
        bench = Bench(cycle, workshop, "study", no_descent, PLENTY.seconds, own_seed)
        outcome = loop.judge(candidate, loop.run(candidate, bench))
        state = loop.learn(state, candidate, outcome)
        candidates += 1
        paths += workshop.spent - before if candidate.change["kind"] == PATH else 0
        if outcome.verdict is Verdict.PROMOTED:
            assert outcome.result is not None
            model, moves = outcome.result, moves + 1
    return Climb(model, moves, candidates, workshop.spent - begun, paths)


@dataclass(frozen=True, slots=True)
class Exam:
    """`count` search items of every task, the same for each merge of the world's models, which answers all of them."""

    world: World
    tasks: Sequence[TaskSpec]
    workshop: Workshop
    count: int

    def fitness(self, change: JsonObject) -> float:
        """The mean of the tasks' scores."""
        inputs = {f"model:{digest}": digest for digest in self.world.models}
        spec = JobSpec("screen", inputs, {"tasks": [task.to_json() for task in self.tasks], "batch": BATCH})
        bed = Bed.of(spec, self.workshop.desk(spec))
        candidate, drawn = bed.candidate(change), bed.drawn(self.count, seed_from("exam", self.world.seed))
        self.workshop.spent += self.count * len(self.tasks)
        return float(np.mean([bed.scored(candidate, part).mean() for part in drawn]))

    def built(self, change: JsonObject) -> str:
        """The digest of the merge, written."""
        inputs = {f"model:{digest}": digest for digest in models_of(change)}
        return self.workshop.run(JobSpec("build", inputs, {"change": change})).outputs["model"]


def unseen(task: TaskSpec) -> list[Item]:
    """Every vault item of a task's family: what no search draws and no model learnt from."""
    family = str(task.source["family"])
    count = bilingual.population(family, Split.VAULT)
    return [Item.of(prompt, answer) for prompt, answer in bilingual.items(family, Split.VAULT, count, seed=0)]


def answers(folder: Path, tasks: Sequence[TaskSpec]) -> dict[str, str]:
    """How a model does on all unseen items, by task, "1" for each it answers right."""
    scored, found = load_model(folder, "cpu"), {}
    for task in tasks:
        items = unseen(task)
        tokens = encode_items(scored.tokenizer, [(item.prompt, item.answer) for item in items])
        scores = score_items(scored, task, items, BATCH, tokens)
        found[task.name] = "".join("1" if score >= 1 else "0" for score in scores)
    return found


def no_descent(inner: Loop, parent: int, ordinal: int, base: str, incumbent: str, budget: Budget) -> Outcome:
    """The loops of a study have no loop inside."""
    raise JobFailed("a study's loop has no loop inside")
