"""Scores the stable model beside the base, the siblings and their uniform average on items that nobody has met.

    python -m examples.smollm2.compare [--items N] [--threads N]

The items are in no sealed split, in no training data and out of every search draw's reach (`tasks.fresh_items`), and
drawn with a seed of their own. Nothing is written, and nothing that it says reaches the daemon.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch

from daemon.genesis import began
from daemon.places import CONFIG_NAME, Places, read_places
from daemon.reports import artefact_path
from daemon.settings import load_settings
from loops.architecture.genome import Definition
from loops.work.build import place, read_tensors
from safety.operators import Operator
from safety.yardstick.compare import paired, wilson
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import Scored, Scores, load_model, score_items, stored_names
from safety.yardstick.tasks import fresh_items, sealed_ids
from state.errors import UserError
from state.records import Split

HERE = Path(__file__).resolve().parent
SEED = 20_201
BATCH = 32
STABLE = "stable"
UNIFORM = "uniform average"


@dataclass(frozen=True, slots=True)
class Asked:
    """Items of one task."""

    task: TaskSpec
    items: Sequence[Item]


def main() -> int:
    """Print the tables. Exit code 2 and one line where something is missing."""
    arguments = argparse.ArgumentParser(description="Score the stable model beside what it was made from.")
    arguments.add_argument("--items", type=int, default=400, help="new items of each task, at most")
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    try:
        for line in compared(HERE, given.items):
            print(line, flush=True)
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    return 0


def compared(folder: Path, count: int) -> Iterator[str]:
    """The lines of both tables for a folder in which the daemon has run. Raises UserError."""
    places = read_places(folder / CONFIG_NAME)
    models = load_settings(places.config).models
    asked = new_items(places, count)
    base, parents = folder / models.base, [folder / parent for parent in models.parents]
    saved = {"base": base, **{parent.name: parent for parent in parents}, STABLE: places.state / STABLE}
    found: dict[str, list[Scores]] = {}
    for name in ("base", *(parent.name for parent in parents), UNIFORM, STABLE):
        print(f"scoring {name}", file=sys.stderr, flush=True)
        scored = average(base, parents) if name == UNIFORM else load_model(saved[name], "cpu")
        found[name] = [score_items(scored, task.task, task.items, BATCH) for task in asked]
    yield from table(asked, found)
    yield ""
    yield from pairs(found)


def new_items(places: Places, count: int) -> list[Asked]:
    """At most `count` items of each task that nobody has met. Raises UserError where no life has begun."""
    begun = began(places.database)
    if begun is None:
        raise UserError(f"{places.database} is not there: run the daemon first")
    known = sealed_ids(artefact_path(places, begun.seal))
    return [Asked(task, fresh_items(task, Split.VAULT, count, SEED, known)) for task in begun.targets]


def average(base: Path, parents: Sequence[Path]) -> Scored:
    """The uniform average of some models, in memory."""
    scored = load_model(base, "cpu")
    models = {str(path): read_tensors(path) for path in (base, *parents)}
    definition = Definition(Operator.LINEAR, str(base), tuple(str(path) for path in parents))
    place(definition.change([1.0 / len(parents)] * len(parents)), models, stored_names(scored.model))
    return scored


def table(asked: Sequence[Asked], found: Mapping[str, Sequence[Scores]]) -> Iterator[str]:
    """Right answers of each model by task and together, with 95 % intervals."""
    heads = [*(f"{task.task.name} ({len(task.items)})" for task in asked), "together"]
    yield f"{'right of so many, in percent':<30}" + "".join(f"{head:>24}" for head in heads)
    for name, scores in found.items():
        yield f"{name:<30}" + "".join(f"{share(part):>24}" for part in [*scores, np.concatenate(scores)])


def share(scores: Scores) -> str:
    low, high = wilson(float(scores.sum()), len(scores))
    return f"{100 * float(scores.mean()):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def pairs(found: Mapping[str, Sequence[Scores]]) -> Iterator[str]:
    """Stable against each of the others, item by item on all tasks together."""
    stable = np.concatenate(found[STABLE])
    for name, scores in found.items():
        if name != STABLE:
            it = paired(stable, np.concatenate(scores))
            yield (
                f"stable against {name + ':':<18}{100 * it.mean:+6.1f} points on {it.n} items, better on {it.wins}, "
                f"worse on {it.losses}, one-sided p = {it.p_value:.2g}"
            )


if __name__ == "__main__":
    sys.exit(main())
