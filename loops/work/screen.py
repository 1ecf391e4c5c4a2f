"""Tries a genome cheaply (the job "screen"): built in place in a warm model, scored, raced against the incumbent.

Parents and the shell that candidates are built into stay in the worker's cache between jobs, beside the yardstick's
own book of models, tokens and scores; what the current job does not name is dropped. A path has a depth of its own and
so no shell: it is put together anew out of the parents' tensors. Nothing is written: a candidate that wins is built by
the job "build". Invariant: the scores are those of the model that "build" writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from loops.architecture.genome import models_of, template_of
from loops.architecture.paths import PATH
from loops.work.build import Tensors, composed, place, read_tensors
from loops.work.paths import path_config
from safety.yardstick.compare import Comparison, Race, paired
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scorebook import ScoreBook
from safety.yardstick.scoring import Scored, Scores, assemble_model, load_model, load_tokenizer, score_items
from safety.yardstick.tasks import Seal, draw
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, Split, canonical

T = TypeVar("T")
MOST_KEPT_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Drawn:
    """Items of one task."""

    task: TaskSpec
    items: list[Item]


@dataclass(frozen=True, slots=True)
class Placed:
    """A candidate in memory: the shell that holds its weights, and the digest of the model the shell came from."""

    shell: Scored
    template: str


@dataclass(slots=True)
class Warm:
    """What a worker keeps between screenings, all of it keyed by digests."""

    tensors: dict[str, Tensors] = field(default_factory=dict)
    shells: dict[str, Scored] = field(default_factory=dict)
    tokenizers: dict[str, Any] = field(default_factory=dict)
    seals: dict[str, Seal] = field(default_factory=dict)
    draws: dict[tuple[str, int, int, str], list[Item]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bed:
    """One job's view of what is warm: candidates are placed, models are scored, items are drawn."""

    spec: JobSpec
    desk: Desk
    warm: Warm
    book: ScoreBook

    @classmethod
    def of(cls, spec: JobSpec, desk: Desk) -> Bed:
        warm: Warm = desk.cache.setdefault("screen", Warm())
        named = {name.removeprefix("model:") for name in spec.inputs}
        for kept in (warm.tensors, warm.shells, warm.tokenizers):
            for digest in kept.keys() - named:
                kept.pop(digest)
        return cls(spec, desk, warm, ScoreBook(desk, int(spec.params["batch"])))

    @property
    def tasks(self) -> list[TaskSpec]:
        return [TaskSpec.from_json(body) for body in self.spec.params["tasks"]]

    def candidate(self, change: JsonObject) -> Placed:
        """A warm model whose weights are the candidate's until the next one is placed."""
        for digest in models_of(change):
            _kept(self.warm.tensors, digest, lambda d: read_tensors(self.desk.inputs[f"model:{d}"], self.desk.device))
        template = template_of(change)
        if change["kind"] == PATH:
            return Placed(self._path(change, template), template)
        shell = _kept(self.warm.shells, template, self._shell)
        place(change, self.warm.tensors, shell.model.state_dict())
        return Placed(shell, template)

    def drawn(self, count: int, seed: int) -> list[Drawn]:
        """`count` search items of every task, none of them sealed. Raises TaskError where there are too few."""
        return [Drawn(task, self._items(task, count, seed)) for task in self.tasks]

    def scored(self, candidate: Placed, drawn: Drawn) -> Scores:
        tokens = self.book.tokens(candidate.shell, candidate.template, drawn.items)
        return score_items(candidate.shell, drawn.task, drawn.items, self.book.batch, tokens)

    def known(self, digest: str, drawn: Drawn) -> Scores:
        """Scores of a saved model; an item it has met before is not scored again."""
        return self.book.scores(digest, f"model:{digest}", drawn.task, drawn.items)

    def _items(self, task: TaskSpec, count: int, seed: int) -> list[Item]:
        seal = self.spec.inputs.get("seal", "")
        key = (canonical(task.to_json()), count, seed, seal)
        if key not in self.warm.draws:
            self.warm.draws[key] = draw(
                task, Split.SEARCH, count, seed, _kept(self.warm.seals, seal, lambda _: Seal.of(self.desk.inputs))
            )
            for old in list(self.warm.draws)[:-MOST_KEPT_DRAWS]:
                del self.warm.draws[old]
        return self.warm.draws[key]

    def _path(self, change: JsonObject, template: str) -> Scored:
        """A model of its own depth, put together as loading the built one would; it shares the parents' tensors."""
        folders = {digest: self.desk.inputs[f"model:{digest}"] for digest in models_of(change)}
        config, tensors = path_config(change, folders), dict(composed(change, self.warm.tensors))
        tokenizer = _kept(self.warm.tokenizers, template, lambda digest: load_tokenizer(folders[digest]))
        return assemble_model(config, tensors, tokenizer, self.desk.device)

    def _shell(self, digest: str) -> Scored:
        """A loaded model to build into. ValueError where the file's tensors are not the model's."""
        shell = load_model(self.desk.inputs[f"model:{digest}"], self.desk.device)
        held, stored = shell.model.state_dict(), self.warm.tensors[digest]
        reached = {held[name].data_ptr() for name in stored if name in held}
        lost = [name for name, tensor in held.items() if tensor.data_ptr() not in reached]
        unknown = [name for name in stored if name not in held]
        if lost or unknown:
            name = (lost + unknown)[0]
            raise ValueError(f"model {digest[:12]} cannot be screened in place: tensor {name} is renamed on loading")
        return shell


