"""How the service speaks: structlog, JSON lines under systemd and readable lines on a terminal.

An event is a past-tense verb with the loop, cycle and verdict it is about. Logs go to stderr; the ledger, not the log,
is the record.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

import structlog

Log = structlog.typing.FilteringBoundLogger


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
