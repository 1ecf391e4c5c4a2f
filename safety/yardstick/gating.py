"""Job "gate": score a nominated model against the stable one on the sealed vault, then on the guards.

The one job, beside "report", that may read the vault. It scores lazily: no batch is scored that the decision does not
need. The decision itself is `safety.gate.decide`; here are only items and models. Invariant: both models meet each
item in the same tensor shape, in an order that only the vault and the two models fix.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safety.gate import Rules, decide, items_digest
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import BATCH, Scored, load_model, score_items
from safety.yardstick.sealed import load_dealt, load_guard, load_vault
from safety.yardstick.verifiers import canaries, make_verifier
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, seed_from

STRETCH = 4            # decisions are looked at every so many scoring batches
CANARY_ITEMS = 16      # per task: junk answers are tried on so many references
NOISE_ITEMS = 512      # per task, for the A/A test

Question = tuple[TaskSpec, Item]


@dataclass(slots=True)
class Record:
    """Per-item scores in the order of scoring, as `safety.gate.disagreements` reads them."""

    items: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    old: list[float] = field(default_factory=list)

    def to_json(self) -> JsonObject:
        return {"items": self.items, "tasks": self.tasks, "new": self.new, "old": self.old}


@dataclass(frozen=True, slots=True)
class Pair:
    """The two models in memory and the number of rows they score at once."""

    new: Scored
    old: Scored
    batch: int

    def differences(self, questions: Sequence[Question], record: Record) -> Iterator[list[float]]:
        """Score stretch by stretch, as far as the caller asks, keeping every score in `record`."""
        for start in range(0, len(questions), self.batch * STRETCH):
            part = questions[start : start + self.batch * STRETCH]
            new, old = scores_of(self.new, part, self.batch), scores_of(self.old, part, self.batch)
            record.items += [item.id for _, item in part]
            record.tasks += [task.name for task, _ in part]
            record.new += new
            record.old += old
            yield [a - b for a, b in zip(new, old, strict=True)]


def gate(spec: JobSpec, desk: Desk) -> Produced:
    """The job. Inputs: model:new, model:old, vault, guard, and dealt where this nomination has fresh items; params: k,
    alpha, d0, futility, margins, procedure, releases, tasks, batch, aa.

    `tasks` are TaskSpec JSON and `margins` names the guard tasks. With `aa` the two models are one and the same, and
    the share of items on which it disagrees with itself under another batching is all that is found out. Raises
    ValueError for a target without vault items or a guard without guard items.
    """
    tasks = [TaskSpec.from_json(body) for body in spec.params["tasks"]]
    if spec.params.get("aa"):
        return _noise(spec, desk, tasks)
    rules = Rules.from_json(dict(spec.params))
    order = (spec.inputs["vault"], spec.inputs["model:new"], spec.inputs["model:old"])
    targets = [
        (task, item) for task in tasks if has_vault(task) for item in vault_items(desk, task)
    ]
    guards = {
        task.name: [(task, item) for item in load_guard(desk.inputs["guard"], task)]
        for task in tasks if task.name in rules.margins
    }
    _refuse_empty(targets, guards, rules)
    failures = failed_canaries(targets)
    if failures:
        return Produced({**rules.to_json(), "decision": "canary_failed", "canaries": failures, "n": 0, "e": 1.0})
    return _judge(desk, rules, shuffled(targets, *order),
                  {name: shuffled(questions, *order) for name, questions in guards.items()},
                  int(spec.params.get("batch", BATCH)))


def _judge(
    desk: Desk, rules: Rules, targets: Sequence[Question], guards: Mapping[str, Sequence[Question]], batch: int
) -> Produced:
    pair = Pair(
        load_model(desk.inputs["model:new"], desk.device), load_model(desk.inputs["model:old"], desk.device), batch
    )
    target_record, guard_records = Record(), {name: Record() for name in guards}
    findings = decide(
        rules, pair.differences(targets, target_record),
        {name: pair.differences(questions, guard_records[name]) for name, questions in guards.items()},
    )
    scores: JsonObject = {
        "targets": target_record.to_json(),
        "guards": {name: record.to_json() for name, record in guard_records.items() if record.items},
    }
    values = {
        **rules.to_json(), **findings.to_json(), "items_digest": items_digest(scores),
        "tasks": _means([target_record, *guard_records.values()]),
    }
    items = 2 * (len(target_record.items) + sum(len(record.items) for record in guard_records.values()))
    return Produced(values, {"scores": kept(desk.folder, scores)}, items=items)


def vault_items(desk: Desk, task: TaskSpec) -> list[Item]:
    """The items that a nomination is judged on: those dealt for it where there are any, else the vault's."""
    dealt = desk.inputs.get("dealt")
    if dealt is not None and (dealt / f"{task.name}.jsonl").is_file():
        return load_dealt(dealt, task)
    return load_vault(desk.inputs["vault"], task)


