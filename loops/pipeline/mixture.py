"""The data mixture: what each source has paid, and shares for the next recipe by an upper confidence bound.

The payoff of a source is the loss it lost per token trained on (DUMP, 2504.09710): what is learned already pays little,
what has not been tried long enough is given the benefit of the doubt. Pure; the payoffs are a JSON value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from state.records import JsonObject

EXPLORATION: Final = 0.5
LEAST_SHARE: Final = 0.05
"""No source falls under this share of an even one: a forgotten source could never show that it pays again."""
FADE: Final = 0.9
"""What was learned from older trials counts less with every trial."""


def learned(payoffs: JsonObject, sources: Mapping[str, Mapping[str, float]]) -> JsonObject:
    """The payoffs after one trial that reports, per source, "tokens" and "loss_drop"."""
    faded = {
        name: {"payoff": entry["payoff"], "tokens": entry["tokens"] * FADE} for name, entry in sorted(payoffs.items())
    }
    for name, report in sorted(sources.items()):
        tokens = float(report.get("tokens", 0))
        drop = float(report.get("loss_drop") or 0.0)
        if tokens <= 0 or not math.isfinite(drop):
            continue
        old = faded.get(name, {"payoff": 0.0, "tokens": 0.0})
        total = old["tokens"] + tokens
        faded[name] = {"payoff": (old["payoff"] * old["tokens"] + drop) / total, "tokens": total}
    return faded


def bounds(payoffs: JsonObject, sources: Iterable[str]) -> dict[str, float]:
    """Upper confidence bound of each source; payoffs are scaled to a best of 1, an untried source gets the top."""
    names = sorted(sources)
    tried = {name: payoffs[name] for name in names if payoffs.get(name, {}).get("tokens", 0.0) > 0}
    if not tried:
        return dict.fromkeys(names, 1.0)
    best = max((entry["payoff"] for entry in tried.values()), default=0.0)
    total = sum(entry["tokens"] for entry in tried.values())
    scored = {
        name: max(0.0, entry["payoff"] / best if best > 0 else 0.0)
        + EXPLORATION * math.sqrt(math.log(1.0 + total / entry["tokens"]))
        for name, entry in tried.items()
    }
    top = max(scored.values())
    return {name: scored.get(name, top) for name in names}


def shares(payoffs: JsonObject, sources: Iterable[str], tilt: Mapping[str, float] | None = None) -> dict[str, float]:
    """Shares that sum to 1, in proportion to the bounds times exp(tilt); {} where there are no sources."""
    scored = {name: value * math.exp((tilt or {}).get(name, 0.0)) for name, value in bounds(payoffs, sources).items()}
    if not scored:
        return {}
    total = sum(scored.values())
    floor = LEAST_SHARE / len(scored)
    raw = {name: max(floor, value / total if total > 0 else 1.0 / len(scored)) for name, value in scored.items()}
    return {name: value / sum(raw.values()) for name, value in raw.items()}