def screen(spec: JobSpec, desk: Desk) -> Produced:
    """Job "screen". Inputs "model:<digest>" of everything named, and "seal"; counts are items per task.

    Params: change, incumbent, tasks, fitness_seed, fitness_count, fresh_seed, fresh_count, race_batch, batch, level (of
    the race, .05). A candidate that is not above the incumbent on the shared items is hopeless without a race.
    """
    bed, params = Bed.of(spec, desk), spec.params
    candidate = bed.candidate(params["change"])
    shared = bed.drawn(params["fitness_count"], params["fitness_seed"])
    new = np.concatenate([bed.scored(candidate, drawn) for drawn in shared])
    old = np.concatenate([bed.known(params["incumbent"], drawn) for drawn in shared])
    race, comparison = Race(better_at=1.0 / float(params.get("level", 0.05))), paired([], [])
    if new.mean() > old.mean():
        comparison = _raced(bed, candidate, _fresh(bed, shared), race)
    else:
        race.decision = "hopeless"
    values = {
        "fitness": round(float(new.mean()), 6), "incumbent_fitness": round(float(old.mean()), 6),
        "fitness_scores": "".join("1" if score >= 1 else "0" for score in new),
        "race": {"decision": race.decision, "n": race.n, "mean": round(comparison.mean, 6), "e": round(race.e, 6)},
        "comparison": comparison.to_json(),
    }
    return Produced(values, items=len(new) + comparison.n + bed.book.scored)


def _fresh(bed: Bed, shared: Sequence[Drawn]) -> list[Drawn]:
    """Items for this comparison only: what the shared items already selected on is left out."""
    fresh, params = [], bed.spec.params
    for met, drawn in zip(shared, bed.drawn(params["fresh_count"], params["fresh_seed"]), strict=True):
        known = {item.id for item in met.items}
        left = [item for item in drawn.items if item.id not in known]
        if not left:
            raise ValueError(f"task {met.task.name}: no search items are left beyond the shared ones")
        fresh.append(Drawn(met.task, left))
    return fresh


def _raced(bed: Bed, candidate: Placed, fresh: Sequence[Drawn], race: Race) -> Comparison:
    """Feed the race chunk by chunk until it decides; the paired comparison over everything it was fed."""
    news: list[Scores] = []
    olds: list[Scores] = []
    for part in _chunks(fresh, int(bed.spec.params["race_batch"])):
        news.append(bed.scored(candidate, part))
        olds.append(bed.known(bed.spec.params["incumbent"], part))
        if race.add(news[-1] - olds[-1]):
            break
    return race.settled(paired(np.concatenate(news), np.concatenate(olds)))


def _chunks(fresh: Sequence[Drawn], size: int) -> Iterator[Drawn]:
    """Chunks of every task in turn, so that no task is judged before another."""
    for start in range(0, max(len(drawn.items) for drawn in fresh), size):
        for drawn in fresh:
            if part := drawn.items[start : start + size]:
                yield Drawn(drawn.task, part)


def _kept(kept: dict[str, T], digest: str, make: Callable[[str], T]) -> T:
    if digest not in kept:
        kept[digest] = make(digest)
    return kept[digest]
