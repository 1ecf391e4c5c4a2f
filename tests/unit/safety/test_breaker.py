"""The breaker: one sign is enough to pause, none is no reason."""

from dataclasses import replace

import pytest

from safety.bounds import Bounds
from safety.breaker import Breaker, Signs, failures_in_a_row

FINE = Signs(("PROMOTED", "CRASHED"), False, 100.0, 10.0, 1.0)


def test_more_rollbacks_by_the_watch_than_a_week_may_have_pause() -> None:
    assert Breaker(Bounds()).reason(Signs(rollbacks_this_week=3)) is None
    assert "rate.rollbacks_per_week: 4 rollbacks" in str(Breaker(Bounds()).reason(Signs(rollbacks_this_week=4)))


def test_a_healthy_service_has_no_reason_to_pause() -> None:
    assert Breaker(Bounds()).reason(FINE) is None
    assert Breaker(Bounds()).reason(Signs()) is None


@pytest.mark.parametrize(("signs", "bound"), [
    (replace(FINE, stop_file=True), "breaker.stop_file"),
    (replace(FINE, verdicts=("CRASHED", "TIMED_OUT") * 3), "breaker.consecutive_failures"),
    (replace(FINE, disk_free_gib=0.5), "resources.min_disk_free_gib"),
    (replace(FINE, seconds_today=1e9), "resources.seconds_per_day"),
    (replace(FINE, gpu_hours_today=24.0), "resources.gpu_hours_per_day"),
])
def test_each_sign_pauses_by_its_bounds_name(signs: Signs, bound: str) -> None:
    reason = Breaker(Bounds()).reason(signs)
    assert reason is not None
    assert reason.startswith(bound)


def test_any_other_verdict_ends_a_row_of_failures() -> None:
    assert failures_in_a_row(["CRASHED", "TIMED_OUT", "REJECTED", "CRASHED"]) == 2
    assert failures_in_a_row(["REFUSED", "CRASHED"]) == 0
    assert failures_in_a_row([]) == 0
