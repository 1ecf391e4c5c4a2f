"""Weighing the sources of training data: when it is done, and how much it may take.

The job "weigh" learns each source alone and throws that away; `mixture` says what follows for the shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from loops.loop import Bench
from loops.pipeline.recipe import Recipe, Stage
from loops.pipeline.tuner import Configuration
from state.records import JsonObject

ITEMS: Final = 512
DRAWS: Final = 2
"""How often each source is learned from the start at most, every time on other rows of it."""
STEPS: Final = 24
"""Of one draw."""
PART: Final = 5
"""A draw of all sources takes at most one part in so many of a recipe's full steps, and at least one step a source;
all draws at most that part of the tokens that are left.
"""


def due(chosen: Configuration, configurations: Sequence[Configuration], named: Mapping[str, float]) -> bool:
    """Whether a cycle weighs the sources first: supervised training does, once for every base model, where the
    operator leaves the mixture to what they pay. `named`: the operator's shares of all sources that can be weighed.
    """
    begun = any(c.recipe.stage is chosen.recipe.stage and c.step for c in configurations)
    return chosen.recipe.stage is Stage.SFT and len(named) > 1 and not any(named.values()) and not begun


def weighed(
    change: JsonObject, bench: Bench, sources: Mapping[str, str], targets: Sequence[JsonObject], seal: str
) -> JsonObject:
    """{source: what it alone did to the target}; empty where nothing fits the tokens."""
    most = Recipe.from_json(change["recipe"]).steps // (PART * len(sources))
    inputs = {"model": change["model"], "seal": seal}
    inputs |= {f"data:{name}": digest for name, digest in sorted(sources.items())}
    params = {
        "recipe": change["recipe"], "tasks": list(targets), "steps": max(1, min(STEPS, most)), "draws": DRAWS,
        "items": ITEMS, "max_tokens": bench.left.tokens // PART,
    }
    found: JsonObject = bench.job("weigh", inputs, params, bench.seed("weigh")).values["weighed"]
    return found
