"""Whether the new items of nominations and watches are the ones that were committed to: they are dealt once more.

Part of `kaizend verify`. The seed has to follow from the vault's bytes, and the deal from the seed. Only what this
version of the program dealt can be dealt again: another one may draw otherwise, and its deals stand on their bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from safety.yardstick.fresh import dealt_items, sealed_seed
from safety.yardstick.items import TaskSpec, read_items
from safety.yardstick.tasks import sealed_ids
from state.records import Event, JsonObject

PathOf = Callable[[str], Path]


def check_deals(rows: Sequence[JsonObject], path_of: PathOf, data: Mapping[str, str], code: str) -> Iterator[str]:
    """Problems, one line each, naming the row. `rows` are ledger rows as JSON, `data` the digests of training data."""
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        try:
            yield from _checked(row, by_id, path_of, data, code)
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            yield f"row {row['id']}: its new items cannot be dealt again: {type(error).__name__}: {error}"


def _checked(
    row: JsonObject, by_id: Mapping[int, JsonObject], path_of: PathOf, data: Mapping[str, str], code: str
) -> Iterator[str]:
    evidence = row["evidence"]
    if evidence.get("code") != code:
        return
    if row["event"] == Event.RELEASE and "dealt" in evidence:
        asked = by_id[evidence["nomination"]]
        counts = {task["name"]: task["vault_items"] for task in asked["evidence"]["tasks"]}
        wanted = {name: counts[name] for name in asked["evidence"]["dealing"]}
        yield from _deal(row, asked, evidence, "gate", wanted, (path_of, data))
    found = evidence.get("watch") or {}
    if row["event"] != Event.RELEASE and found.get("dealt"):
        asked = by_id[by_id[found["release"]]["evidence"]["nomination"]]
        wanted = dict.fromkeys([*found["targets"], *sorted(found["margins"])], found["items"])
        yield from _deal(row, asked, found, "watch", wanted, (path_of, data))


def _deal(
    row: JsonObject, asked: JsonObject, found: JsonObject, purpose: str, counts: Mapping[str, int],
    places: tuple[PathOf, Mapping[str, str]],
) -> Iterator[str]:
    path_of, data = places
    fixed = asked["evidence"]
    if found["seed"] != sealed_seed(path_of(fixed["vault"]), purpose, fixed["k"]):
        yield f"row {row['id']}: the seed of its new items does not follow from the vault"
        return
    tasks = [TaskSpec.from_json(body) for body in fixed["tasks"] if body["name"] in counts]
    sources = [path_of(digest) for _, digest in sorted(data.items())]
    again = dealt_items(tasks, counts, found["seed"], sealed_ids(path_of(fixed["seal"])), sources)
    for name, items in again.items():
        file = path_of(found["dealt"]) / f"{name}.jsonl"
        if [item.id for item in read_items(file)] != [item.id for item in items]:
            yield f"row {row['id']}: the new items of {name} are not those that its seed deals"
