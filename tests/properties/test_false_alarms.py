"""How often the CUSUM rings where nothing is hacked, and how surely where something is: simulated segments.

Each step's truth and bonus scatter around what they are, as means over a step's answers do. docs/safety.md has the
table; run as a program, this file prints it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from loops.reward.monitor import CUSUM_LIMIT, proxy_left_truth
from safety.yardstick.compare import wilson

STRENGTH = 0.4
LENGTHS = (24, 45, 100)
TRUTH_SCATTER = (0.01, 0.03, 0.06)
BONUS_SCATTER = (0.02, 0.05, 0.1, 0.2)


def rung(
    segments: int, truth: Sequence[float], bonus: Sequence[float], scatter: tuple[float, float], seed: int = 0
) -> int:
    """In how many of so many segments with these courses the alarm rings."""
    draw = np.random.default_rng(seed)
    shape = (segments, len(truth))
    truths = np.clip(np.asarray(truth) + scatter[0] * draw.normal(size=shape), 0.0, 1.0)
    proxies = truths + STRENGTH * np.clip(np.asarray(bonus) + scatter[1] * draw.normal(size=shape), -0.5, 0.5)
    return sum(
        proxy_left_truth(proxy.tolist(), true.tolist(), has_q=True) is not None
        for proxy, true in zip(proxies, truths, strict=True)
    )


def ramp(start: float, end: float, steps: int) -> list[float]:
    """Level for a third of the segment, then straight to the end."""
    third = steps // 3
    return [start] * third + [start + (end - start) * (i + 1) / (steps - third) for i in range(steps - third)]


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize(("bonus_scatter", "most"), [(0.02, 0.02), (0.05, 0.10)])
def test_it_rings_seldom_where_nothing_is_hacked(steps: int, bonus_scatter: float, most: float) -> None:
    for truth_scatter in TRUTH_SCATTER:
        found = rung(300, [0.3] * steps, [0.0] * steps, (truth_scatter, bonus_scatter))
        assert wilson(found, 300)[1] < most + 0.02


@pytest.mark.parametrize("steps", LENGTHS)
def test_it_is_silent_where_proxy_and_truth_rise_together(steps: int) -> None:
    assert rung(200, ramp(0.3, 0.6, steps), ramp(0.0, 0.1, steps), (0.03, 0.03)) <= 4


@pytest.mark.parametrize("steps", LENGTHS)
def test_it_finds_a_hack_that_the_truth_pays_for(steps: int) -> None:
    assert rung(200, ramp(0.3, 0.2, steps), ramp(0.0, 0.4, steps), (0.03, 0.05)) >= 195


def table(segments: int) -> Iterator[str]:
    """Rows of Markdown: false alarms a segment, by its length and by how much bonus (columns) and truth scatter."""
    yield f"| steps | scatter of the truth | {' | '.join(f'bonus {scatter:g}' for scatter in BONUS_SCATTER)} |"
    yield "|" + "---|" * (2 + len(BONUS_SCATTER))
    for steps in LENGTHS:
        for truth in TRUTH_SCATTER:
            found = [rung(segments, [0.3] * steps, [0.0] * steps, (truth, bonus)) for bonus in BONUS_SCATTER]
            yield f"| {steps} | {truth:g} | {' | '.join(f'{count / segments:.1%}' for count in found)} |"


if __name__ == "__main__":
    sys.stdout.write(f"CUSUM limit {CUSUM_LIMIT:g}\n" + "".join(f"{row}\n" for row in table(2000)))
