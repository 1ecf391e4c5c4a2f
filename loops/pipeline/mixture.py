"""The data mixture: what each source has paid, and shares for the next recipe by upper confidence bounds.

A source is paid for what it alone does to the target: by how much a few steps on it raise the certainty of right
answers to search items, per token, from the model at hand (the job "weigh"). How fast its own rows are learned pays
nothing, else a source of wrong answers would be paid for being learnable. All sources are weighed together, so what is
known of one does not depend on its share. What a weighing says counts as far as the sources differ by more than its
errors: each payoff is drawn to what was known before, at first to the mean of all sources, by the part of its variance
that is noise (empirical Bayes, Morris 1983). So a weighing that tells nothing apart leaves the shares as they were.

Shares go by exp(bound / TEMPERATURE), exponential weights (Cesa-Bianchi and Lugosi 2006, 2.2): sources that pay alike
share alike, one that does nothing keeps a little, one that harms comes down to the floor.
Pure; the payoffs are a JSON value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, variance
from typing import Final

from state.records import JsonObject

EXPLORATION: Final = 0.5
TEMPERATURE: Final = 0.4
LEAST_SHARE: Final = 0.05
"""No source falls under this share of an even one: it may pay on another model."""
FADE: Final = 0.9
"""What was learned from older trials counts less with every trial."""
CLEAR: Final = 2.0
"""Standard errors beyond which a gain is no accident."""


def learned(payoffs: JsonObject, weighed: Mapping[str, Mapping[str, float]]) -> JsonObject:
    """The payoffs after one weighing that reports, per source, "gain", "error" and "tokens".

    {source: {"payoff", "trials"}}: a mean between -1 and 1, and how many trials it counts for. 1 is the best source of
    a trial where its gain is clear, else twice its error or, where that is more, the largest gain or loss. Entries of
    another form are forgotten.
    """
    faded = {
        name: {"payoff": entry["payoff"], "trials": entry["trials"] * FADE}
        for name, entry in sorted(payoffs.items()) if "trials" in entry
    }
    found = {
        name: (report["gain"] / report["tokens"], report["error"] / report["tokens"])
        for name, report in sorted(weighed.items())
        if report["tokens"] > 0 and math.isfinite(report["gain"]) and math.isfinite(report["error"])
    }
    if not found:
        return faded
    best, its_error = max(found.values())
    noise = CLEAR * its_error
    unit = best if best > noise else max([noise, *(abs(rate) for rate, _ in found.values())])
    paid = {name: max(-1.0, min(1.0, rate / unit)) if unit > 0 else 0.0 for name, (rate, _) in found.items()}
    even = {"payoff": fmean(paid.values()), "trials": 0.0}
    for name, part in _told(found).items():
        old = faded.get(name, even)
        trials = old["trials"] + 1.0
        faded[name] = {"payoff": old["payoff"] + part * (paid[name] - old["payoff"]) / trials, "trials": trials}
    return faded


def _told(found: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """How far each source's (rate, error) is to be believed, from 0 to 1: the variance between the sources, what the
    errors add to it left out, as a part of that and the source's own error. One source alone differs from none.
    """
    between = variance(rate for rate, _ in found.values()) if len(found) > 1 else 0.0
    between = max(0.0, between - fmean(error**2 for _, error in found.values()))
    return {name: between / (between + error**2) if between > 0 else 0.0 for name, (_, error) in found.items()}


def bounds(payoffs: JsonObject, sources: Iterable[str]) -> dict[str, float]:
    """Upper confidence bound of each source (UCB1, Auer et al. 2002); one that was never weighed gets the top."""
    names = sorted(sources)
    tried = {name: payoffs[name] for name in names if payoffs.get(name, {}).get("trials", 0.0) > 0}
    if not tried:
        return dict.fromkeys(names, 1.0)
    most = max(entry["trials"] for entry in tried.values())
    scored = {
        name: entry["payoff"] + EXPLORATION * math.sqrt(math.log(1.0 + most) / entry["trials"])
        for name, entry in tried.items()
    }
    top = max(scored.values())
    return {name: scored.get(name, top) for name in names}


def shares(payoffs: JsonObject, sources: Iterable[str], tilt: Mapping[str, float] | None = None) -> dict[str, float]:
    """Shares that sum to 1, by the bounds and times exp(tilt); {} where there are no sources."""
    scored = bounds(payoffs, sources)
    if not scored:
        return {}
    top = max(scored.values())
    raw = {
        name: math.exp((bound - top) / TEMPERATURE + (tilt or {}).get(name, 0.0)) for name, bound in scored.items()
    }
    floor = LEAST_SHARE / len(raw)
    held = {name: max(floor, weight / sum(raw.values())) for name, weight in raw.items()}
    return {name: share / sum(held.values()) for name, share in held.items()}
