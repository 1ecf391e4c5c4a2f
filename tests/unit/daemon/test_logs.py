"""What the service tells of jobs that take long."""

from __future__ import annotations

from typing import Any

from daemon.logs import Paces


class Told:
    """Stands for the log, and for the clock that the lines are timed by."""

    def __init__(self) -> None:
        self.now, self.lines = 100.0, list[tuple[str, int, str]]()

    def info(self, event: str, **more: Any) -> None:
        assert event == "progressed"
        self.lines.append((more["job"], more["percent"], more["note"]))


def test_a_long_job_has_a_line_every_half_minute_and_a_short_one_none() -> None:
    told = Told()
    paces = Paces(told, lambda: told.now)                                                      # type: ignore[arg-type]
    for second in range(100):
        told.now += 1.0
        paces("build", second / 100, f"70 MB/s, {100 - second} s left")
        paces("screen", second % 20 / 20, "")                                      # a new one every twenty seconds
    assert told.lines == [("build", second, f"70 MB/s, {100 - second} s left") for second in (30, 60, 90)]
