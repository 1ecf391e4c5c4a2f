"""What a bound's number is now: readings taken from changes, from facts of models and from evidence, by bound name.

Pure, standard library only. Readings feed `kaizend bounds show` and the warning levels. Invariant: they decide
nothing; what is decided on is read in `safety.admission` and `safety.release`. What is not known is absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from safety.admission import rows_a_step
from safety.gate import level
from state.records import JsonObject

MODEL = {
    "parameters": "max_parameters", "layers": "max_layers", "file_gib": "max_file_gib", "dtypes": "dtypes",
    "vocabulary": "max_vocabulary", "hidden": "max_hidden", "intermediate": "max_intermediate",
}
SERVING = ("latency_ratio", "speed_ratio", "memory_ratio", "latency_ms", "tokens_per_second", "memory_gib")


def of_model(facts: JsonObject) -> JsonObject:
    """From the value "model" of job "measure", or the facts of a folder."""
    found: JsonObject = {f"model.{key}": facts[name] for name, key in MODEL.items() if name in facts}
    if "model_type" in facts:
        found["model.architectures"] = [facts["model_type"]]
    return found


def of_change(change: Any, step: float | None = None) -> JsonObject:
    """From a candidate's change, of whatever form. `step` is its largest step from the incumbent, where it is known."""
    if not isinstance(change, dict):
        return {}
    found: JsonObject = {}
    weights = [*_numbers(change.get("weights")), *_numbers(change.get("scales"))]
    if weights:
        found |= {"search.min_weight": min(weights), "search.max_weight": max(weights)}
    if isinstance(change.get("parents"), list):
        found["search.max_parents"] = len(change["parents"])
    operator = change.get("operator") if change.get("kind") == "merge" else change.get("kind")
    scales = list(_numbers(change.get("scales")))
    if scales and change.get("kind") == "path":
        found |= {"search.min_scale": min(scales), "search.max_scale": max(scales)}
        found["model.max_layers"] = len(scales)
    if operator in ("crossover", "path", "keep") or change.get("kind") == "merge":
        found["search.operators"] = [operator]
    if step is not None:
        found["search.largest_step"] = step
    return found | _of_recipe(change.get("recipe")) | _of_shaping(change.get("shaping"))


def of_release(evidence: Mapping[str, Any]) -> JsonObject:
    """From the evidence of a RELEASE row."""
    found = of_model(evidence.get("model", {}))
    for name in ("reference", "stable"):
        found |= {f"drift.{name}.{key}": value for key, value in evidence.get(f"drift_{name}", {}).items()}
    if "drift_week" in evidence:
        found["rate.drift_per_week"] = evidence["drift_week"]
    if "calibration" in evidence:
        found["behaviour.calibration"] = evidence["calibration"]["error"]
    if "canaries" in evidence:
        found["behaviour.canaries"] = sum(map(len, evidence["canaries"].values()))
    found |= {f"serving.{key}": evidence["serving"][key] for key in SERVING if key in evidence.get("serving", {})}
    if "aa" in evidence:
        found["gate.max_noise"] = evidence["aa"]["noise"]
    scored = evidence.get("tasks", {})
    lost = [scored[task]["old"] - scored[task]["new"] for task in evidence.get("guards", {}) if task in scored]
    if lost:
        found["guards.margin"] = max(lost)
    if "k" in evidence and "alpha" in evidence:
        found["gate.alpha"] = sum(k * level(k, evidence["alpha"]) for k in range(1, int(evidence["k"]) + 1))
    return found


def _of_recipe(recipe: Any) -> JsonObject:
    if not isinstance(recipe, dict):
        return {}
    found: JsonObject = {"pipeline.stages": [recipe.get("stage")]}
    rate = recipe.get("learning_rate")
    found |= _known({
        "pipeline.max_learning_rate": rate, "pipeline.min_learning_rate": rate,
        "pipeline.max_steps": recipe.get("steps"), "pipeline.max_batch": rows_a_step(recipe),
    })
    adapter = recipe.get("adapter", {"kind": "none"})
    if isinstance(adapter, dict):
        found["pipeline.adapters"] = [adapter.get("kind")]
        found |= {"pipeline.max_rank": adapter["rank"]} if "rank" in adapter else {}
    return found


def _known(readings: JsonObject) -> JsonObject:
    return {name: value for name, value in readings.items() if isinstance(value, (int, float))}


def _of_shaping(shaping: Any) -> JsonObject:
    if not isinstance(shaping, dict):
        return {}
    weights = shaping.get("weights")
    paid = [name for name, weight in weights.items() if weight] if isinstance(weights, dict) else []
    return {"reward.max_strength": shaping.get("strength"), "reward.features": paid}


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield value
