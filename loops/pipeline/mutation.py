"""Children: a configuration that takes over where a leading one stands and goes on with mutated genes.

Population-based training (1711.09846) at the end of a rung: of `eta` configurations one climbs, and what the others
leave free goes to children of the one that climbs. Only genes that say how training goes on may change; what is
trained, by how many rows and for how many steps stays the leader's, so that its checkpoint fits. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from loops.pipeline.limits import forbidden
from loops.pipeline.space import Choice, Genes, Space, Span
from loops.pipeline.tuner import MOST_ASKS, Configuration, Knowledge, inside, tried
from state.records import digest_of

MUTABLE: Final = ("learning_rate", "schedule", "replay", "temperature")
TILT: Final = "tilt:"
STRIDE: Final = 0.15
"""Standard deviation of a number's mutation, as a part of its span (of its logarithm where the span is logarithmic)."""
ANOTHER_OPTION: Final = 0.25
"""Chance that a choice is drawn anew."""


def child(
    leader: Configuration, configurations: Sequence[Configuration], space: Space, sources: Sequence[str],
    knowledge: Knowledge, seed: int,
) -> Configuration | None:
    """A configuration that goes on from where `leader` stands, at the end of a rung, with its values as history.

    None where the leader lies outside today's space, or where no mutation in `MOST_ASKS` is new and allowed.
    """
    stage, draw = leader.recipe.stage, random.Random(seed)
    if not inside(leader.genes, stage, space, sources):
        return None
    for _ in range(MOST_ASKS):
        genes = mutated(leader, space, sources, draw)
        made = space.recipe(stage, genes, sources, knowledge.payoffs)
        recipe = replace(
            leader.recipe, learning_rate=made.learning_rate, schedule=made.schedule, mixture=made.mixture,
            replay=made.replay, temperature=made.temperature,
        )
        if not tried(configurations, stage, genes) and not forbidden(recipe, knowledge.limits):
            name = digest_of([recipe.to_json(), leader.id, len(leader.values), seed])[:12]
            return replace(
                leader, id=name, recipe=recipe, genes=genes, parent=leader.id, inherited=len(leader.values), timeouts=0,
            )
    return None


def mutated(leader: Configuration, space: Space, sources: Sequence[str], draw: random.Random) -> Genes:
    """The leader's genes with those moved that may change in mid-run; the others as they are."""
    genes, stage = dict(leader.genes), leader.recipe.stage
    for name, gene in space.genes(stage, sources).items():
        short = name.removeprefix(f"{stage}.")
        if short not in MUTABLE and not short.startswith(TILT):
            continue
        if isinstance(gene, Choice):
            genes[name] = draw.choice(gene.options) if draw.random() < ANOTHER_OPTION else genes[name]
        else:
            genes[name] = _moved(float(genes[name]), gene, draw)
    return genes


def _moved(value: float, span: Span, draw: random.Random) -> float:
    step = STRIDE * draw.gauss(0.0, 1.0)
    moved = value * (span.high / span.low) ** step if span.log else value + step * (span.high - span.low)
    return min(span.high, max(span.low, moved))
