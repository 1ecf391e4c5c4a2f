"""What an arm of a study found, kept on disk as it comes in: a study that was cut short goes on where it was.

A finding is kept under everything that it depends on, the program's sources among it, so an old one never answers for
a new program. Invariant: nothing is read that this study would not have measured itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from safety.yardstick.items import TaskSpec
from state.code import digests_of
from state.records import canonical, digest_of
from studies.paired import Interval, difference, pairs_of
from studies.world import ROOT, Climb, Workshop, World, answers, unseen

MERGES = ("daemon/worker.py", "loops/architecture/genome.py", "loops/work", "safety", "state", "studies/world.py")
"""What a merge and its scores come from."""
LOOP = (*MERGES, "daemon/demo.py", "loops/architecture", "loops/loop.py")
"""What the architecture loop's search comes from."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How the model of one arm and seed answers all unseen items, by task, "1" for right; and what it took."""

    right: dict[str, str]
    climb: Climb
    seconds: float


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of one study, each a file below `folder`."""

    study: str
    folder: Path

    def of(
        self, arm: str, world: World, items: int, sources: Sequence[str], make: Callable[[Workshop], Climb]
    ) -> Finding:
        """The finding of an arm, measured where it is not kept. `arm` says all of it that `sources` do not."""
        key = [self.study, arm, world.seed, list(world.models), items, read_at_start(tuple(sources))]
        file = self.folder / "findings" / f"{self.study}-{world.seed}-{digest_of(key)[:16]}.json"
        if file.is_file():
            body = json.loads(file.read_text())
            right = {task.name: body["right"][task.name] for task in world.tasks}
            climb = Climb(**{**body["climb"], "by_source": tuple(body["climb"]["by_source"])})
            return Finding(right, climb, body["seconds"])
        with TemporaryDirectory(prefix="kaizend-study-") as scratch:
            workshop = Workshop(Path(scratch), dict(world.folders))
            began = time.monotonic()
            climb = make(workshop)
            seconds = round(time.monotonic() - began, 1)
            found = Finding(answers(workshop.folders[climb.model], world.tasks), climb, seconds)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(canonical({"arm": arm, **asdict(found)}))
        partial.rename(file)
        return found


def apart(new: Finding, old: Finding, tasks: Sequence[TaskSpec]) -> Interval:
    """new - old over the tasks, each with the same weight; the interval by pairs of operands within each."""
    found = [difference(new.right[task.name], old.right[task.name], _groups(task)) for task in tasks]
    return sum(mean for mean, _ in found) / len(found), sum(half**2 for _, half in found) ** 0.5 / len(found)


@cache
def read_at_start(sources: tuple[str, ...]) -> dict[str, str]:
    """The digests of the sources; what is written to them while a study runs is not what it runs."""
    return digests_of(ROOT, sources)


@cache
def _groups(task: TaskSpec) -> tuple[tuple[int, ...], ...]:
    return tuple(pairs_of(unseen(task)))
