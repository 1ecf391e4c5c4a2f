"""The look at a model that a cycle made, before the cycle may be promoted: is it finite and within the model limits?

How far it drifted is asked at its release (`safety.release`), from the first and from the last stable model.
"""

from __future__ import annotations

from collections.abc import Callable

from safety.bounds import Bounds, Refusal
from safety.layers import PATH
from safety.readings import of_model
from state.jobs import JobResult
from state.records import JsonObject

GROWS = "grow"          # the kind of change that may give a model tensors it had not


def inspect_model(
    bounds: Bounds, job: Callable[..., JobResult], base: str, result: str | None, change: JsonObject | None = None
) -> tuple[Refusal | None, JsonObject]:
    """The bound that the made model breaks, or None, and the readings. A cycle that made none, or kept `base`, has
    nothing to inspect.

    `job` runs one job: (kind, inputs, params) -> JobResult; JobFailed passes through. `change` is what was carried out.
    """
    if result is None or result == base:
        return None, {}
    change = change or {}
    kind = change.get("kind")
    inputs = {"result": result} if kind == GROWS else {"result": result, "like": model_of_origin(change, base)}
    facts = job("measure", inputs, {"any_depth": True} if kind == PATH else {}).values["model"]
    return bounds.accept(facts), of_model(facts)


def model_of_origin(change: JsonObject, base: str) -> str:
    """The model whose tensors the result of a change must have: what it was made from, and what is in force only where
    that is what was changed.
    """
    if change.get("kind") not in ("merge", "crossover", PATH):
        return base
    return str(change.get("base") or (change.get("parents") or [base])[0])
