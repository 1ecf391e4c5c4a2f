"""Drawing items: which items a split of a task has, in an order that a seed decides.

Search items are drawn by `draw`, sealed ones once, by `sealed`, which asks `take` for them. A file of the operator's
holds both, so only the sealing reads it: draws go by the pool, what the sealing left of the file. Invariants: equal
arguments give equal items on every host; no two splits of a task share an item; no item comes twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

from safety.yardstick import bilingual, gym
from safety.yardstick.items import Item, TaskError, TaskSpec, read_items
from state import given
from state.records import Split, seed_from

__all__ = [
    "Seal", "TaskError", "draw", "fresh_items", "of_a_file", "pinned", "pool_file", "read_jsonl", "reserved",
    "sealed_ids", "stream", "take", "unplaced", "unsealed",
]

_SPAN: Final = 2**29
"""How many numbers of a generator belong to one split: search has the first span, vault the second, guard the third."""
_TRIES_PER_ITEM: Final = 20
_RESERVED_SHARE: Final = 8
"""One in so many items of a generator's world is kept for the sealed side's new items: search never draws it."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What search draws go by: the ids of sealed items, and the folder with the pools of tasks that read a file."""

    ids: frozenset[str] = frozenset()
    folder: Path | None = None

    @classmethod
    def of(cls, inputs: Mapping[str, Path]) -> Seal:
        """The seal among a job's inputs. Without one nothing is sealed, and no task has a pool."""
        folder = inputs.get("seal")
        return cls() if folder is None else cls(sealed_ids(folder), folder)

    def besides(self, ids: Iterable[str]) -> Seal:
        """The same with further ids that no draw shall contain."""
        return replace(self, ids=self.ids.union(ids))

    def pool(self, task: TaskSpec) -> tuple[Item, ...]:
        """What the sealing left of a task's file. Raises TaskError where the seal has no pool of the task."""
        file = pool_file(self.folder, task.name) if self.folder else None
        if file is None or not file.is_file():
            raise TaskError(f"task {task.name}: the seal has no pool of it, and its file is read by the sealing alone")
        status = file.stat()
        return _pool(file, status.st_mtime_ns, status.st_size)


NO_SEAL: Final = Seal()


def draw(task: TaskSpec, split: Split, count: int, seed: int, seal: Seal = NO_SEAL) -> list[Item]:
    """`count` different search items, none of them sealed; another seed draws others.

    Raises TaskError for another split than search, and when there are too few items.
    """
    if split is not Split.SEARCH:
        raise TaskError(f"task {task.name}: the {split} is drawn once, when it is sealed")
    items = _pooled(task, seed, seal) if of_a_file(task) else stream(task, split, seed, count)
    return _first(task, split, count, items, seal.ids)


def of_a_file(task: TaskSpec) -> bool:
    """Whether the task's items are those of a file of the operator's."""
    return bool(task.source["kind"] == "jsonl")


def reserved(task: TaskSpec, item: Item) -> bool:
    """Whether an item is kept from every search draw although nothing has sealed it.

    Generators meet the same question under different numbers, so their spans alone keep no two splits apart. The other
    sources are cut by what is asked.
    """
    return task.source["kind"] == "reasoning_gym" and int(item.id, 16) % _RESERVED_SHARE == 0


def fresh_items(task: TaskSpec, split: Split, count: int, seed: int, known: frozenset[str]) -> list[Item]:
    """At most `count` different items of a sealed split's world that are not `known` and that no search draw can hold.

    For the sealed side only. ValueError for the search split, TaskError for a task that cannot generate.
    """
    if split is Split.SEARCH:
        raise ValueError("new items for the sealed side are never search items")
    kind = task.source["kind"]
    if of_a_file(task):
        raise TaskError(f"task {task.name}: a file holds no new items")
    found: dict[str, Item] = {}
    wanted = count * _RESERVED_SHARE if kind == "reasoning_gym" else count + len(known)
    for item in stream(task, split, seed, wanted):
        if len(found) == count:
            break
        if item.id not in known and (kind != "reasoning_gym" or reserved(task, item)):
            found.setdefault(item.id, item)
    return list(found.values())


def take(task: TaskSpec, split: Split, count: int, seed: int, sealed: frozenset[str]) -> list[Item]:
    """The first `count` items of `stream` that are neither sealed nor repeated: for the sealing. Raises TaskError."""
    return _first(task, split, count, stream(task, split, seed, count), sealed)


def _first(task: TaskSpec, split: Split, count: int, items: Iterator[Item], sealed: frozenset[str]) -> list[Item]:
    taken: dict[str, Item] = {}
    if count > 0:
        for item in items:
            if item.id not in sealed and not (split is Split.SEARCH and reserved(task, item)):
                taken.setdefault(item.id, item)
            if len(taken) == count:
                break
    if len(taken) < count:
        raise TaskError(f"task {task.name}: {_where(task)} has {len(taken)} {split} items, {count} are needed")
    return list(taken.values())


def stream(task: TaskSpec, split: Split, seed: int, count: int) -> Iterator[Item]:
    """Items of one split in the order of `seed`, repetitions included; about `count` of them will be used."""
    if of_a_file(task):
        return _of_file(task, split)
    if task.source["kind"] == "reasoning_gym":
        return _generated(task, split, seed, count)
    return _bilingual(task, split, seed, count)


def pinned(task: TaskSpec) -> TaskSpec:
    """The task with the sha256 of its file in its source, so that a file changed later is refused. Raises TaskError."""
    if not of_a_file(task):
        return task
    path = Path(task.source["path"])
    return replace(task, source=dict(task.source) | {"sha256": hashlib.sha256(_bytes(path)).hexdigest()})


