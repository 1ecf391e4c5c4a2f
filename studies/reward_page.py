"""The page of the reward loop's study: its tables in Markdown, and whether learned shaping pays where it should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from loops.reward.loop import HEAT_STEPS, PROVEN_SEGMENTS, RewardSettings
from studies.paired import Interval, over_seeds
from studies.reward import RECIPE, SEGMENT_STEPS, Arm, Trace, after, samples_to, traced
from studies.sorting import world_of
from studies.words import filled, points, seeds_in_words, table, verdict

SEEDS: Final = 5
ITEMS: Final = 15_360                   # completions that each arm may sample
SPENT: Final = "completions that each arm may sample"
SPARSE: Final = 0.001
LEVELS: Final = {0.003: 1, 0.01: 3, 0.03: 3, 0.1: 3, 0.5: 3}       # and by what the completions are divided there
MARK: Final = 0.02                      # samples are counted until so many are right

ALIKE = {name: 1.0 / len(RewardSettings().features) for name in RewardSettings().features}
LEARNED, ZERO = Arm("learned", None), Arm("zero", {})
FIXED, ORACLE = Arm("fixed: all features alike", ALIKE), Arm("oracle: places alone", {"places": 1.0})
WITH = (LEARNED, ZERO, FIXED, ORACLE)
WITHOUT = tuple(replace(arm, success_replay=0.0) for arm in WITH)

Traces = Mapping[int, Mapping[Arm, Trace]]


def pages(folder: Path, seeds: int = SEEDS, items: int = ITEMS) -> Iterator[tuple[str, bool]]:
    """The text of docs/studies/reward.md and whether what is asked of learned shaping holds, anew after each seed."""
    sparse: dict[int, dict[Arm, Trace]] = {}
    dense: dict[float, dict[int, dict[Arm, Trace]]] = {level: {} for level in LEVELS}
    starts: list[float] = []
    for seed in range(seeds):
        world = world_of(seed, SPARSE, folder / "models")
        starts.append(world.start)
        sparse[seed] = traced((*WITH, *WITHOUT), world, items, folder)
        for level in LEVELS:
            world = world_of(seed, level, folder / "models")
            dense[level][seed] = traced((LEARNED, ZERO), world, items // LEVELS[level], folder)
        yield page(sparse, dense, starts, seeds, items)


def page(
    sparse: Traces, dense: Mapping[float, Traces], starts: Sequence[float], seeds: int, items: int
) -> tuple[str, bool]:
    """The text of the page, and whether learned shaping is above zero shaping with the interval above 0 where success
    is rare, and below it nowhere else.
    """
    gap, bare = (_gap(sparse, arms[0], arms[1], items) for arms in (WITH, WITHOUT))
    saved = [_count(traces[ZERO], items) - _count(traces[LEARNED], items) for traces in sparse.values()]
    mean, half = over_seeds(saved)
    harmed = [level for level, found in dense.items() if sum(_gap(found, LEARNED, ZERO, items // LEVELS[level])) < 0]
    told = "at " + ", ".join(f"{100 * level:g} %" for level in harmed) if harmed else "at none of the levels"
    low, high = 100 * min(starts), 100 * max(starts)
    return filled(f"""# What a learned shaping is worth

`make study NAME=reward` repeats this ({seeds_in_words(sorted(sparse), seeds)}). A model of 86 thousand parameters,
trained from nothing on rows of three to six digits, is to sort six digits, and reinforcement goes on from where it is
right in {low:.2f} to {high:.2f} % of its samples. The reward loop and its jobs are the product's own, under TRL: GRPO
on {RECIPE.batch} prompts x {RECIPE.group} completions a step, learning rate {RECIPE.learning_rate:g}, segments of
{SEGMENT_STEPS} steps. Every arm may sample {items:,} completions, those of its controls among them. What counts is q on
1,000 items that nobody trains on: how often sampling gives the right answer, in percent. Intervals are Student's over
seeds, 95 %.

Learned: the shaping that the loop learns, switches and checks by itself. Zero: the strict reward alone. Fixed: all
features alike, no control, no monitor. Oracle: the one feature that tells best what sorting is (the share of places
that hold the right digit), likewise. Success replay is the cross-entropy on own right answers.

## Where success is rare

{_standing(sparse, items)}

Differences from zero shaping with the same replay, in points:

{_against(sparse, items)}

