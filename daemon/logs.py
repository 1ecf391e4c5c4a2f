"""How the service speaks: structlog, JSON lines under systemd and readable lines on a terminal.

An event is a past-tense verb with the loop, cycle and verdict it is about. Logs go to stderr; the ledger, not the log,
is the record.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, Literal

import structlog

Log = structlog.typing.FilteringBoundLogger
BETWEEN_SECONDS: Final = 30.0
"""Between two lines about one job that takes long; a shorter one has none."""


def configure_logs(form: Literal["auto", "json", "text", "quiet"]) -> Log:
    """Set the one configuration of structlog. `auto` means JSON where the journal or a pipe listens; `quiet`
    keeps all but warnings to itself."""
    readable = form == "text" or (form == "auto" and sys.stderr.isatty() and "JOURNAL_STREAM" not in os.environ)
    last: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(pad_event_to=14) if readable else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if readable else "iso", utc=not readable),
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if form == "quiet" else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    log: Log = structlog.get_logger()
    return log


class Paces:
    """Tells the log how far long jobs are, with what they say of it: a build its rate and the time left. Jobs are told
    apart by their kind, and one that begins anew by its share. Any thread may call it.
    """

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, float]] = {}         # by kind: when, and the share of it that was last heard

    def __call__(self, kind: str, done: float, note: str) -> None:
        with self._lock:
            now = self._clock()
            since, before = self._told.get(kind, (now, 0.0))
            since = now if done < before else since
            due = now - since >= BETWEEN_SECONDS
            self._told[kind] = (now if due else since, done)
        if due:
            self._log.info("progressed", job=kind, percent=round(100 * done), note=note)
