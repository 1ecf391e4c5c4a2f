"""The page of Akiba's picture in miniature: its tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from studies import akiba
from studies.findings import LOOP, Finding, Findings, apart
from studies.paired import Interval, over_seeds, share, together
from studies.words import filled, points, population, seeds_in_words, standings, table
from studies.world import World, models_of_seed, world_of

ITEMS = 40_000
SPENT = "items that each search may score"
SEEDS = 5
SOURCES = (*LOOP, "studies/akiba.py")

BySeed = Mapping[int, Mapping[str, Finding]]
Gaps = Mapping[str, Mapping[str, tuple[list[Interval], Interval]]]


def pages(folder: Path, seeds: int = SEEDS, items: int = ITEMS) -> Iterator[tuple[str, bool]]:
    """parents, uniform, best single lambda, parameter space, data-flow space, both"""
    found: dict[int, dict[str, Finding]] = {}
    for seed in range(seeds):
        world = world_of(seed, models_of_seed(seed, folder / "models"))
        findings = Findings("akiba", folder)
        found[seed] = {
            name: findings.of(name, world, items, SOURCES, partial(arm, world, items=items))
            for name, arm in akiba.ARMS.items()
        }
        yield page(world, found, seeds, items), True


def page(world: World, found: BySeed, seeds: int, items: int) -> str:
    """The text of docs/studies/akiba.md."""
    done, target = sorted(found), world.tasks[0]
    minutes = sum(finding.seconds for arms in found.values() for finding in arms.values()) / 60
    gaps = {
        better: {name: _apart(world, found, better, name) for name in akiba.ARMS if name != better}
        for better in (akiba.PARAMETER, akiba.DATA_FLOW, akiba.BOTH)
    }
    return filled(f"""# Akiba's picture in miniature

`make study NAME=akiba` repeats this ({minutes:.0f} minutes of searching on one busy core;
{seeds_in_words(done, seeds)}). Akiba et al. (arXiv 2403.13187) merged a model of maths with one of Japanese: parents
9.6, 18.4 and 30.0, parameter space 52.0, data-flow space 36.4, both 55.2 on maths in Japanese. Here the models are
those of `kaizend demo --seed N`: maths in one language, another language, and {target.name}, maths in the other
language, which nobody was taught. The searches are the architecture loop's own, from the better parent on, on search
items of {target.name} alone, {items:,} items scored for each (an item answered once by one model is one, the
incumbent's included). Then every model answers all unseen items, those of the vault's population: {population(world)}.
Accuracy in percent. Intervals are 95 %: over seeds Student's, within a seed by unordered pair of operands, because
items that share one are not independent.

## {target.name}: what was searched for

{_accuracies(found, target.name)}

## What became of the other tasks

Means over seeds; nothing was searched for here.

{_tasks(world, found)}

## What the searches did

{_effort(found)}

## Differences on {target.name}, in points

{_gaps(gaps, done)}
## What it says, and what it does not

{_remarks(gaps)}
- "Both" has half of its items for merges and the other half for paths through the layers of the merge that won and of
  the parents.
- The best single λ is the best of {akiba.GRID} linear merges on the same {akiba.EXAM_ITEMS:,} search items.
- Models of 4 layers and 177 thousand parameters, two parents of one base. A path through so few layers is a crude
  thing; Akiba's had 64 to choose from.
- Every search is one run a seed: an interval over {len(done)} seeds says how sure the mean is.
""")


def _apart(world: World, found: BySeed, new: str, old: str) -> tuple[list[Interval], Interval]:
    """new less old on the target, for each seed and over them."""
    each = [apart(arms[new], arms[old], world.tasks[:1]) for _, arms in sorted(found.items())]
    return each, over_seeds([mean for mean, _ in each])


def _mean(found: BySeed, name: str, measure: Callable[[Finding], float]) -> float:
    return sum(measure(arms[name]) for arms in found.values()) / len(found)


def _accuracies(found: BySeed, task: str) -> str:
    seeds = sorted(found)
    rows = []
    for name in akiba.ARMS:
        shares = [share(found[seed][name].right[task]) for seed in seeds]
        mean, half = over_seeds(shares)
        rows.append([name, *(f"{100 * one:.1f}" for one in shares), f"{100 * mean:.1f} ± {100 * half:.1f}"])
    return table(["model", *(f"seed {seed}" for seed in seeds), "mean"], rows)


def _tasks(world: World, found: BySeed) -> str:
    rows = [[
        name, *(f"{100 * _mean(found, name, partial(_on, task.name)):.1f}" for task in world.tasks),
        f"{100 * _mean(found, name, lambda finding: together(finding.right)):.1f}",
    ] for name in akiba.ARMS]
    return table(["model", *(task.name for task in world.tasks), "together"], rows)


def _on(task: str, finding: Finding) -> float:
    return share(finding.right[task])


def _effort(found: BySeed) -> str:
    rows = [[
        name, *(f"{_mean(found, name, measure):,.0f}" for measure in (
            lambda finding: finding.climb.candidates, lambda finding: finding.climb.moves,
            lambda finding: finding.climb.spent, lambda finding: finding.climb.on_paths,
            lambda finding: finding.seconds,
        )),
    ] for name in akiba.SEARCHES]
    heads = ["search", "candidates", "that became the model in force", "items scored", "of them on paths", "seconds"]
    return table(heads, rows)


def _gaps(gaps: Gaps, done: Sequence[int]) -> str:
    parts = []
    for better, rows in gaps.items():
        heads = [f"{better} less", *(f"seed {seed}" for seed in done), "over seeds"]
        parts.append(table(heads, [
            [name, *map(points, each), f"**{points(total)}**"] for name, (each, total) in rows.items()
        ]))
    return "\n\n".join(parts) + "\n"


def _remarks(gaps: Gaps) -> str:
    """What the figures say, each clause by its own interval."""
    return "\n".join(
        f"- {better[0].upper()}{better[1:]} is {standings({name: total for name, (_, total) in rows.items()})}."
        for better, rows in gaps.items()
    )
