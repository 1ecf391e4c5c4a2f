"""Limits that failures taught: a recipe that ran out of memory or diverged forbids its region of the space.

A limit says what failed; every recipe that is at least as large (memory) or at least as fast (divergence) in the same
stage is forbidden with it. Pure; a limit is a JSON value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loops.pipeline.recipe import AdapterKind, Recipe
from state.records import JsonObject

MOST_LIMITS: Final = 32
MEMORY: Final = ("out of memory", "outofmemory", "memoryerror", "signal 9", "allocate memory", "alloc_failed")
DIVERGED: Final = ("diverged", "non-finite", "not finite", "nan loss", "loss is nan")


def taught(recipe: Recipe, reason: str) -> JsonObject | None:
    """The limit that a failure with this reason teaches, None where it says nothing about the recipe."""
    words = reason.lower()
    if any(sign in words for sign in MEMORY):
        return {
            "kind": "memory", "stage": str(recipe.stage), "completions": recipe.completions, "rank": _weight(recipe),
        }
    if any(sign in words for sign in DIVERGED):
        return {
            "kind": "diverged", "stage": str(recipe.stage), "learning_rate": recipe.learning_rate,
            "whole": recipe.adapter.kind is AdapterKind.NONE,
        }
    return None


def forbidden(recipe: Recipe, limits: Sequence[JsonObject]) -> bool:
    """Whether some limit covers the recipe."""
    return any(_covers(limit, recipe) for limit in limits)


def added(limits: Sequence[JsonObject], limit: JsonObject | None) -> list[JsonObject]:
    """The limits with one more, the newest last and at most `MOST_LIMITS` of them."""
    if limit is None or limit in limits:
        return list(limits)
    return [*limits, limit][-MOST_LIMITS:]


def _covers(limit: JsonObject, recipe: Recipe) -> bool:
    if limit["stage"] != recipe.stage:
        return False
    if limit["kind"] == "memory":
        return bool(recipe.completions >= limit["completions"] and _weight(recipe) >= limit["rank"])
    whole = recipe.adapter.kind is AdapterKind.NONE
    return bool(whole == limit["whole"] and recipe.learning_rate >= limit["learning_rate"])


def _weight(recipe: Recipe) -> int:
    """How much is trained: the adapter's rank, or more than any rank for all weights."""
    return 1_000_000 if recipe.adapter.kind is AdapterKind.NONE else recipe.adapter.rank
