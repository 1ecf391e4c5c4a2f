"""`kaizend bounds show` and `bounds check`: where each bound stands, and what another bounds file would do.

Reads only: nothing here changes what is in force. Where the numbers come from is in `daemon.standing`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.places import Places
from daemon.reports import nomination_waiting, out, places_of
from daemon.standing import closed_cycles, facts_in_force, last_release, readings_now
from safety import conditions
from safety.approval import outgrown
from safety.bounds import Bounds, DriftBounds, load_bounds, loosened, tightened
from safety.levels import beyond
from safety.limits import Refusal, headroom_of, limits_of
from state.reading import Reading
from state.records import Candidate, Event, JsonObject, LoopName, Row

CANDIDATES = 200           # recent ones that a new file is tried on
NOT_KNOWN = "-"


def show_bounds(config: Path | None, as_json: bool) -> None:
    """Every bound: its limit, what it is now, what is left, its warning level and what it does."""
    places = places_of(config)
    rows = standing(places, load_bounds(places.bounds))
    if as_json:
        out(rows)
        return
    lines = [("bound", "limit", "now", "headroom", "warning", "does")]
    for name, row in rows.items():
        warning = f"{_short(row['warning'])}{' PAST' if row['past_warning'] else ''}"
        lines.append((name, _short(row["limit"]), _short(row["now"]), _short(row["headroom"]), warning, row["action"]))
    widths = [max(len(line[place]) for line in lines) for place in range(5)]
    for line in lines:
        cells = [f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)]
        sys.stdout.write("  ".join([*cells, line[5]]).rstrip() + "\n")


def standing(places: Places, bounds: Bounds) -> dict[str, JsonObject]:
    """{name: {"limit", "now", "headroom", "warning", "past_warning", "action"}}; null for what is not known."""
    readings = readings_now(places, bounds)
    rows: dict[str, JsonObject] = {}
    for name, value, about in limits_of(bounds):
        now, level = readings.get(name), bounds.warn.get(name)
        past = level is not None and isinstance(now, (int, float)) and beyond(now, level, about.looser)
        rows[name] = {
            "limit": value, "now": now, "headroom": headroom_of(value, now, about.looser), "warning": level,
            "past_warning": past, "action": about.action,
        }
    return rows


def check_bounds(config: Path | None, file: Path | None, as_json: bool) -> None:
    """Read a bounds file, and say what it would change and what of what is in force it would refuse."""
    places = places_of(config)
    found = comparison(places, load_bounds(file or places.bounds))
    if as_json:
        out({"file": str(file or places.bounds), **found})
        return
    lines = [f"{file or places.bounds}: valid"]
    lines += [f"looser than the ledger's last bounds: {line}" for line in found["looser"]]
    lines += [f"tighter than the ledger's last bounds: {line}" for line in found["tighter"]]
    lines += [f"would refuse now: {line}" for line in found["refuses"]]
    if found["candidates"]:
        lines.append(
            f"would refuse {found['refused']} of the last {found['candidates']} candidates, "
            f"{found['newly_refused']} of them for what it tightens"
        )
    lines += [f"would pause now: {line}" for line in found["pauses"]]
    if found["looser"]:
        lines.append("the daemon starts with it only after `kaizend bounds loosen --reason ...`; a reload keeps the "
                     "old ones")
    elif found["tighter"]:
        lines.append("a reload or a start accepts it")
    sys.stdout.write("\n".join(lines) + "\n")


def comparison(places: Places, fresh: Bounds) -> JsonObject:
    """What `fresh` would do to this life. Keys: accepted (on reload and at a start), looser, tighter, refuses, pauses,
    candidates, refused, newly_refused.
    """
    found: JsonObject = {
        "accepted": True, "looser": [], "tighter": [], "refuses": [], "pauses": [], "candidates": 0, "refused": 0,
        "newly_refused": 0,
    }
    if not places.database.is_file():
        return found
    with Reading(places.database) as reading:
        rows = reading.rows(limit=1, events=[str(Event.BOUNDS)])
        old = Bounds.from_json(rows[-1].change["after"]) if rows else None
        if old is not None:
            found["looser"], found["tighter"] = loosened(old, fresh), tightened(old, fresh)
        found["accepted"] = not found["looser"]
        found["refuses"] = [
            *_models(places, reading, fresh), *_release(last_release(reading), fresh), *_waiting(reading, fresh),
        ]
        found |= _candidates(reading, old, fresh)
    readings = readings_now(places, fresh)
    found["pauses"] = [
        f"{name}: {readings[name]:.6g} of {value:.6g}" for name, value, about in limits_of(fresh)
        if name.startswith("resources.") and "pauses" in about.action and name in readings
        and beyond(readings[name], value, about.looser)
    ]
    return found


def _models(places: Places, reading: Reading, fresh: Bounds) -> Iterator[str]:
    for name, facts in facts_in_force(places, reading):
        refusal = fresh.accept(facts)
        if refusal:
            yield f"{name}: {refusal}"


def _release(row: Row | None, fresh: Bounds) -> Iterator[str]:
    """What the new limits would say to the last nomination, by the numbers that its row keeps."""
    if row is None:
        return
    compared: list[tuple[str, DriftBounds]] = [("reference", fresh.drift.reference), ("stable", fresh.drift.stable)]
    refusals: list[Refusal | None] = [
        fresh.drifted(row.evidence.get(f"drift_{name}", {}), limits, f"drift.{name}") for name, limits in compared
    ]
    refusals += conditions.outgrown(row.evidence, fresh)
    yield from (f"the model of row {row.id}: {refusal}" for refusal in refusals if refusal)


def _waiting(reading: Reading, fresh: Bounds) -> Iterator[str]:
    """Why the nomination that waits for the operator could not be approved any more."""
    row = nomination_waiting(reading)
    refusal = outgrown(row.evidence, fresh) if row else None
    if row and refusal:
        yield f"the nomination that waits (row {row.id}): {refusal}"


def _candidates(reading: Reading, old: Bounds | None, fresh: Bounds) -> JsonObject:
    """How many of the last candidates the new limits refuse, and how many of those the old ones did not."""
    rows = [row for row in closed_cycles(reading, CANDIDATES) if row.loop and "not_proposed" not in row.change]
    candidates = [Candidate(LoopName(str(row.loop)), row.change, str(row.base), str(row.base)) for row in rows]
    refused = [candidate for candidate in candidates if fresh.admit(candidate)]
    newly = [candidate for candidate in refused if old is not None and not old.admit(candidate)]
    return {"candidates": len(candidates), "refused": len(refused), "newly_refused": len(newly)}


def _short(value: Any) -> str:
    if value is None:
        return NOT_KNOWN
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(str(entry)[:12] for entry in value[:3])
        return (f"{shown} and {len(value) - 3} more" if len(value) > 3 else shown) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry:g}" for key, entry in value.items()) or "none"
    return str(value)
