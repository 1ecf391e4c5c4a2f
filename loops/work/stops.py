"""When training ends early, in words: a segment of reinforcement (ALGORITHMS 6), or tokens that do not suffice.

Pure. Losses that are no numbers are the business of `loops.work.watch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PATIENCE: Final = 20
MOST_FLAT: Final = 0.95
MOST_CLIPPED: Final = 0.8
LEAST_ENTROPY: Final = 0.25
ENTROPY_STEPS: Final = 10
MOST_KL: Final = 4.0
"""Nats a token from where the segment began."""


def reason_to_stop(
    flat: Sequence[float], clipped: Sequence[float], entropy: Sequence[float], kl: Sequence[float]
) -> str | None:
    """The first reason that holds. `flat`: share of groups whose rewards are all equal, per step (TRL's own figure is
    computed on the batch); `clipped`: share of answers cut off by the length; `entropy` and `kl`: nats a token.
    """
    if _for_long(flat, MOST_FLAT):
        return f"over {MOST_FLAT:.0%} of the groups had no spread for {PATIENCE} steps"
    if _for_long(clipped, MOST_CLIPPED):
        return f"over {MOST_CLIPPED:.0%} of the answers were cut off for {PATIENCE} steps"
    if len(entropy) >= 2 * ENTROPY_STEPS and _mean(entropy[-ENTROPY_STEPS:]) < LEAST_ENTROPY * _mean(
        entropy[:ENTROPY_STEPS]
    ):
        return f"entropy fell under {LEAST_ENTROPY:.0%} of its start"
    if kl and kl[-1] > MOST_KL:
        return f"KL from the start is {kl[-1]:.2f}, over {MOST_KL} a token"
    return None


def out_of_tokens(max_tokens: int | None, steps_done: int) -> str:
    """Why a job that may use no more than `max_tokens` does no further step."""
    return f"the {max_tokens} tokens it may use do not suffice for {'another' if steps_done else 'a'} step"


def _for_long(values: Sequence[float], limit: float) -> bool:
    return len(values) >= PATIENCE and min(values[-PATIENCE:]) > limit


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