## Where it is less rare

The same from models that are right more often, with success replay:

{_levels(dense, items)}

## What it says

- **{"Met" if gap[0] > gap[1] else "Missed"}: at the rare start learned shaping is above zero shaping.** With success
  replay it is {verdict(gap)} it: {points(gap)} points after {items:,} completions. Without, it is {verdict(bare)} it:
  {points(bare)} points.
- It gets to {100 * MARK:.0f} % with {mean:,.0f} ± {half:,.0f} completions less than zero shaping, both with success
  replay, where one that does not get there is counted as {items:,}, which makes the difference look smaller.
- **{"Missed" if harmed else "Met"}: no harm where success is less rare.** Learned shaping is shown to be below zero
  shaping {told}. An interval that holds 0 does not show that there is no harm; where all figures are the same, no
  shaping was ever tried.
- The control costs: a shaping is tried beside zero shaping for {HEAT_STEPS} steps, which one of the two samples in
  vain. One that was better goes on alone for {PROVEN_SEGMENTS} segments; one that was not leaves a segment to zero
  shaping, and twice as many each time in a row. The first segment has no evidence and so no shaping: learned shaping
  lags behind a fixed one by that and by what its comparisons cost.
- Where it stops paying: learned shaping is {_paying(sparse, dense, items)}.
- One task, one model, one learning rate. The features are the product's own, and one of them (places) happens to
  describe the task well; where none does, the loop can only lose what its controls cost.
"""), gap[0] > gap[1] and not harmed


def _count(trace: Trace, items: int) -> float:
    """Completions to the mark, all where it was not reached with them."""
    return min(float(items), samples_to(trace, MARK) or float(items))


def _gap(found: Traces, arm: Arm, other: Arm, items: int) -> Interval:
    return over_seeds([after(traces[arm], items) - after(traces[other], items) for traces in found.values()])


def _standing(found: Traces, items: int) -> str:
    rows = []
    for arm in (*WITH, *WITHOUT):
        values = [after(traces[arm], items) for _, traces in sorted(found.items())]
        reached = [samples_to(traces[arm], MARK) for _, traces in sorted(found.items())]
        known = [count for count in reached if count is not None]
        told = f"{sum(known) / len(known):,.0f}" if known else "never"
        if 0 < len(known) < len(reached):
            told += f" ({len(known)} of {len(reached)})"
        mean, half = over_seeds(values)
        rows.append([
            arm.name, "yes" if arm.success_replay else "no", *(f"{100 * value:.1f}" for value in values),
            f"{100 * mean:.1f} ± {100 * half:.1f}", told,
        ])
    heads = [f"seed {seed}" for seed in sorted(found)]
    return table(["shaping", "success replay", *heads, "mean", f"completions to {100 * MARK:.0f} %"], rows)


def _against(found: Traces, items: int) -> str:
    rows = [
        [arm.name, "yes" if arm.success_replay else "no", points(_gap(found, arm, zero, items))]
        for arms in (WITH, WITHOUT) for zero in [next(a for a in arms if a.weights == {})] for arm in arms
        if arm is not zero
    ]
    return table(["shaping", "success replay", "less zero"], rows)


def _paying(sparse: Traces, dense: Mapping[float, Traces], items: int) -> str:
    """Where learned shaping stands beside zero shaping, with success replay, at each start."""
    gaps = {SPARSE: _gap(sparse, LEARNED, ZERO, items)}
    gaps |= {level: _gap(found, LEARNED, ZERO, items // LEVELS[level]) for level, found in dense.items()}
    told: dict[str, list[str]] = {}
    for level, gap in gaps.items():
        told.setdefault(verdict(gap), []).append(f"{100 * level:g}")
    return "; ".join(f"{where} zero shaping at {', '.join(levels)} %" for where, levels in told.items())


def _levels(dense: Mapping[float, Traces], items: int) -> str:
    rows = []
    for level, found in dense.items():
        count = items // LEVELS[level]
        means = [
            sum(after(traces[arm], count) for traces in found.values()) / len(found) for arm in (LEARNED, ZERO)
        ]
        rows.append([
            f"{100 * level:g} %", f"{count:,}", *(f"{100 * mean:.1f}" for mean in means),
            points(_gap(found, LEARNED, ZERO, count)),
        ])
    return table(["right at the start", "completions", "learned", "zero", "difference"], rows)
