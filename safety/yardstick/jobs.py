"""The yardstick's job functions: "score", "report" and "compare".

Everybody who wants a number about a saved model asks for one of these jobs. Invariant: nothing here reads sealed items
but a report, which is for people; what proposes changes asks for "score" and "compare".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from safety.yardstick.compare import Race, paired, wilson
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scorebook import ScoreBook
from safety.yardstick.scoring import BATCH, Scores
from safety.yardstick.sealed import load_guard, load_vault
from safety.yardstick.tasks import Seal, draw
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, Split

SEALED_KINDS = frozenset({"gate", "watch", "report"})
"""The kinds of job that may read sealed items."""


def score(spec: JobSpec, desk: Desk) -> Produced:
    """Jobs "score" and "report": score every input "model:<name>" on one split of some tasks.

    Params: "tasks" (TaskSpec JSON), "split" (search unless told), "count" items a task (guard and vault: all unless
    told), "seed", "batch". Inputs beside the models: "seal" for search, "guard" or "vault" for a report.
    Values: {name: {task: {"correct", "n", "mean", "low", "high"}}}, the last two a 95 % interval. Output "scores": a
    file {name: {task: {"ids": [...], "scores": [...]}}}. ValueError where a job that may not asks for a sealed split.
    """
    _refuse_sealed(spec)
    tasks = _tasks(spec)
    items = {task.name: items_of(spec, desk, task) for task in tasks}
    book = ScoreBook(desk, int(spec.params.get("batch", BATCH)))
    names = sorted(name for name in spec.inputs if name.startswith("model:"))
    values: JsonObject = {}
    kept: JsonObject = {}
    for done, name in enumerate(names):
        short = name.removeprefix("model:")
        scores = {t.name: book.scores(spec.inputs[name], name, t, items[t.name]) for t in tasks}
        values[short] = {task: _summary(found) for task, found in scores.items()}
        kept[short] = {
            task: {"ids": [item.id for item in items[task]], "scores": found.tolist()} for task, found in scores.items()
        }
        desk.progress((done + 1) / len(names), f"{short} scored")
    path = desk.folder / "scores.json"
    path.write_text(json.dumps(kept, sort_keys=True), encoding="utf-8")
    return Produced(values, {"scores": path}, items=book.scored)


def compare(spec: JobSpec, desk: Desk) -> Produced:
    """Job "compare": is "model:new" better than "model:old" on the same fresh search items?

    Params: "tasks", "count" items a task, "seed", "batch", "race" (on unless false: score batch by batch and stop as
    soon as the answer is clear), "level" of the race (0.05) and "d_min" (0.02: the smallest gain worth finding). Input
    "seal" keeps sealed items out and holds the pools.
    Values: {task: Comparison} and "pooled" (Comparison over all tasks) and "race" ({"decision", "n", "e", "futility"},
    decision null when neither was clear). Where the race stopped, the pooled p-value is the race's, valid in spite of
    that; those of single tasks are not. Output "scores": a file {task: {"ids", "new", "old"}} of what was scored.
    """
    _refuse_sealed(spec)
    tasks = _tasks(spec)
    batch = int(spec.params.get("batch", BATCH))
    book = ScoreBook(desk, batch)
    race = Race(d_min=float(spec.params.get("d_min", 0.02)), better_at=1.0 / float(spec.params.get("level", 0.05)))
    racing = bool(spec.params.get("race", True))
    pending = [(task, items_of(spec, desk, task)) for task in tasks]
    found: dict[str, list[tuple[Item, float, float]]] = {task.name: [] for task in tasks}
    rounds = _rounds(pending, batch if racing else max([len(items) for _, items in pending], default=1))
    for done, (task, items) in enumerate(rounds):
        new, old = (book.scores(spec.inputs[name], name, task, items) for name in ("model:new", "model:old"))
        found[task.name] += zip(items, new.tolist(), old.tolist(), strict=True)
        desk.progress((done + 1) / len(rounds), f"{task.name}: {len(found[task.name])} items")
        if race.add(new - old) and racing:
            break
    return _compared(found, race, racing, desk, book.scored)


def items_of(spec: JobSpec, desk: Desk, task: TaskSpec) -> list[Item]:
    """The items of a job for one task, by its params "split", "count" and "seed". Raises ValueError for a sealed
    split where the job may not read it, and where an input is missing."""
    split = Split(spec.params.get("split", Split.SEARCH))
    count = spec.params.get("count")
    if split is Split.SEARCH:
        if count is None:
            raise ValueError(f"a {spec.kind} job on search items needs a count")
        return _search_items(spec, desk, task, int(count))
    if str(split) not in desk.inputs:
        raise ValueError(f"a {spec.kind} job on {split} items needs the input {str(split)!r}")
    _refuse_sealed(spec)
    load = load_vault if split is Split.VAULT else load_guard
    items = load(desk.inputs[str(split)], task)
    return items if count is None else items[: int(count)]


def _search_items(spec: JobSpec, desk: Desk, task: TaskSpec, count: int) -> list[Item]:
    """Fresh search items; the same draw is kept, because several models of one comparison are scored on it."""
    kept: dict[Any, list[Item]] = desk.cache.setdefault("yardstick.items", {})
    seal = spec.inputs.get("seal", "")
    key = (json.dumps(task.to_json(), sort_keys=True), count, int(spec.params.get("seed", spec.seed)), seal)
    if key not in kept:
        if len(kept) > 64:
            kept.clear()
        kept[key] = draw(task, Split.SEARCH, count, key[2], Seal.of(desk.inputs))
    return kept[key]


def _refuse_sealed(spec: JobSpec) -> None:
    for split in (Split.VAULT, Split.GUARD):
        asks = str(split) in spec.inputs or spec.params.get("split") == split
        if asks and spec.kind not in SEALED_KINDS:
            raise ValueError(f"a {spec.kind} job may not read the {split}")


def _tasks(spec: JobSpec) -> list[TaskSpec]:
    tasks = [TaskSpec.from_json(body) for body in spec.params["tasks"]]
    if not tasks:
        raise ValueError(f"a {spec.kind} job needs at least one task")
    return tasks


def _summary(scores: Scores) -> JsonObject:
    correct, n = float(scores.sum()), len(scores)
    low, high = wilson(correct, n)
    return {"correct": round(correct), "n": n, "mean": correct / n if n else 0.0, "low": low, "high": high}


def _rounds(pending: Sequence[tuple[TaskSpec, list[Item]]], size: int) -> list[tuple[TaskSpec, list[Item]]]:
    """The tasks' items in pieces of `size`, the tasks taking turns."""
    pieces = [[(t, items[at : at + size]) for at in range(0, len(items), size)] for t, items in pending]
    return [piece for turn in zip_longest(*pieces) for piece in turn if piece is not None]


def _compared(
    found: Mapping[str, Sequence[tuple[Item, float, float]]], race: Race, racing: bool, desk: Desk, scored: int
) -> Produced:
    values: JsonObject = {"race": race.to_json()}
    kept: JsonObject = {}
    for task, rows in found.items():
        new, old = [row[1] for row in rows], [row[2] for row in rows]
        values[task] = paired(new, old).to_json()
        kept[task] = {"ids": [row[0].id for row in rows], "new": new, "old": old}
    rows = [row for rows in found.values() for row in rows]
    pooled = paired([row[1] for row in rows], [row[2] for row in rows])
    values["pooled"] = (race.settled(pooled) if racing else pooled).to_json()
    path = desk.folder / "scores.json"
    path.write_text(json.dumps(kept, sort_keys=True), encoding="utf-8")
    return Produced(values, {"scores": path}, items=scored)
