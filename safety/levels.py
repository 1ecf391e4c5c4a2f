"""Warning levels: what a bound's number may reach before people are told, below the limit itself.

A level is a line in the log, in `kaizend bounds show`, in `kaizend status` and in a row's evidence. Invariant: no
decision depends on one, so a level may be set and changed freely. Standard library only. Not here: the limits
(`safety.bounds`) and where readings come from (`safety.readings`).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from safety.limits import BoundsError, Limit, Looser, limits_of
from state.records import JsonObject

WARN_TOML = """
[warn]
# warning levels for any numbers above, by their names; they decide nothing, and changing one is no loosening, as in
# drift.stable.kl_mean = 2.0
"""


def read_levels(body: Any, bounds: Any, where: str) -> dict[str, float]:
    """The section [warn] as {name of a bound: level}. Raises BoundsError.

    Its tables mirror those of the limits. A level must lie on the limit's tight side, or on the limit itself.
    """
    if not isinstance(body, dict):
        raise BoundsError(f"{where}: [warn] must be a section, got {body!r}")
    limits = {name: (value, about) for name, value, about in limits_of(bounds)}
    levels = dict(_flat(body))
    for name, level in levels.items():
        if name not in limits:
            near = difflib.get_close_matches(name, list(limits), 1, 0.0)[0]
            raise BoundsError(f"{where}: unknown key {name!r} in section [warn]; did you mean {near!r}?")
        value, about = limits[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BoundsError(f"{where}: key {name!r} in section [warn]: only a number can have a warning level")
        if isinstance(level, bool) or not isinstance(level, (int, float)) or not abs(level) <= sys.float_info.max:
            raise BoundsError(f"{where}: key {name!r} in section [warn] must be a number, got {level!r}")
        if beyond(level, value, about.looser):
            raise BoundsError(f"{where}: key {name!r} in section [warn] is {level:g}, past the limit {value:g} itself")
    return {name: float(level) for name, level in levels.items()}


def warnings_of(
    levels: Mapping[str, float], readings: JsonObject, limits: Mapping[str, tuple[Any, Limit]]
) -> list[str]:
    """One line for each reading past its level, in the order of the levels."""
    lines = []
    for name, level in levels.items():
        now = readings.get(name)
        if name in limits and isinstance(now, (int, float)) and beyond(now, level, limits[name][1].looser):
            lines.append(f"{name}: {now:.6g} is past the warning level {level:g} (limit {limits[name][0]:g})")
    return lines


def beyond(value: float, level: float, looser: Looser) -> bool:
    """Whether a value lies on the loose side of a level."""
    return value < level if looser is Looser.DOWN else value > level


def _flat(body: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in body.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
