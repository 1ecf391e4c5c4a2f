"""Seals made on the spot, for tests of what draws from them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from safety.yardstick.items import TaskSpec, write_items
from safety.yardstick.tasks import of_a_file, pool_file, unsealed


def seal_of(tasks: Sequence[TaskSpec], folder: Path, sealed: Collection[str] = ()) -> Path:
    """A seal in which those ids are sealed, with the pools of the tasks that read a file."""
    folder.mkdir(exist_ok=True)
    (folder / "sealed.json").write_text(json.dumps(sorted(sealed)))
    for task in filter(of_a_file, tasks):
        write_items(pool_file(folder, task.name), unsealed(task, frozenset(sealed)))
    return folder
