"""The look at a model that a cycle made, before the cycle may be promoted: is it finite and within the model limits?

How far it drifted is asked at its release (`safety.release`), from the first and from the last stable model.
"""

from __future__ import annotations

from collections.abc import Callable

from safety.bounds import Bounds, Refusal
from safety.readings import of_model
from state.jobs import JobResult
from state.records import JsonObject

GROWS = "grow"          # the kind of change that may give a model tensors it had not


def inspect_model(
    bounds: Bounds, job: Callable[..., JobResult], base: str, result: str | None, kind: str | None = None
) -> tuple[Refusal | None, JsonObject]:
    """The bound that the made model breaks, or None, and the readings. A cycle that made none, or kept `base`, has
    nothing to inspect.

    `job` runs one job: (kind, inputs, params) -> JobResult; JobFailed passes through. `kind` is that of the change.
    """
    if result is None or result == base:
        return None, {}
    inputs = {"result": result} if kind == GROWS else {"result": result, "like": base}
    facts = job("measure", inputs, {}).values["model"]
    return bounds.accept(facts), of_model(facts)
