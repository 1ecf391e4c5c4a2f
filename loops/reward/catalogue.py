"""Every reward feature by name: those of `loops.reward.features`, and those that other packages bring.

A package brings a feature by an entry point of the group `kaizend.features` that leads to a `Feature` of the same name.
Whoever decides looks at names and versions only, which the packages' metadata tell; their code is imported where a
feature is used, in a worker, and tried out before.

    python -m loops.reward.catalogue NAME...        import and try them out, for `kaizend check`
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from loops.reward.features import BY_REWARD_MODEL, FEATURES, LEARNED, Feature

GROUP: Final = "kaizend.features"
SLOWEST_SECONDS: Final = 0.25
"""What one call may take on a long text: a step asks for hundreds."""
ROUNDS: Final = 3
_LONG: Final = "a word " * 400
TRIALS: Final[Sequence[tuple[str, str, str | None, Sequence[str]]]] = (
    ("2 + 2?", "4", "4", ("4", "five", "")),
    ("2 + 2?", "five", "4", ("4", "five", "")),
    ("2 + 2?", "", None, ("",)),
    ("", " \n\t", "", (" \n\t",)),
    ("caf\u00e9\x00 \U0001f92f", "\U0001f92f" * 50, "\U0001f92f", ()),
    (_LONG, _LONG, _LONG, (_LONG,) * 8),
)
"""(prompt, completion, reference, completions of the group) that a feature is tried out on."""


def source_of(name: str) -> str | None:
    """The package and version that bring a feature, None for one of kaizend's own. ValueError where nobody brings it,
    or more than one does.
    """
    if name in FEATURES or name == LEARNED:
        return None
    entry = _registered(name)
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def sources(names: Iterable[str]) -> dict[str, str]:
    """The features among them that are not kaizend's own, with what brings them. ValueError as `source_of`."""
    return {name: source for name in names if (source := source_of(name)) is not None}


@cache
def feature(name: str) -> Feature:
    """The feature itself, imported and tried out where it is not kaizend's own. ValueError where it is not fit for use.
    """
    if name == LEARNED:
        return BY_REWARD_MODEL
    if name in FEATURES:
        return FEATURES[name]
    found = _registered(name).load()
    if not isinstance(found, Feature) or found.name != name:
        raise ValueError(f"feature {name}: {source_of(name)} has no Feature of that name there")
    try_out(found)
    return found


def measure(
    names: Sequence[str], prompt: str, completion: str, reference: str | None, siblings: Sequence[str]
) -> dict[str, float]:
    """phi of one completion for each named feature. ValueError for an unknown name, and for a phi outside [0, 1]."""
    given = prompt, completion, reference, siblings
    return {name: _phi(feature(name), given) for name in names}


def try_out(found: Feature) -> None:
    """ValueError where a phi lies outside [0, 1], differs when it is asked again, or takes too long each time."""
    first = [_phi(found, trial) for trial in TRIALS]
    fastest = dict.fromkeys(TRIALS, float("inf"))
    for _ in range(ROUNDS):
        for trial, phi in reversed(list(zip(TRIALS, first, strict=True))):
            began = time.perf_counter()
            again = _phi(found, trial)
            fastest[trial] = min(fastest[trial], time.perf_counter() - began)
            if again != phi:
                raise ValueError(f"feature {found.name} is no function of the texts: it gave {phi:g}, then {again:g}")
    slowest = max(fastest.values())
    if slowest > SLOWEST_SECONDS:
        raise ValueError(f"feature {found.name} takes {slowest:.2g} s a call, more than {SLOWEST_SECONDS:g}")


def _phi(found: Feature, given: tuple[str, str, str | None, Sequence[str]]) -> float:
    phi = found.phi(*given)
    if not isinstance(phi, (int, float)) or not 0.0 <= phi <= 1.0:
        raise ValueError(f"feature {found.name} gave {phi!r}, which is no number from 0 to 1")
    return float(phi)


@cache
def _registered(name: str) -> EntryPoint:
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise ValueError(f"unknown feature {name!r}: choose from {', '.join(_names())}")
    if len({entry.value for entry in found}) > 1:
        raise ValueError(f"feature {name!r} is brought by more than one package")
    return next(iter(found))


def _names() -> list[str]:
    return [*FEATURES, *sorted({entry.name for entry in entry_points(group=GROUP)} - FEATURES.keys())]


def main(names: Sequence[str]) -> None:
    """Says each name once it is found fit, so that a feature that ends the process is not taken for one."""
    for name in names:
        feature(name)
        sys.stdout.write(f"\n{name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
