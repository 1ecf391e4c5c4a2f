"""Which arm of a segment is kept: the shaped one, its zero-shaping control, or neither.

Both arms start from the same checkpoint with the same seeds, so their probes pair item by item. Ties are zero: a
shaping has to be clearly better than none, and a segment clearly better than standing still. Pure, no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, variance
from typing import Final

from loops.reward.monitor import Alarm, collapsed, inspect, inspect_verdicts
from state.records import JsonObject

TRACE_POINTS: Final = 48
TRACED: Final = {"truth": "truth", "proxy": "proxy", "shaping": "shaping_trace"}


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference of means with its standard error. `clear`: above one standard error."""

    mean: float
    stderr: float
    n: int

    @property
    def clear(self) -> bool:
        return self.n >= 2 and self.mean > 0 and self.mean > self.stderr

    def to_json(self) -> JsonObject:
        return asdict(self)


def paired(after: Sequence[float], before: Sequence[float]) -> Gain:
    """Mean of after - before over items scored under both. ValueError when the lengths differ."""
    if len(after) != len(before):
        raise ValueError(f"{len(after)} scores cannot be paired with {len(before)}")
    differences = [a - b for a, b in zip(after, before, strict=True)]
    if len(differences) < 2:
        return Gain(sum(differences), 0.0, len(differences))
    return Gain(fmean(differences), math.sqrt(variance(differences) / len(differences)), len(differences))


def improvement(values: JsonObject) -> Gain:
    """What a segment gained: q after against before or, where there is no q, late against early success."""
    if values.get("q_after"):
        return paired(values["q_after"], values["q_before"])
    truth = values["truth"]
    half = len(truth) // 2
    early, late = truth[:half], truth[half:]
    if half < 2:
        return Gain(0.0, 0.0, len(truth))
    stderr = math.sqrt(variance(early) / len(early) + variance(late) / len(late))
    return Gain(fmean(late) - fmean(early), stderr, len(truth))


def advantage(shaped: JsonObject, control: JsonObject) -> Gain:
    """What the shaping gained over zero: by q, or by sampled success step by step (same prompts, same seeds).

    Answers differ in length, so the cap of tokens may cut one arm off at an earlier step than the other. Then q tells
    who was trained for longer, and sampled success over the steps that both did decides.
    """
    shorter, longer = sorted((shaped, control), key=lambda arm: len(arm["truth"]))
    steps = len(shorter["truth"])                                  # an arm may have stopped early, too
    uneven = shorter.get("cut") and steps < len(longer["truth"])
    if shaped.get("q_after") and control.get("q_after") and not uneven:
        return paired(shaped["q_after"], control["q_after"])
    return paired(shaped["truth"][:steps], control["truth"][:steps])


def traces(arms: Mapping[str, JsonObject]) -> JsonObject:
    """{arm: {"truth", "proxy", "shaping"}}: the course of each arm that finished, at most `TRACE_POINTS` means of
    neighbouring steps: what people look at, and what the ledger can bear.
    """
    return {
        name: {key: _thinned(arm["values"].get(source) or []) for key, source in TRACED.items()}
        for name, arm in arms.items() if "failed" not in arm
    }


def _thinned(series: Sequence[float]) -> list[float]:
    width = max(1, -(-len(series) // TRACE_POINTS))
    return [round(fmean(series[begin:begin + width]), 5) for begin in range(0, len(series), width)]


def expected_success(values: JsonObject, when: str = "q_after") -> float | None:
    """q: mean expected success over the probe, None where the task has no single right answer."""
    return fmean(values[when]) if values.get(when) else None


@dataclass(frozen=True, slots=True)
class Weighing:
    """The arm kept ("shaped" or "zero"), its gain over standing still, the shaping's gain over zero, what rang.

    `accepted`: it clearly gained; `believed`: the verdicts that it was trained on may be, and so what was learned from
    them; `sound`: training may go on from where it ended.
    """

    arm: str
    gain: Gain
    over_zero: Gain | None
    alarms: tuple[Alarm, ...]
    guard: str | None
    accepted: bool
    believed: bool
    sound: bool


def weigh(
    arms: Mapping[str, JsonObject], best_q: float | None, history: Sequence[tuple[float, float]]
) -> Weighing:
    """Choose between the arms that finished: "zero", "shaped" or both. `history` ends with the shaped segment.

    A shaped arm that rang an alarm or let q collapse is out; its control, where it has one, may still be kept. Where
    the verdicts themselves are not to be trusted, neither arm is. Arms that paused are compared by how they stood then.
    """
    control, shaped = arms.get("zero"), arms.get("shaped")
    unbelieved = tuple(inspect_verdicts(control["values"])) if control else ()
    if shaped is None or "failed" in shaped:
        return _kept("zero", arms["zero"], best_q, None, unbelieved, None)
    alarms = tuple(inspect(shaped["values"], history))
    alarms += tuple(alarm for alarm in unbelieved if alarm.name not in {known.name for known in alarms})
    guard = _guarded(shaped, best_q)
    if control is None:
        return _kept("shaped", shaped, best_q, None, alarms, guard)
    over_zero = advantage(shaped.get("heat") or shaped["values"], control.get("heat") or control["values"])
    arm = "shaped" if over_zero.clear and not alarms and guard is None else "zero"
    return _kept(arm, arms[arm], best_q, over_zero, alarms, guard)


def _kept(
    name: str, arm: JsonObject, best_q: float | None, over_zero: Gain | None, alarms: tuple[Alarm, ...],
    guard: str | None,
) -> Weighing:
    gain = improvement(arm["values"])
    believed = not inspect_verdicts(arm["values"])
    sound = believed and _guarded(arm, best_q) is None and not (alarms and name == "shaped")
    return Weighing(name, gain, over_zero, alarms, guard, gain.clear and sound, believed, sound)


def _guarded(arm: JsonObject, best_q: float | None) -> str | None:
    known = [q for q in (best_q, expected_success(arm["values"], "q_before")) if q is not None]
    return collapsed(expected_success(arm["values"]), max(known, default=None))
