"""When the service stops by itself: failures in a row, rollbacks, the stop file, a day's budget, a full disk, changed
code.

Pure and standard library only: the daemon gathers the signs and acts on the answer. Not here: limits on one change
(`safety.bounds`) or one job. Invariant: with no sign over its limit the answer is None, and one sign is enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from safety.bounds import Bounds
from state.records import Verdict

JOULES_PER_KWH = 3.6e6
FAILURES = frozenset({str(Verdict.CRASHED), str(Verdict.TIMED_OUT)})


@dataclass(frozen=True, slots=True)
class Signs:
    """What the breaker looks at. `verdicts` are those of the last outermost cycles, the newest first."""

    verdicts: tuple[str, ...] = ()
    stop_file: bool = False
    disk_free_gib: float = float("inf")
    seconds_today: float = 0.0
    gpu_hours_today: float = 0.0
    rollbacks_this_week: int = 0       # that the daemon made by itself
    joules_today: float | None = None            # None: energy cannot be read here
    tampered: str | None = None                  # why releases have stopped (`safety.protected`)


@dataclass(frozen=True, slots=True)
class Breaker:
    """Holds the bounds that pause the service."""

    bounds: Bounds

    def reason(self, signs: Signs) -> str | None:
        """Why the service must pause, in words that name the bound, or None."""
        breaker, resources = self.bounds.breaker, self.bounds.resources
        failures = failures_in_a_row(signs.verdicts)
        kwh = (signs.joules_today or 0.0) / JOULES_PER_KWH
        checks = (
            (signs.tampered is not None, f"releases have stopped: {signs.tampered}"),
            (signs.stop_file, f"breaker.stop_file: the file {breaker.stop_file} is there"),
            (
                failures >= breaker.consecutive_failures,
                f"breaker.consecutive_failures: the last {failures} cycles crashed or timed out",
            ),
            (
                signs.rollbacks_this_week > self.bounds.rate.rollbacks_per_week,
                f"rate.rollbacks_per_week: {signs.rollbacks_this_week} rollbacks by the watch in 7 days, "
                f"{self.bounds.rate.rollbacks_per_week} are allowed",
            ),
            (
                signs.disk_free_gib < resources.min_disk_free_gib,
                f"resources.min_disk_free_gib: {signs.disk_free_gib:.1f} GiB are free, "
                f"{resources.min_disk_free_gib:g} must remain",
            ),
            (
                signs.seconds_today >= resources.seconds_per_day,
                f"resources.seconds_per_day: the day's {resources.seconds_per_day:g} seconds are used up",
            ),
            (
                signs.gpu_hours_today >= resources.gpu_hours_per_day and signs.gpu_hours_today > 0,
                f"resources.gpu_hours_per_day: the day's {resources.gpu_hours_per_day:g} GPU hours are used up",
            ),
            (
                kwh >= resources.energy_kwh_per_day and kwh > 0,
                f"resources.energy_kwh_per_day: the day's {resources.energy_kwh_per_day:g} kWh are used up",
            ),
        )
        return next((reason for met, reason in checks if met), None)


def failures_in_a_row(verdicts: Iterable[str]) -> int:
    """How many verdicts, from the newest back, are failures without anything else between."""
    count = 0
    for verdict in verdicts:
        if str(verdict) not in FAILURES:
            break
        count += 1
    return count
