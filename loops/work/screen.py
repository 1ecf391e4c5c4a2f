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
from loops.architecture.settings import Objective
from loops.work.build import composed, homes_of, place, read_tensors
from loops.work.paths import path_config
from loops.work.sketch import sketch
from loops.work.weights import Tensors, opened
from safety.adapters import is_adapter
from safety.serving import in_turn
from safety.yardstick.compare import Comparison, Race, losses, paired, pieces
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scorebook import ScoreBook
from safety.yardstick.scoring import (
    Scored,
    Scores,
    assemble_model,
    load_model,
    load_tokenizer,
    score_items,
    stored_names,
)
from safety.yardstick.tasks import Seal, draw, draw_some
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, Split, canonical

T = TypeVar("T")
MOST_KEPT_DRAWS = 32
LATENCY_STEP = 0.05             # ratios are rounded to it: models of one size measure .98 to 1.02 of each other


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
            self.tensors(digest, change.get("base"))
        template = template_of(change)
        if change["kind"] == PATH:
            return Placed(self._path(change, template), template)
        shell = _kept(self.warm.shells, template, self._shell)
        place(change, self.warm.tensors, stored_names(shell.model))
        return Placed(shell, template)

    def tensors(self, digest: str, base: str | None = None) -> Tensors:
        """The tensors of a saved model, in memory; of an adapter its factors and the base's tensors."""
        folder, device = self.desk.inputs[f"model:{digest}"], self.desk.device
        if base is not None and is_adapter(folder):
            over = self.tensors(base)
            return _kept(self.warm.tensors, digest, lambda _: opened(folder, over, device))
        return _kept(self.warm.tensors, digest, lambda _: read_tensors(folder, device))

    def drawn(self, count: int, seed: int) -> list[Drawn]:
        """`count` search items of every task, none of them sealed. Raises TaskError where there are too few."""
        return [Drawn(task, self._items(task, count, seed)) for task in self.tasks]

    def guards(self, seed: int | None = None) -> list[Drawn]:
        """Search items of every guard that the params name, fewer where it has fewer: those of the comparison by their
        seed, or the ones that all candidates share, by the seed of the fitness. Raises TaskError where there are none.
        """
        asked: JsonObject = self.spec.params.get("guards", {"tasks": []})
        seed = self.spec.params["fitness_seed"] if seed is None else seed
        tasks = [TaskSpec.from_json(body) for body in asked["tasks"]]
        return [Drawn(task, self._items(task, asked["count"], seed, fewer=True)) for task in tasks]

    def scored(self, candidate: Placed, drawn: Drawn) -> Scores:
        tokens = self.book.tokens(candidate.shell, candidate.template, drawn.items)
        return score_items(candidate.shell, drawn.task, drawn.items, self.book.batch, tokens)

    def known(self, digest: str, drawn: Drawn) -> Scores:
        """Scores of a saved model; an item it has met before is not scored again."""
        return self.book.scores(digest, f"model:{digest}", drawn.task, drawn.items)

    def _items(self, task: TaskSpec, count: int, seed: int, fewer: bool = False) -> list[Item]:
        seal = self.spec.inputs.get("seal", "")
        key = (canonical(task.to_json()), count, seed, seal)
        if key not in self.warm.draws:
            sealed = _kept(self.warm.seals, seal, lambda _: Seal.of(self.desk.inputs))
            self.warm.draws[key] = (
                draw_some(task, count, seed, sealed) if fewer else draw(task, Split.SEARCH, count, seed, sealed)
            )
            for old in list(self.warm.draws)[:-MOST_KEPT_DRAWS]:
                del self.warm.draws[old]
        return self.warm.draws[key]

    def _path(self, change: JsonObject, template: str) -> Scored:
        """A model of its own depth, put together as loading the built one would; it shares the parents' tensors."""
        homes = homes_of(change, {digest: self.desk.inputs[f"model:{digest}"] for digest in models_of(change)})
        config, tensors = path_config(change, homes), dict(composed(change, self.warm.tensors))
        tokenizer = _kept(self.warm.tokenizers, template, lambda digest: load_tokenizer(homes[digest]))
        return assemble_model(config, tensors, tokenizer, self.desk.device)

    def _shell(self, digest: str) -> Scored:
        """A loaded model to build into. ValueError where the file's tensors are not the model's."""
        shell = load_model(self.desk.inputs[f"model:{digest}"], self.desk.device)
        held, stored = stored_names(shell.model), self.warm.tensors[digest]
        reached = {held[name].data_ptr() for name in stored if name in held}
        lost = [name for name, tensor in shell.model.state_dict().items() if tensor.data_ptr() not in reached]
        unknown = [name for name in stored if name not in held]
        if lost or unknown:
            name = (lost + unknown)[0]
            raise ValueError(f"model {digest[:12]} cannot be screened in place: tensor {name} is another on loading")
        return shell


