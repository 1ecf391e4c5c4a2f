"""The A/A test: the stable model against itself under another batching, once a week and for each stable model.

Where a model disagrees with itself, differences between two models prove nothing: releases stop until it is explained.
Invariant: whoever asks (the daemon at its start, a nomination) asks for the same job, so that its kept result answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from safety.bounds import Bounds, Refusal
from state.jobs import JobSpec
from state.records import JsonObject

DAYS_BETWEEN_TESTS = 7


def week_of(moment: datetime) -> int:
    """The week for which a test is kept."""
    return moment.toordinal() // DAYS_BETWEEN_TESTS


def noise_spec(
    model: str, sealed: Mapping[str, str], tasks: Sequence[JsonObject], batch: int, moment: datetime, code: str
) -> JobSpec:
    """The job; `sealed` holds the digests of vault and guard, `batch` is how many items are scored at once."""
    params = {"aa": True, "batch": batch, "tasks": list(tasks), "week": week_of(moment)}
    return JobSpec("gate", {"model:new": model, "model:old": model, **sealed}, params, 0, code)


def too_noisy(values: JsonObject, bounds: Bounds) -> Refusal | None:
    """The refusal where the share of items on which the model disagreed with itself is over its bound."""
    noise, allowed = values["noise"], bounds.gate.max_noise
    return Refusal("gate.max_noise", noise, allowed) if noise > allowed else None