def unplaced(task: TaskSpec) -> TaskSpec:
    """The task as everybody but the sealing gets it: without the place of its file."""
    return replace(task, source={key: value for key, value in task.source.items() if key != "path"})


def unsealed(task: TaskSpec, sealed: frozenset[str]) -> list[Item]:
    """The pool of a task that reads a file: what is left of it to search, by id. Raises TaskError."""
    return sorted((item for item in stream(task, Split.SEARCH, 0, 0) if item.id not in sealed), key=lambda i: i.id)


def pool_file(seal: Path, task: str) -> Path:
    """Where a seal has the pool of a task."""
    return seal / f"{task}.jsonl"


def sealed_ids(seal: Path) -> frozenset[str]:
    """Every item id in a seal (a folder of <task>.json): what no search draw may contain, for whichever task."""
    return frozenset(chain.from_iterable(json.loads(path.read_text()) for path in sorted(seal.glob("*.json"))))


def read_jsonl(path: Path) -> list[Item]:
    """The items of a file with one {"prompt", "answer"} a line. Raises TaskError naming file, line and field."""
    return _parsed(path, _bytes(path))


def _pooled(task: TaskSpec, seed: int, seal: Seal) -> Iterator[Item]:
    yield from sorted(seal.pool(task), key=lambda item: _place(item, "draw", seed))


def _of_file(task: TaskSpec, split: Split) -> Iterator[Item]:
    """Items of a file in the order in which it is cut. Vault and guard go on with the search's: where another task has
    sealed some of theirs, the next ones follow."""
    path = Path(task.source["path"])
    try:
        status = path.stat()
    except OSError as error:
        raise TaskError(f"task {task.name}: {path}: {error.strerror}") from error
    items, digest = _file(path, status.st_mtime_ns, status.st_size)
    if task.source.get("sha256", digest) != digest:
        raise TaskError(f"task {task.name}: {path} has changed since the task was set up")
    cut = task.source.get("cut", 0)
    ordered = sorted(items, key=lambda item: _place(item, "cut", cut))
    first, second = task.vault_items, task.vault_items + task.guard_items
    parts = {Split.VAULT: ordered[:first], Split.GUARD: ordered[first:second], Split.SEARCH: []}
    yield from (*parts[split], *ordered[second:])


def _place(item: Item, purpose: str, seed: int) -> str:
    return hashlib.sha256(f"{purpose}/{seed}/{item.id}".encode()).hexdigest()


def _generated(task: TaskSpec, split: Split, seed: int, count: int) -> Iterator[Item]:
    generator, config = task.source["generator"], task.source.get("config")
    tries = _TRIES_PER_ITEM * count + 1_000
    span = list(Split).index(split) * _SPAN
    start = seed_from("draw", task.source.get("cut", 0), seed) % (_SPAN - tries)
    for number in range(span + start, span + start + tries):
        found = gym.entry(generator, config, number)
        yield Item.of(str(found["question"]).strip(), str(found["answer"]).strip(), number)


def _bilingual(task: TaskSpec, split: Split, seed: int, count: int) -> Iterator[Item]:
    family = task.source["family"]
    try:
        held = bilingual.population(family, split)
        for wanted in (min(count, held), held):
            for prompt, answer in bilingual.items(family, split, wanted, seed):
                yield Item.of(prompt, answer)
    except (KeyError, ValueError) as error:
        raise TaskError(f"task {task.name}: bilingual family {family!r}: {error}") from error


@lru_cache(maxsize=16)
def _pool(path: Path, modified: int, size: int) -> tuple[Item, ...]:
    """The items of a pool; `modified` and `size` only make the cache notice changes."""
    return tuple(read_items(path))


@lru_cache(maxsize=16)
def _file(path: Path, modified: int, size: int) -> tuple[tuple[Item, ...], str]:
    """The different items of a file and the file's sha256; `modified` and `size` only make the cache notice changes."""
    content = _bytes(path)
    unique: dict[str, Item] = {}
    for item in _parsed(path, content):
        unique.setdefault(item.id, item)
    return tuple(unique.values()), hashlib.sha256(content).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return given.read_bytes(path)
    except given.Unreadable as error:
        raise TaskError(f"{path}: {error}") from error


def _parsed(path: Path, content: bytes) -> list[Item]:
    items = [_line(path, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    if not items:
        raise TaskError(f"{path}: the file is empty, it needs one object with prompt and answer a line")
    return items


def _line(path: Path, number: int, line: bytes) -> Item:
    try:
        body: Any = given.parse_json(line.decode())
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}, line {number}: not UTF-8") from error
    except given.Unreadable as error:
        raise TaskError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(body, dict):
        raise TaskError(f"{path}, line {number}: not an object with prompt and answer")
    for key in ("prompt", "answer"):
        if key not in body:
            raise TaskError(f"{path}, line {number}: field {key!r} is missing")
        if not isinstance(body[key], str) or not body[key].strip():
            raise TaskError(f"{path}, line {number}: field {key!r} must be text that is not empty")
        if any("\ud800" <= char <= "\udfff" for char in body[key]):
            raise TaskError(f"{path}, line {number}: field {key!r} holds half a character, which is no text")
    return Item.of(body["prompt"].strip(), body["answer"].strip())


def _where(task: TaskSpec) -> str:
    source = task.source
    return str(source.get("path") or source.get("generator") or source.get("family") or "the pool of its file")
