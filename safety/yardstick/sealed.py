"""The splits that are sealed: drawn once, kept away from every loop, never disturbed again.

No loop imports this file, and the runner hands what is sealed to the gate, the watch and reports only. Loops get the
seal: the ids of sealed items, and of each file that a task reads the pool, what nothing has sealed. Invariants: no item
is in two sealed splits of whichever tasks; none is in the training data; none is in a pool.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from safety.yardstick.items import Item, TaskError, TaskSpec, item_id, normalised, read_items, write_items
from safety.yardstick.tasks import of_a_file, pool_file, sealed_ids, take, unsealed
from safety.yardstick.training import answered, are_preferences, files_in, rows_in, rows_of, texts_of
from safety.yardstick.verifiers import junk_paid
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, Split, digest_of

NONE: Final = "none"
"""The file in a sealed split that holds no task; a task's own file has an ending."""
_GRAM: Final = 13
"""Words in a row that two texts have in common only when one was copied from the other."""
_SHORTEST_GRAM: Final = 6
_TEMPLATE_SHARE: Final = 0.02
"""A run of six words in more than this share of a task's items belongs to its template."""

Splits = dict[Split, dict[str, list[Item]]]


def seal_tasks(spec: JobSpec, desk: Desk) -> Produced:
    """Job "seal", the one that reads the operator's files: draw the vault of every target and the guard of every guard
    task, and leave the rest to the search.

    Params: "tasks" (list of TaskSpec JSON). Inputs "data:<source>": training files or folders of them. Outputs
    "vault" and "guard" (folders of <task>.jsonl) and "seal" (folder of <task>.json, the sorted ids of that task's
    sealed items, and where the task reads a file <task>.jsonl, its pool). Values: what is in each split, by task, and
    "preferences", the sources that hold preferences. With an earlier seal as input "seal" nothing
    is drawn: its ids stay, and the pools of the tasks come to it. Raises ValueError naming file and number of items
    where the training data holds sealed items, and TaskError where a task has too few items, or a verifier that takes
    junk for right.
    """
    tasks = [TaskSpec.from_json(body) for body in spec.params["tasks"]]
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError("two tasks have the same name")
    if "seal" in desk.inputs:
        return Produced({}, {"seal": _completed(desk.inputs["seal"], tasks, desk.folder / "seal")})
    splits = _drawn(tasks, spec.seed)
    for task in tasks:
        drawn = next((by_task[task.name] for by_task in splits.values() if task.name in by_task), [])
        if problem := junk_paid(task, drawn):
            raise TaskError(problem)
    data = {name.removeprefix("data:"): path for name, path in sorted(desk.inputs.items()) if name.startswith("data:")}
    for name, path in data.items():
        check_overlap(splits, name, path)
    outputs = _written(splits, tasks, desk.folder)
    values: JsonObject = {
        str(split): {
            name: {"items": len(items), "digest": digest_of([item.to_json() for item in items])}
            for name, items in by_task.items()
        }
        for split, by_task in splits.items()
    }
    values["preferences"] = [name for name, path in data.items() if are_preferences(path)]
    return Produced(values, outputs)


def load_vault(path: Path, task: TaskSpec | str) -> list[Item]:
    """The sealed vault items of a target. Raises ValueError where the vault has none for it."""
    return _load(path, task, Split.VAULT)


def load_guard(path: Path, task: TaskSpec | str) -> list[Item]:
    """The sealed guard items of a guard task. Raises ValueError where there are none for it."""
    return _load(path, task, Split.GUARD)


def load_dealt(path: Path, task: TaskSpec | str) -> list[Item]:
    """The new items that were dealt for a task. Raises ValueError where there are none for it."""
    return _load(path, task, Split.VAULT)


def check_overlap(splits: Mapping[Split, Mapping[str, Sequence[Item]]], source: str, path: Path) -> None:
    """Raise ValueError when a training file holds sealed items: the same prompt or text, or the same run of 13 words
    (of the whole item, where it is shorter than that and has at least 6)."""
    for file in files_in(path):
        rows = [texts_of(each) for row in rows_of(file) for each in answered(row)]
        for split, by_task in splits.items():
            for task, items in by_task.items():
                found = overlapping(items, rows)
                if found:
                    raise ValueError(
                        f"data source {source!r} ({file.name}): {len(found)} of {len(items)} {split} items of task "
                        f"{task} are in it, the first is {found[0]}"
                    )


def training_rows(paths: Iterable[Path]) -> Iterator[list[str]]:
    """The texts of every row of training files, or of folders of them."""
    for path in paths:
        for row in rows_in(path):
            yield from map(texts_of, answered(row))


