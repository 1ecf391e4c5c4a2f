"""The page of the search's study: its tables in Markdown, and whether the search is at or above the scheme."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from studies.findings import Finding, Findings, apart
from studies.mergekit_scheme import Scheme
from studies.paired import Interval, over_seeds, share
from studies.search import ARMS, OURS, SETTINGS, THEIRS, Setting
from studies.words import filled, points, population, seeds_in_words, standings, table
from studies.world import World, models_of_seed, world_of

ITEMS = 40_000
SPENT = "items that each search may score"
SEEDS = 5

BySeed = Mapping[int, Mapping[str, Finding]]
Gaps = Mapping[str, tuple[list[Interval], Interval]]


def pages(folder: Path, seeds: int = SEEDS, items: int = ITEMS) -> Iterator[tuple[str, bool]]:
    """The text of docs/studies/search.md and whether the requirement is met, anew after each seed."""
    found: dict[str, dict[int, dict[str, Finding]]] = {setting.name: {} for setting in SETTINGS}
    for seed in range(seeds):
        world = world_of(seed, models_of_seed(seed, folder / "models"))
        for setting in SETTINGS:
            found[setting.name][seed] = measured(Findings(f"search-{setting.tasks}", folder), setting, world, items)
        yield page(world, found, seeds, items)


def measured(findings: Findings, setting: Setting, world: World, items: int) -> dict[str, Finding]:
    """The findings of all arms of one setting and seed."""
    tasks = world.tasks[: setting.tasks]
    arms = {name: ARMS[name] for name in setting.arms}
    return {
        name: findings.of(repr(arm), world, items, arm.sources, partial(arm, world, tasks, items=items))
        for name, arm in arms.items()
    }


def page(world: World, found: Mapping[str, BySeed], seeds: int, items: int) -> tuple[str, bool]:
    """The text of docs/studies/search.md, and whether the requirement is met."""
    gaps = {
        setting.name: {name: _apart(world, setting, found[setting.name], name) for name in setting.arms}
        for setting in SETTINGS
    }
    against = {name: rows[THEIRS][1] for name, rows in gaps.items()}
    holds = all(mean >= 0 for mean, _ in against.values())
    done = sorted(next(iter(found.values())))
    every = [finding for by_seed in found.values() for arms in by_seed.values() for finding in arms.values()]
    minutes = sum(finding.seconds for finding in every) / 60
    scheme = Scheme()
    return filled(f"""# The search beside mergekit-evolve's scheme

`make study NAME=search` repeats this ({minutes:.0f} minutes of searching on one busy core;
{seeds_in_words(done, seeds)}). The models are those of `kaizend demo --seed N`, trained from nothing for each seed, and
the search is its architecture loop without the loops inside: every arm begins with the same base and two experts, and
may have {items:,} items scored. An item answered once by one model is one; what the incumbent answers counts, too. Then
the model that the arm chose answers every unseen item, those of the vault's population: {population(world)}. Accuracy
in percent. Intervals are 95 %: over seeds Student's, within a seed by unordered pair of operands, because items that
share one are not independent.

The scheme is mergekit-evolve's by its documentation (`studies/mergekit_scheme.py`, on our merge kernels): one CMA-ES
over a weight for each model and each block of {scheme.granularity} of the 4 layers, {scheme.evaluations} merges unless
told otherwise, all scored in full on the same items, weighted sum of the tasks' scores, the best of them is the result.
A weight per module (attention, mlp, the rest) is its option `filters`; DARE-TIES, with densities, its own example.
Ours: one weight a model first, then 2 blocks x 3 kinds of module, {world.settings.fitness_items} items a candidate that
are new in each generation, and a race against the incumbent on fresh ones for what is above it.

{_sections(found, gaps)}
## What is required

At or above mergekit-evolve's scheme, by the mean over seeds. **{"Met" if holds else "Not met"}**: ours less theirs is,
in points, {_words(against)}.

## What it says, and what it does not

{_remarks(gaps)}
- Ours pays for being sure that each step is a gain: {100 * _raced(world, found):.0f} % of its items went into races and
  the incumbent's answers, where the scheme spends all on candidates and believes the highest score.
- The scheme is built anew by what is documented of it, with `cmaes` in pycma's place and a density for each model
  instead of each model and block; it is not mergekit's program, and scores on items of the demo, not of a harness.
- Models of 177 thousand parameters that share a base, two parents, one family of tasks. Larger ones may differ.
- Every arm is one run a seed: an interval over {len(done)} seeds says how sure the mean is, not which arm is best on
  one more seed.
"""), holds


def _apart(world: World, setting: Setting, by_seed: BySeed, name: str) -> tuple[list[Interval], Interval]:
    """Ours less the arm of that name, for each seed and over them."""
    tasks = world.tasks[: setting.tasks]
    each = [apart(arms[OURS], arms[name], tasks) for _, arms in sorted(by_seed.items())]
    return each, over_seeds([mean for mean, _ in each])


def _sections(found: Mapping[str, BySeed], gaps: Mapping[str, Gaps]) -> str:
    return "\n".join(_section(setting, found[setting.name], gaps[setting.name]) for setting in SETTINGS)


def _section(setting: Setting, by_seed: BySeed, differences: Gaps) -> str:
    seeds = sorted(by_seed)
    heads = [f"seed {seed}" for seed in seeds]
    tasks = list(next(iter(by_seed.values()))[OURS].right)[: setting.tasks]
    rows, gaps = [], []
    for name in setting.arms:
        arms = [by_seed[seed][name] for seed in seeds]
        scores = [100 * sum(share(arm.right[task]) for task in tasks) / len(tasks) for arm in arms]
        merges = sum(arm.climb.candidates for arm in arms) / len(arms)
        each, total = differences[name]
        rows.append([name, f"{merges:.0f}", *(f"{score:.1f}" for score in scores), f"{sum(scores) / len(scores):.1f}"])
        if name != OURS:
            gaps.append([name, *map(points, each), f"**{points(total)}**"])
    return f"""## For {setting.name}: {", ".join(tasks)}

{table(["search", "merges tried", *heads, "mean"], rows)}

Ours, as the demo has it, less each of the others, in points:

{table(["less", *heads, "over seeds"], gaps)}
"""


def _raced(world: World, found: Mapping[str, BySeed]) -> float:
    """The share of our items that no candidate answered when it was screened."""
    climbs = [arms[OURS].climb for by_seed in found.values() for arms in by_seed.values()]
    screened = sum(climb.candidates * world.settings.fitness_items for climb in climbs)
    return 1.0 - screened / sum(climb.spent for climb in climbs)


def _remarks(gaps: Mapping[str, Gaps]) -> str:
    """What the figures say, each sentence by its own interval."""
    return "\n".join(
        f"- For {setting}, ours is {standings({name: total for name, (_, total) in rows.items() if name != OURS})}."
        for setting, rows in gaps.items()
    )


def _words(against: Mapping[str, Interval]) -> str:
    return "; ".join(
        f"for {name} {points(found)}{'' if abs(found[0]) > found[1] else ', an interval that holds 0'}"
        for name, found in against.items()
    )
