"""What a release has to meet besides drift and gate: the week's drift, calibration, the cost of serving it.

Pure but for reading the ledger. Not here: when a nomination is asked (`safety.release`), what is measured (jobs
"measure" and "serve"). Invariant: none of it depends on what the vault says of the model at hand, so it is asked
before the gate; which models are stable, and so the week's sum, depends on earlier answers exactly as drift from the
last stable model does, and the gate's level is shared among all models that could be stable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from safety.bounds import Bounds, Refusal
from safety.limits import Looser, limits_of
from state.ledger import Ledger
from state.records import Event, JsonObject, Row, Verdict

WEEK = timedelta(days=7)


def of_week(
    ledger: Ledger, moment: datetime, drift: Mapping[str, Any], bounds: Bounds
) -> tuple[Refusal | None, JsonObject]:
    """The refusal of a release that would take the week over `rate.drift_per_week`, and the sum with it.

    What of the drift could not be measured (models of other shapes) counts 0: `model.same_schema` is asked for those.
    """
    released = (
        row.evidence.get("drift_stable", {}).get("relative_frobenius", 0.0)
        for row in ledger.rows(event=Event.RELEASE)
        if row.verdict == Verdict.PROMOTED and moment - _time(row) < WEEK
    )
    total = sum(released) + drift.get("relative_frobenius", 0.0)
    allowed = bounds.rate.drift_per_week
    return Refusal("rate.drift_per_week", total, allowed) if total > allowed else None, {"drift_week": total}


def calibrated(evidence: Mapping[str, Any], bounds: Bounds) -> Refusal | None:
    """The refusal of a model whose confidence is too far from how often it is right; None where nothing was probed."""
    if "calibration" not in evidence:
        return None
    error, allowed = evidence["calibration"]["error"], bounds.behaviour.calibration
    return None if _is_number(error) and error <= allowed else Refusal("behaviour.calibration", error, allowed)


def outgrown(evidence: Mapping[str, Any], bounds: Bounds) -> Iterator[Refusal]:
    """What these conditions, as they are now, no longer allow of the numbers that a nomination's evidence keeps."""
    refusals = [calibrated(evidence, bounds)]
    if "serving" in evidence:
        refusals.append(served(evidence["serving"], bounds))
    if evidence.get("drift_week", 0.0) > bounds.rate.drift_per_week:
        refusals.append(Refusal("rate.drift_per_week", evidence["drift_week"], bounds.rate.drift_per_week))
    yield from (refusal for refusal in refusals if refusal)


def served(values: Mapping[str, Any], bounds: Bounds) -> Refusal | None:
    """The first serving limit that is broken, or None. A number that is missing breaks its limit."""
    return next(_broken(values, bounds), None)


def _broken(values: Mapping[str, Any], bounds: Bounds) -> Iterator[Refusal]:
    for key, allowed, about in limits_of(bounds.serving):
        value = values.get(key)
        good = _is_number(value) and (value >= allowed if about.looser is Looser.DOWN else value <= allowed)
        if not good:
            yield Refusal(f"serving.{key}", value, allowed)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _time(row: Row) -> datetime:
    moment = datetime.fromisoformat(row.time)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
