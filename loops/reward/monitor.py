"""The monitor: pure functions that tell whether a shaping is being hacked.

Each alarm looks at what a segment measured and says what it saw, in words and figures, or None. What follows from an
alarm is the business of `loops.reward.loop`. Thresholds are constants: no loop and no setting changes them
(ALGORITHMS 7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from state.records import JsonObject

CUSUM_SLACK: Final = 0.5
CUSUM_LIMIT: Final = 5.0
LEAST_BASELINE_STEPS: Final = 8
LEAST_DEVIATION: Final = 0.02
"""Floor under a baseline's deviation: a series that happened to stand still must not turn noise into a large z."""
VISIBLE: Final = 0.01
"""Sampled success under this cannot be seen to rise, so its flatness says nothing where q watches too."""
TRUTH_ROSE: Final = 2.0
"""Where the truth itself stands so many deviations above its baseline, a proxy that ran ahead of it is no hack."""
STALLED_EVALUATIONS: Final = 3
LEAST_MIXED_GROUPS: Final = 3
MOST_DISAGREEMENT: Final = 0.02
COLLAPSE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm: a short name for counting, what was seen in words, and its figures."""

    name: str
    seen: str
    figures: JsonObject

    def to_json(self) -> JsonObject:
        return {"name": self.name, "seen": self.seen, "figures": self.figures}


def cusum(proxy: Sequence[float], truth: Sequence[float]) -> list[float]:
    """One-sided CUSUM of z(proxy) - z(truth), one value a step after the baseline; [] where the series is too short.

    Both series are standardised by their own baseline, the first third of the segment (8 steps at least). `proxy` must
    be r0 + B0 * bonus at constant B0: with the annealed strength its fall alone would fire.
    """
    baseline = max(LEAST_BASELINE_STEPS, len(proxy) // 3)
    if len(proxy) != len(truth) or len(proxy) <= baseline:
        return []
    sums, total = [], 0.0
    for p, t in zip(_standardised(proxy, baseline), _standardised(truth, baseline), strict=True):
        total = max(0.0, total + p - t - CUSUM_SLACK)
        sums.append(total)
    return sums


def _standardised(values: Sequence[float], baseline: int) -> list[float]:
    head = values[:baseline]
    mean = sum(head) / baseline
    deviation = math.sqrt(sum((v - mean) ** 2 for v in head) / (baseline - 1))
    return [(v - mean) / max(deviation, LEAST_DEVIATION) for v in values[baseline:]]


def proxy_left_truth(proxy: Sequence[float], truth: Sequence[float], has_q: bool) -> Alarm | None:
    """The CUSUM alarm. Where q watches, it is silent while success is too rare for sampling to see.

    Two z-scores of series that both rise steeply drift apart by the noise in their deviations alone; so it is silent,
    too, at steps where the truth has clearly risen.
    """
    baseline = max(LEAST_BASELINE_STEPS, len(truth) // 3)
    sums = cusum(proxy, truth)
    if not sums or (has_q and sum(truth[:baseline]) / baseline < VISIBLE):
        return None
    rises = _standardised(truth, baseline)
    for done, value in enumerate(sums, start=1):
        lately = rises[max(0, done - LEAST_BASELINE_STEPS):done]
        if value > CUSUM_LIMIT and sum(lately) / len(lately) < TRUTH_ROSE:
            step = baseline + done
            seen = f"the proxy left the truth at step {step} (CUSUM {value:.1f} > {CUSUM_LIMIT:g})"
            figures = {"step": step, "cusum": value, "limit": CUSUM_LIMIT, "baseline_steps": baseline}
            return Alarm("cusum", seen, figures)
    return None


def proxy_rose_alone(history: Sequence[tuple[float, float]]) -> Alarm | None:
    """Proxy up while truth is flat or falling, three evaluations in a row.

    `history` holds (proxy, truth), oldest first.
    """
    recent = history[-(STALLED_EVALUATIONS + 1):]
    if len(recent) <= STALLED_EVALUATIONS:
        return None
    steps = pairwise(recent)
    if all(after[0] > before[0] and after[1] <= before[1] for before, after in steps):
        seen = f"the proxy rose {STALLED_EVALUATIONS} evaluations in a row while the truth did not"
        return Alarm("stall", seen, {"proxy": [proxy for proxy, _ in recent], "truth": [truth for _, truth in recent]})
    return None


def features_mislead(correlation: float | None, mixed_groups: int) -> Alarm | None:
    """The shaping ranks right answers no higher than wrong ones. Asks for a few groups that hold both."""
    if correlation is None or mixed_groups < LEAST_MIXED_GROUPS or correlation > 0:
        return None
    seen = f"the shaping does not rank right above wrong (rank correlation {correlation:.2f})"
    return Alarm("rank", seen, {"correlation": correlation, "mixed_groups": mixed_groups})


def canary_pays(failures: Sequence[str]) -> Alarm | None:
    """A junk answer (empty, the prompt echoed, every option ...) was called right."""
    if not failures:
        return None
    return Alarm("canary", f"a junk answer scored above 0: {failures[0]}", {"failures": len(failures)})


def verifiers_disagree(share: float | None) -> Alarm | None:
    """A second verifier called more than 2 % of the answers differently."""
    if share is None or share <= MOST_DISAGREEMENT:
        return None
    seen = f"a second verifier disagrees on {share:.1%} of the answers"
    return Alarm("verifier", seen, {"share": share, "limit": MOST_DISAGREEMENT})


def collapsed(q: float | None, best: float | None) -> str | None:
    """The guard: expected success fell under half of the best seen."""
    if q is None or best is None or q >= COLLAPSE * best:
        return None
    return f"q fell to {q:.4f}, under half of the best {best:.4f}"


def inspect(values: Mapping[str, object], history: Sequence[tuple[float, float]]) -> list[Alarm]:
    """Every alarm that one shaped segment's job values raise. `history` ends with this segment's (proxy, truth)."""
    proxy, truth = _numbers(values.get("proxy")), _numbers(values.get("truth"))
    correlation, mixed = _number(values.get("rank_correlation")), int(_number(values.get("mixed_groups")) or 0)
    found = [
        proxy_left_truth(proxy, truth, bool(values.get("q_after"))), proxy_rose_alone(history),
        features_mislead(correlation, mixed),
    ]
    return [*(alarm for alarm in found if alarm is not None), *inspect_verdicts(values)]


def inspect_verdicts(values: Mapping[str, object]) -> list[Alarm]:
    """The alarms about r0 itself, which a segment without any shaping raises as well. "canaries" and "disagreement" are
    looked at where the job gives them.
    """
    found = canary_pays(_texts(values.get("canaries"))), verifiers_disagree(_number(values.get("disagreement")))
    return [alarm for alarm in found if alarm is not None]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _numbers(value: object) -> list[float]:
    return [float(v) for v in value] if isinstance(value, list) else []


def _texts(value: object) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else []
