"""What studies of earlier models leave behind for the study of a related one: genes and how they ranked. Pure.

Values of two studies cannot be compared, each is measured from its own base; ranks can. So a study is remembered by
some of its configurations, evenly from its best to its worst, each with its rank between 0 and 1. How much such a rank
says about another model follows from how much of their lineage the two share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from loops.pipeline.recipe import Stage
from loops.pipeline.tuner import Configuration, Hint, ranks
from state.records import JsonObject

MOST_STUDIES: Final = 6
MOST_OF_ONE: Final = 12

Ancestors = Callable[[str], Collection[str]]
"""A model's lineage by its digest: every model that it was made from, at any distance. Itself may be among them."""


def remembered(base: str, configurations: Sequence[Configuration]) -> JsonObject | None:
    """What is kept of a study, {"base", "trials": [[stage, genes, rank], ...]}; None where nothing was measured."""
    found = ranks(configurations)
    told = sorted((c for c in configurations if c.id in found), key=lambda c: (-found[c.id], c.id))
    if all(c.failed is not None for c in told):
        return None
    last, most = len(told) - 1, min(len(told), MOST_OF_ONE)
    chosen = [told[round(place * last / max(1, most - 1))] for place in range(most)]
    return {"base": base, "trials": [[str(c.recipe.stage), dict(c.genes), round(found[c.id], 4)] for c in chosen]}


def added(memories: Sequence[JsonObject], new: JsonObject | None) -> list[JsonObject]:
    """The memories with one more, the newest last and at most `MOST_STUDIES` of them."""
    if new is None:
        return list(memories)
    return [*(memory for memory in memories if memory["base"] != new["base"]), new][-MOST_STUDIES:]


def hints(base: str, memories: Sequence[JsonObject], ancestors: Ancestors) -> list[Hint]:
    """What the memories say about `base`: those of the nearest relations first, of each the best configuration first.

    The relation is the share of common models in two lineages (Jaccard's index). A rank is drawn to the middle by what
    is not shared; a model without any common ancestor says nothing.
    """
    if not memories:
        return []
    mine, found = {base, *ancestors(base)}, []
    for number, memory in enumerate(memories):
        theirs = {memory["base"], *ancestors(memory["base"])}
        relation = len(mine & theirs) / len(mine | theirs)
        if relation > 0 and memory["base"] != base:
            found.append((relation, number, memory["trials"]))
    return [
        Hint(Stage(stage), genes, 0.5 + relation * (rank - 0.5))
        for relation, _, trials in sorted(found, key=lambda each: (-each[0], -each[1]))
        for stage, genes, rank in trials
    ]