def screen(spec: JobSpec, desk: Desk) -> Produced:
    """Job "screen". Inputs "model:<digest>" of everything named, and "seal"; counts are items per task.

    Params: change, incumbent, tasks, fitness_seed, fitness_count, fresh_seed, fresh_count, race_batch, batch, level (of
    the race, .05). A candidate that is not above the incumbent on the shared items is hopeless without a race.
    "guards" ({tasks, count, margin, seed}) adds the value "guards": what a candidate that beats the incumbent loses
    on each. "measures" (some of size, latency, forgetting and sketch) and "base", a model's digest, add the values
    "measures" and "sketch". Latency depends on the machine, everything else on the spec alone.
    """
    bed, params = Bed.of(spec, desk), spec.params
    candidate = bed.candidate(params["change"])
    shared = bed.drawn(params["fitness_count"], params["fitness_seed"])
    new = np.concatenate([bed.scored(candidate, drawn) for drawn in shared])
    old = np.concatenate([bed.known(params["incumbent"], drawn) for drawn in shared])
    level = float(params.get("level", 0.05))
    race, comparison = Race(better_at=1.0 / level), paired([], [])
    if new.mean() > old.mean():
        comparison = _raced(bed, candidate, _fresh(bed, shared), race)
    else:
        race.decision = "hopeless"
    values: JsonObject = {
        "fitness": round(float(new.mean()), 6), "incumbent_fitness": round(float(old.mean()), 6),
        "fitness_scores": "".join("1" if score >= 1 else "0" for score in new),
        "race": {"decision": race.decision, "n": race.n, "mean": round(comparison.mean, 6), "e": round(race.e, 6)},
        "comparison": comparison.to_json(),
    }
    found = _measured(bed, candidate, shared)
    won = race.decision == "better" or (race.decision is None and comparison.p_value < level)
    lost = _losses(bed, candidate, level) if won else {}
    more = sum(entry["n"] for entry in lost.values()) + found.items
    return Produced({**values, **found.values, **({"guards": lost} if lost else {})},
                    items=len(new) + comparison.n + more + bed.book.scored)


def _losses(bed: Bed, candidate: Placed, level: float) -> JsonObject:
    """What the candidate loses on search items of each guard, none of which it was selected on."""
    asked: JsonObject = bed.spec.params.get("guards", {})
    if not asked:
        return {}
    forgetting = Objective.FORGETTING in bed.spec.params.get("measures", ())
    met = {item for drawn in bed.guards() for item in drawn.items} if forgetting else set()

    def pairs(drawn: Drawn) -> Iterator[tuple[Scores, Scores]]:
        left = [item for item in drawn.items if item not in met]
        for part in pieces(left, int(bed.spec.params["race_batch"])):
            some = Drawn(drawn.task, part)
            yield bed.scored(candidate, some), bed.known(bed.spec.params["incumbent"], some)

    return losses({drawn.task.name: pairs(drawn) for drawn in bed.guards(asked["seed"])}, asked["margin"], level)


def _measured(bed: Bed, candidate: Placed, shared: Sequence[Drawn]) -> Produced:
    """What the params ask to be measured besides quality: "measures" by name, and "sketch"."""
    asked: Sequence[str] = bed.spec.params.get("measures", ())
    measures: JsonObject = {}
    items, base, model = 0, bed.spec.params.get("base", ""), candidate.shell.model
    if Objective.SIZE in asked:
        measures[Objective.SIZE] = sum(tensor.numel() for tensor in model.parameters())
    if Objective.LATENCY in asked:
        pair = {"new": candidate.shell, "old": bed.book.model(base, f"model:{base}")}
        ratio = in_turn(pair, [item for drawn in shared for item in drawn.items])["latency_ratio"]
        measures[Objective.LATENCY] = round(round(ratio / LATENCY_STEP) * LATENCY_STEP, 6)
    if Objective.FORGETTING in asked:
        losses_by_item = [bed.known(base, drawn) - bed.scored(candidate, drawn) for drawn in bed.guards()]
        lost = np.concatenate([np.zeros(0, dtype=np.float32), *losses_by_item])
        items, measures[Objective.FORGETTING] = len(lost), round(float(lost.mean()), 6) if len(lost) else 0.0
    values: JsonObject = {"measures": measures} if measures else {}
    if "sketch" in asked:
        values["sketch"] = sketch(model.state_dict(), bed.tensors(base))
    return Produced(values, items=items)


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
