"""How the pages of the studies of searches say their figures."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

from studies.paired import Interval
from studies.world import World, unseen

WIDTH = 116


def points(interval: Interval) -> str:
    """A difference in points with half the width of its interval."""
    mean, half = interval
    return f"{100 * mean:+.1f} ± {100 * half:.1f}"


def verdict(interval: Interval) -> str:
    """Where the first of two stands, by the interval of the difference."""
    mean, half = interval
    if abs(mean) <= half:
        return "not told apart from"
    return "above" if mean > 0 else "below"


def standings(found: Mapping[str, Interval]) -> str:
    """Where one stands beside each of the others, by the intervals of its difference from them."""
    groups: dict[str, list[str]] = {}
    for name, interval in found.items():
        groups.setdefault(verdict(interval), []).append(f"{name} ({points(interval)})")
    return "; ".join(f"{where} {', '.join(names)}" for where, names in groups.items())


def seeds_in_words(done: Sequence[int], asked: int) -> str:
    named = f"seeds {done[0]} to {done[-1]}" if len(done) > 1 else f"seed {done[0]}"
    return named if len(done) == asked else f"{named}, of {asked} that were asked for"


def population(world: World) -> str:
    """How many unseen items each task has."""
    return ", ".join(f"{len(unseen(task)):,} of {task.name}" for task in world.tasks)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str) -> str:
    """The page with its paragraphs and points filled anew; headings and tables stay as they are."""
    return "\n\n".join(
        block if block.startswith(("#", "|")) else "\n".join(map(_filled, re.split(r"\n(?=- )", block)))
        for block in page.strip().split("\n\n")
    ) + "\n"


def _filled(paragraph: str) -> str:
    indent = "  " if paragraph.startswith("- ") else ""
    return textwrap.fill(
        " ".join(paragraph.split()), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