def overlapping(items: Sequence[Item], rows: Iterable[Sequence[str]]) -> list[str]:
    """Ids of the items that training rows contain. A row is its texts (`safety.yardstick.training.texts_of`)."""
    whole = {normalised(f"{item.prompt} {item.answer}"): item.id for item in items}
    ids = {item.id for item in items}
    grams = _grams_of(items)
    lengths = {len(gram) for gram in grams}
    found: set[str] = set()
    for row in rows:
        text = normalised(" ".join(row))
        if text in whole:
            found.add(whole[text])
        found |= ids & {item_id(part) for part in row}
        words = text.split()
        for length in lengths:
            for gram in _windows(words, length):
                found |= grams.get(gram, set())
    return [item.id for item in items if item.id in found]


def _grams_of(items: Sequence[Item]) -> dict[tuple[str, ...], set[str]]:
    """Runs of words that betray an item, with the items they betray.

    Words inside a run that many items share are the task's template. A run betrays an item by at least six words of the
    item's own, or by as many as its prompt has: next to a long template, one word in common with an item says nothing.
    """
    words_of = {item: normalised(f"{item.prompt} {item.answer}").split() for item in items}
    holders = Counter(run for words in words_of.values() for run in set(_windows(words, _SHORTEST_GRAM)))
    most = max(1, int(_TEMPLATE_SHARE * len(items)))
    grams: dict[tuple[str, ...], set[str]] = {}
    for item, words in words_of.items():
        own = [True] * len(words)
        for start, run in enumerate(_windows(words, _SHORTEST_GRAM)):
            if holders[run] > most:
                own[start : start + _SHORTEST_GRAM] = [False] * _SHORTEST_GRAM
        asked = len(normalised(item.prompt).split())
        needed = max(1, min(_SHORTEST_GRAM, sum(own[:asked])))
        length = min(_GRAM, len(words))
        for start, gram in enumerate(_windows(words, length) if length >= _SHORTEST_GRAM else ()):
            if sum(own[start : start + length]) >= needed:
                grams.setdefault(gram, set()).add(item.id)
    return grams


def _windows(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _drawn(tasks: Sequence[TaskSpec], seed: int) -> Splits:
    splits: Splits = {Split.VAULT: {}, Split.GUARD: {}}
    taken: set[str] = set()
    for task in tasks:
        split, count = (Split.VAULT, task.vault_items) if task.role == "target" else (Split.GUARD, task.guard_items)
        if count:
            items = take(task, split, count, seed, frozenset(taken))
            splits[split][task.name] = items
            taken |= {item.id for item in items}
    ids = Counter(item.id for by_task in splits.values() for items in by_task.values() for item in items)
    if any(count > 1 for count in ids.values()):
        raise ValueError("sealed splits share items")
    return splits


def _written(splits: Splits, tasks: Sequence[TaskSpec], folder: Path) -> dict[str, Path]:
    outputs = {name: folder / name for name in ("vault", "guard", "seal")}
    for path in outputs.values():
        path.mkdir(parents=True, exist_ok=True)
    for split, by_task in splits.items():
        for name, items in by_task.items():
            write_items(outputs[str(split)] / f"{name}.jsonl", items)
        if not by_task:
            (outputs[str(split)] / NONE).touch()                # an artefact is never an empty folder
    for task in tasks:
        sealed = sorted(item.id for by_task in splits.values() for item in by_task.get(task.name, []))
        (outputs["seal"] / f"{task.name}.json").write_text(json.dumps(sealed) + "\n", encoding="utf-8")
    _write_pools(outputs["seal"], tasks)
    return outputs


def _completed(earlier: Path, tasks: Sequence[TaskSpec], folder: Path) -> Path:
    """An earlier seal with the pools of some tasks."""
    folder.mkdir(exist_ok=True)
    for file in earlier.iterdir():
        shutil.copyfile(file, folder / file.name)
    _write_pools(folder, tasks)
    return folder


def _write_pools(seal: Path, tasks: Sequence[TaskSpec]) -> None:
    """Beside all the ids that are sealed: what they leave of each file."""
    ids = sealed_ids(seal)
    for task in tasks:
        if of_a_file(task):
            write_items(pool_file(seal, task.name), unsealed(task, ids))


def _load(path: Path, task: TaskSpec | str, split: Split) -> list[Item]:
    name = task if isinstance(task, str) else task.name
    file = path / f"{name}.jsonl"
    if not file.is_file():
        raise ValueError(f"the {split} holds no items of task {name}")
    return read_items(file)