def has_vault(task: TaskSpec) -> bool:
    return task.role == "target" and task.vault_items > 0


def has_guard(task: TaskSpec) -> bool:
    return task.role == "guard" and task.guard_items > 0


def shuffled(questions: Sequence[Question], *parts: str) -> list[Question]:
    """The questions of all tasks interleaved, in the one order that the parts fix."""
    ordered = sorted(questions, key=lambda question: (question[0].name, question[1].id))
    random.Random(seed_from("gate", *parts)).shuffle(ordered)
    return ordered


def scores_of(model: Scored, questions: Sequence[Question], batch: int) -> list[float]:
    """One score a question; tasks that are scored the same way share their batches."""
    together: dict[str, list[int]] = {}
    for place, (task, _) in enumerate(questions):
        together.setdefault("" if task.verifier == "exact" else task.name, []).append(place)
    scores = [0.0] * len(questions)
    for places in together.values():
        found = score_items(model, questions[places[0]][0], [questions[place][1] for place in places], batch)
        for place, score in zip(places, found, strict=True):
            scores[place] = float(score)
    return scores


def failed_canaries(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Per task, the junk answers that its verifier lets through; empty when every verifier is sound."""
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question[0].name, []).append(question)
    found = {
        name: canaries(make_verifier(asked[0][0]), [item for _, item in asked[:CANARY_ITEMS]])
        for name, asked in by_task.items()
    }
    return {name: failures for name, failures in found.items() if failures}


def _refuse_empty(targets: Sequence[Question], guards: Mapping[str, Sequence[Question]], rules: Rules) -> None:
    if not targets:
        raise ValueError("no target task has vault items, so nothing could ever be released")
    for name in rules.margins:
        if not guards.get(name):
            raise ValueError(f"guard task {name} has no guard items")


def _noise(spec: JobSpec, desk: Desk, tasks: Sequence[TaskSpec]) -> Produced:
    """The A/A test on sealed items of every task: the same model, half the rows, the items in reverse."""
    asked: list[Question] = []
    for task in tasks:
        items = load_guard(desk.inputs["guard"], task) if has_guard(task) else []
        items = load_vault(desk.inputs["vault"], task) if has_vault(task) else items
        asked += [(task, item) for item in items[:NOISE_ITEMS]]
    model, batch = load_model(desk.inputs["model:new"], desk.device), int(spec.params.get("batch", BATCH))
    first = scores_of(model, asked, batch)
    second = scores_of(model, asked[::-1], max(1, batch // 2))[::-1]
    differing = sum(a != b for a, b in zip(first, second, strict=True))
    noise = differing / len(asked) if asked else 0.0
    return Produced({"aa": True, "items": len(asked), "disagreements": differing, "noise": noise}, items=2 * len(asked))


def _means(records: Sequence[Record]) -> JsonObject:
    """For people: how often each task was right, over the items that were scored."""
    sums: dict[str, list[float]] = {}
    for record in records:
        for task, new, old in zip(record.tasks, record.new, record.old, strict=True):
            total = sums.setdefault(task, [0.0, 0.0, 0.0])
            total[0] += 1
            total[1] += new
            total[2] += old
    return {task: {"n": int(n), "new": new / n, "old": old / n} for task, (n, new, old) in sums.items()}


def kept(folder: Path, scores: Any) -> Path:
    """The file in which a job leaves its per-item scores."""
    file = folder / "scores.json"
    file.write_text(json.dumps(scores), encoding="utf-8")
    return file
