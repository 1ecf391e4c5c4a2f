"""`kaizend run`: read the two files, wire everything, serve until stopped."""

from __future__ import annotations

import os
from pathlib import Path

from daemon.genesis import changed_files, placed_tasks
from daemon.logs import Log, Paces, configure_logs
from daemon.notify import Notifier
from daemon.places import find_config, read_places
from daemon.service import Service
from daemon.settings import load_settings
from daemon.wiring import wire
from state.errors import ConfigurationError, HostError, UserError
from state.records import Event, Row


def run_in_foreground(config: Path | None, cycles: int | None) -> int:
    """Serve. Under systemd every error of the operator's files exits 78, because a restart would not help."""
    try:
        places = read_places(find_config(config))
        settings = load_settings(places.config)
        log = configure_logs(settings.service.log)
        notifier = Notifier()
        notifier.status("starting")
        works = wire(
            settings, places, on_row=lambda row: log_row(log, row), on_progress=Paces(log),
            on_head=lambda head: log.info("signed", **head.to_json()),
            on_missed=lambda reason: log.warning("head not copied", reason=reason),
        )
    except HostError:                                       # a restart may help, once there is space
        raise
    except UserError as error:
        if "INVOCATION_ID" in os.environ:
            raise ConfigurationError(str(error)) from error
        raise
    with works:
        for line in changed_files(placed_tasks(settings, places.config.parent), works.beginnings.tasks):
            log.warning("file changed", reason=line)
        until = works.ledger.root_count() + cycles if cycles else None
        return Service(works, log, until, notifier).run()


def log_row(log: Log, row: Row) -> None:
    """One line of the log for a row of the ledger; openings are left to the ledger."""
    if row.event == Event.OPENED:
        return
    for warning in row.evidence.get("warnings", []):
        log.warning("warned", row=row.id, warning=warning)
    log.info(
        row.event, row=row.id, loop=row.loop, cycle=row.cycle, parent=row.parent, verdict=row.verdict,
        reason=row.reason, hash=row.hash,
    )
