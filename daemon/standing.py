"""Where each bound stands: the readings of the moment, from the ledger, the day's jobs, the models and the disk.

For `kaizend bounds show`, `bounds check`, `status` and the service's warnings. Reads only; no torch and no weights.
What is not known (nothing was released yet, energy cannot be read) is absent.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from daemon.places import Places
from safety.bounds import Bounds
from safety.breaker import JOULES_PER_KWH, failures_in_a_row
from safety.headers import HeaderError, facts_of
from safety.licences import licences_of
from safety.readings import of_change, of_model, of_release
from state.reading import Reading
from state.records import Cost, Event, JsonObject, Row

GIB = 2**30
LATEST = 50                # closed cycles that are looked at
STAMP = "%Y-%m-%dT%H:%M:%S"
MODELS = ("stable", "working")


def readings_now(places: Places, bounds: Bounds) -> JsonObject:
    """The readings by the names of their bounds. Where several things could be read, the one nearest to its limit."""
    existing = next(folder for folder in (places.state, *places.state.parents) if folder.exists())
    found: JsonObject = {"resources.min_disk_free_gib": shutil.disk_usage(existing).free / GIB}
    found["breaker.stop_file"] = "there" if (places.state / bounds.breaker.stop_file).exists() else "not there"
    if not places.database.is_file():
        return found
    with Reading(places.database) as reading:
        found |= _of_ledger(reading)
        for digest in models_in_force(reading).values():
            found = _nearest(found, _of_folder(places.state / "artifacts" / digest[:2] / digest))
        found |= _of_origin(reading, places)
    return found


def models_in_force(reading: Reading) -> dict[str, str]:
    """Stable and working, by name."""
    return {name: str(pointer["digest"]) for name, pointer in reading.channels().items() if name in MODELS}


def closed_cycles(reading: Reading, count: int = LATEST) -> list[Row]:
    """The last cycles with a verdict, the oldest first."""
    return reading.rows(limit=count, events=[str(Event.CLOSED)])


def last_release(reading: Reading) -> Row | None:
    """The newest answered nomination that was measured: one refused before that says nothing of where bounds stand."""
    answered = reversed(reading.rows(limit=LATEST, events=[str(Event.RELEASE)]))
    return next((row for row in answered if isinstance(row.evidence, dict) and "drift_stable" in row.evidence), None)


def facts_in_force(places: Places, reading: Reading) -> Iterator[tuple[str, JsonObject]]:
    """What the headers of each model in force say, by channel; the same model once."""
    seen: set[str] = set()
    for name, digest in models_in_force(reading).items():
        if digest in seen:
            continue
        seen.add(digest)
        try:
            yield name, {**facts_of(places.state / "artifacts" / digest[:2] / digest), "non_finite": 0}
        except HeaderError:
            continue


def _of_ledger(reading: Reading) -> JsonObject:
    now = datetime.now(UTC)
    found: JsonObject = {}
    release = last_release(reading)
    if release is not None:
        found |= of_release(release.evidence)
    for answered in reading.rows(limit=1, events=[str(Event.RELEASE)]):
        ended = datetime.fromisoformat(answered.time)
        ended = ended if ended.tzinfo else ended.replace(tzinfo=UTC)
        found["rate.dwell_seconds"] = round((now - ended).total_seconds(), 1)
    day_ago = (now - timedelta(days=1)).strftime(STAMP)
    nominated = reading.rows(limit=10_000, events=[str(Event.NOMINATED)], since=day_ago)
    found["rate.releases_per_day"] = len(nominated)
    for row in closed_cycles(reading):
        found = _nearest(found, of_change(row.change))
    roots = [row for row in closed_cycles(reading) if row.parent is None]
    found["breaker.consecutive_failures"] = failures_in_a_row(str(row.verdict) for row in reversed(roots))
    newest = reading.rows(limit=1, events=[str(Event.NOMINATED)])
    since = newest[-1].id if newest else 0
    found["rate.cycles_between_nominations"] = sum(row.id > since for row in roots)
    return found | _of_day(reading, now)


def _of_day(reading: Reading, now: datetime) -> JsonObject:
    longest, spent = 0.0, Cost()
    for cost in reading.costs_since(now.strftime("%Y-%m-%d")):
        longest, spent = max(longest, cost.seconds), spent + cost
    found: JsonObject = {
        "resources.job_seconds": longest,
        "resources.seconds_per_day": spent.seconds, "resources.gpu_hours_per_day": spent.gpu_seconds / 3600,
    }
    if spent.joules is not None:
        found["resources.energy_kwh_per_day"] = spent.joules / JOULES_PER_KWH
    return found


def _of_folder(folder: Path) -> JsonObject:
    try:
        return of_model(facts_of(folder))
    except HeaderError:
        return {}


def _of_origin(reading: Reading, places: Places) -> JsonObject:
    """What the life began with."""
    rows = reading.rows(limit=1, events=[str(Event.GENESIS)])
    if not rows:
        return {}
    change = rows[0].change
    models = sorted({change["start"], change["base"], *change["parents"]})
    folders = [places.state / "artifacts" / digest[:2] / digest for digest in models]
    licences = sorted({name for folder in folders if folder.is_dir() for name in licences_of(folder)})
    return {"supply.parents": models, "supply.licences": licences, "supply.formats": ["safetensors"]}


def _nearest(found: JsonObject, more: JsonObject) -> JsonObject:
    """Both readings; of two numbers the larger (the smaller for what must not fall), of two lists all members."""
    merged = dict(found)
    for name, value in more.items():
        known = merged.get(name)
        if isinstance(value, list):
            merged[name] = [*(known or []), *(member for member in value if member not in (known or []))]
        elif isinstance(value, (int, float)) and isinstance(known, (int, float)):
            merged[name] = min(known, value) if ".min_" in name else max(known, value)
        elif value is not None:
            merged[name] = value
    return merged
