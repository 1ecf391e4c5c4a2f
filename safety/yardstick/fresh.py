"""New items for the sealed side: drawn for one nomination or one watch, from where no proposer ever draws.

Job "deal" and the seed it gets. Not here: the splits of a life (`sealed`). Invariants: what is dealt is in no sealed
split, in no training data and out of every search draw's reach (`tasks.reserved`); equal arguments deal equal items;
the seed depends on the bytes of the vault, so nobody who cannot read the vault can tell what will be dealt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from safety.yardstick.items import Item, TaskSpec, write_items
from safety.yardstick.sealed import overlapping, training_rows
from safety.yardstick.tasks import fresh_items, sealed_ids
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, Split, seed_from

GENERATED = ("bilingual", "reasoning_gym")


def can_deal(task: TaskSpec) -> bool:
    """Whether the task can generate items that nobody has seen; a file only has what is in it."""
    return task.source["kind"] in GENERATED


def sealed_seed(vault: Path, purpose: str, number: int) -> int:
    """The seed for the `number`-th deal of a purpose, from the bytes of the sealed vault."""
    whole = hashlib.sha256()
    for file in sorted(vault.rglob("*")) if vault.is_dir() else [vault]:
        if file.is_file():
            whole.update(hashlib.sha256(file.read_bytes()).digest())
    return seed_from(purpose, number, whole.hexdigest())


def split_of(task: TaskSpec) -> Split:
    """Targets deal from the vault's part of their world, guards from the guard's."""
    return Split.VAULT if task.role == "target" else Split.GUARD


def deal(spec: JobSpec, desk: Desk) -> Produced:
    """The job. Params: "tasks" (TaskSpec JSON) and "count" ({task: items at most}); inputs "seal" and "data:<source>".

    Output "vault": a folder of <task>.jsonl. Values: {task: number of items}.
    """
    tasks = [TaskSpec.from_json(body) for body in spec.params["tasks"]]
    data = [path for name, path in sorted(desk.inputs.items()) if name.startswith("data:")]
    dealt = dealt_items(tasks, spec.params["count"], spec.seed, sealed_ids(desk.inputs["seal"]), data)
    folder = desk.folder / "vault"
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in dealt.items():
        write_items(folder / f"{name}.jsonl", items)
    values: JsonObject = {name: len(items) for name, items in dealt.items()}
    return Produced(values, {"vault": folder})


def dealt_items(
    tasks: Sequence[TaskSpec], counts: Mapping[str, int], seed: int, sealed: frozenset[str], data: Sequence[Path]
) -> dict[str, list[Item]]:
    """New items of each task, at most `counts[task.name]`: fewer where its world holds no more. No item comes twice.

    A task whose world is used up by the sealed splits has none.
    """
    taken, dealt = sealed, dict[str, list[Item]]()
    for task in tasks:
        items = fresh_items(task, split_of(task), counts[task.name], seed, taken)
        known = set(overlapping(items, training_rows(data))) if data else set()
        dealt[task.name] = [item for item in items if item.id not in known]
        taken |= {item.id for item in items}
    return dealt
