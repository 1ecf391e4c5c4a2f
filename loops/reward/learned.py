"""The learned feature: when its reward model is made anew, and whether it may pay in the next segment.

The pairs it learns from are the model's own answers, right ones against wrong ones by the strict verifier. Before each
segment that would pay for it, it has to rank fresh pairs of the model that is trained, or it is left out of that
segment. It never pays more than the other features together, so no shaping rests on it alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from loops.loop import Bench
from loops.reward.features import LEARNED
from loops.reward.shaping import Shaping
from state.jobs import JobFailed, JobResult
from state.records import JsonObject

LEAST_PAIRS: Final = 32
"""No reward model is trained on fewer."""
LEAST_CHECKED: Final = 16
LEAST_ACCURACY: Final = 0.6
"""What a reward model reaches less one standard error, or it does not pay. Guessing reaches a half."""
SAMPLES: Final = 8
SHARE: Final = 4
"""Sampling pairs, and training on them, may each use one in so many of the tokens that are left."""
EPOCHS: Final = 3
TRAINING: Final[Mapping[str, Any]] = {
    "learning_rate": 2e-4, "batch": 16, "adapter": {"kind": "lora", "rank": 16, "alpha": 32.0},
}


def bounded(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights, the learned one no larger than the others together; nothing is left of one that stands alone."""
    others = math.fsum(value for name, value in weights.items() if name != LEARNED)
    held = {name: min(value, others) if name == LEARNED else value for name, value in weights.items()}
    return {name: value for name, value in held.items() if value > 0}


def without(shaping: Shaping) -> Shaping:
    """The same shaping, the learned feature left out."""
    return replace(shaping, weights={name: v for name, v in shaping.weights.items() if name != LEARNED})


def clears(accuracy: float, pairs: int) -> bool:
    """Whether so many pairs show that a reward model ranks well enough."""
    stderr = math.sqrt(accuracy * (1 - accuracy) / pairs) if pairs else 1.0
    return pairs >= LEAST_CHECKED and accuracy - stderr >= LEAST_ACCURACY


def prepared(
    known: JsonObject | None, paying: bool, every: int, segments: int, asked: JsonObject, inputs: Mapping[str, str],
    bench: Bench,
) -> JsonObject:
    """The reward model of the next segment: {"model" (None: there is none), "segment" (when it was made or tried),
    "trained" (in this cycle), "pairs", "accuracy", "left_out" (why it must not pay, None where it may)}.

    `known` is what this gave before, `paying` whether the segment would pay for the feature; `segments` were done so
    far, and the model is due `every` so many. `asked` are the tasks and the prompts of the pairs, `inputs` the model
    that is trained and the seal.
    """
    due = known is None or segments - known["segment"] >= every
    if known is not None and not due and not (paying and known["model"]):
        return {**known, "trained": False, "left_out": None if known["model"] else known["left_out"]}
    kept: JsonObject = {
        "model": known["model"] if known else None, "segment": segments if due or not known else known["segment"],
        "trained": False, "pairs": 0, "accuracy": None,
    }
    params = {**asked, "samples": SAMPLES, "temperature": 1.0, "max_tokens": bench.left.tokens // SHARE}
    found = _alone(bench.jobs([bench.spec("pairs", inputs, params, bench.seed("pairs"))]))
    if isinstance(found, JobFailed):
        return {**kept, "left_out": f"no pairs were made: {found}"}
    kept["pairs"] = found.values["pairs"]
    if due and kept["pairs"] >= LEAST_PAIRS:
        return _trained(kept, found.outputs["pairs"], inputs["model"], bench)
    if kept["model"] is None or not kept["pairs"]:
        return {**kept, "left_out": f"{kept['pairs']} pairs are too few"}
    return _checked(kept, found.outputs["pairs"], bench)


def _trained(kept: JsonObject, pairs: str, model: str, bench: Bench) -> JsonObject:
    params = {
        **TRAINING, "steps": max(1, EPOCHS * kept["pairs"] // TRAINING["batch"]),
        "max_tokens": bench.left.tokens // SHARE,
    }
    made = _alone(bench.jobs([
        bench.spec("reward_model", {"model": model, "pairs": pairs}, params, bench.seed("reward_model"))
    ]))
    if isinstance(made, JobFailed):
        return {**kept, "left_out": f"the reward model was not trained: {made}"}
    if not made.outputs:
        return {**kept, "left_out": f"the reward model was not trained: {made.values['stopped']}"}
    fresh = {**kept, "model": made.outputs["model"], "trained": True}
    return _judged(fresh, made.values["accuracy"], made.values["held_out"])


def _checked(kept: JsonObject, pairs: str, bench: Bench) -> JsonObject:
    seen = _alone(bench.jobs([
        bench.spec("reward_check", {"reward_model": kept["model"], "pairs": pairs}, {}, bench.seed("reward_check"))
    ]))
    if isinstance(seen, JobFailed):
        return {**kept, "left_out": f"the reward model was not examined: {seen}"}
    return _judged(kept, seen.values["accuracy"], seen.values["pairs"])


def _judged(kept: JsonObject, accuracy: float, pairs: int) -> JsonObject:
    told = f"it ranks {accuracy:.0%} of {pairs} fresh pairs"
    return {**kept, "accuracy": accuracy, "left_out": None if clears(accuracy, pairs) else told}


def _alone(results: Sequence[JobResult | JobFailed]) -> JobResult | JobFailed:
    (result,) = results
    return result
