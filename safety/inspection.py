"""The look at a model that a cycle made, before the cycle may be promoted: is it finite and within the model limits?

How far it drifted is asked at its release (`safety.release`), from the first and from the last stable model.
"""

from __future__ import annotations

from collections.abc import Callable

from safety.bounds import Bounds, Refusal
from state.jobs import JobResult


def inspect_model(bounds: Bounds, job: Callable[..., JobResult], base: str, result: str | None) -> Refusal | None:
    """The bound that the made model breaks, or None. A cycle that made none, or kept `base`, has nothing to inspect.

    `job` runs one job: (kind, inputs, params) -> JobResult; JobFailed passes through.
    """
    if result is None or result == base:
        return None
    return bounds.accept(job("measure", {"result": result}, {}).values["model"])
