"""The service: start, then one cycle after another until told to stop.

One thread, the main one, runs cycles and nominations in ledger order. A ticker (APScheduler, in memory) beats the
watchdog and looks at the breaker; the control socket answers people. Signals only set flags. Everything durable is in
the ledger, so stopping at any point and starting again continues.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from apscheduler.schedulers.background import BackgroundScheduler

from daemon.control import ControlServer
from daemon.logs import Log
from daemon.notify import Notifier
from daemon.wiring import Works
from loops.cycle import run_cycle
from safety.release import due, nominate
from safety.rollback import rollback
from state.jobs import Parked
from state.records import Actor, Channel, JsonObject, Outcome, Row

TICK_SECONDS = 2.0


class Service:
    """The daemon in the foreground; whoever made `works` closes them. `until` ends it at that many outermost cycles."""

    def __init__(self, works: Works, log: Log, until: int | None = None, notifier: Notifier | None = None) -> None:
        self.works = works
        self.log = log
        self.until = until
        self.flags = works.flags
        self.notifier = notifier or Notifier()
        self.beat = time.monotonic()
        self.paused_by: str | None = None
        self.scheduler = BackgroundScheduler(
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}, timezone="UTC"
        )

    def run(self) -> int:
        """Run until stopped. Returns the exit code."""
        self._catch_signals()
        with ControlServer(self.works.places.socket, self.answer):
            self.scheduler.add_job(self.tick, "interval", seconds=TICK_SECONDS, id="tick")
            self.scheduler.start()
            self.notifier.ready(self._state())
            self.log.info("started", cycles=self.works.ledger.root_count(), workers=self.works.settings.service.workers)
            try:
                while not self._finished():
                    self._step()
            except Parked:
                self.log.info("parked", reason="stopping; the job in flight continues at the next start")
            finally:
                self.notifier.stopping()
                self.scheduler.shutdown(wait=False)
            self.works.ledger.forget_attempts()             # an orderly end: what is open took nothing down
            self.works.ledger.sign_last()
        self.log.info("stopped", cycles=self.works.ledger.root_count())
        return 0

    def _finished(self) -> bool:
        if self.flags.stop.is_set() or self.flags.drain.is_set():
            return True
        if self.until is None or self.works.ledger.root_count() < self.until:
            return False
        return not self.works.ledger.open_cycles() and not due(self.works.desk)

    def _step(self) -> None:
        """One outermost cycle and, when working has moved, its nomination; or a moment of rest while paused."""
        self.beat = time.monotonic()
        if self.flags.reload.is_set():
            self.flags.reload.clear()
            self._reload()
        reason = self.flags.pause or self.works.trip()
        if reason != self.paused_by:
            self.paused_by = reason
            self.log.warning("paused" if reason else "resumed", reason=reason)
        if reason:
            self.notifier.status(f"paused: {reason}")
            self.flags.stop.wait(self.works.settings.service.idle_seconds)
            return
        if not self.works.runner.wait_settled(TICK_SECONDS):
            return                                          # a kill while the workers boot counts for no cycle
        if not self.works.ledger.open_cycles():             # after a kill, too, none falls inside a cycle
            nominate_now(self.works)
        if not self._finished():
            self._cycle()
            nominate_now(self.works)

    def _cycle(self) -> Outcome:
        return run_next_cycle(self.works)

    def _reload(self) -> None:
        self.notifier.reloading()
        self.log.warning("reloaded", bounds=self.works.bounds.reload())
        self.notifier.ready(self._state())

    def tick(self) -> None:
        """Beat the watchdog only if the main thread is alive: either it moved or a job of its is being watched."""
        alive = time.monotonic() - max(self.beat, self.works.runner.last_moved) < self.notifier.watchdog_seconds / 2
        if alive and self.works.database.responds():
            self.notifier.watchdog()
        self.notifier.status(self._state())

    def answer(self, request: JsonObject) -> JsonObject:
        """One request of the control socket. Raises UserError for what cannot be done."""
        acts: dict[str, Callable[[JsonObject], JsonObject]] = {
            "status": lambda _: {"state": self._state(), **self.works.status()},
            "pause": self._pause,
            "resume": self._resume,
            "drain": self._drain,
            "reload": self._ask_reload,
            "rollback": self._rollback,
        }
        act = acts.get(str(request.get("command")))
        if act is None:
            return {"error": f"unknown command {request.get('command')!r}: one of {', '.join(sorted(acts))}"}
        return act(request)

    def _state(self) -> str:
        if self.flags.stop.is_set():
            return "stopping"
        if self.flags.drain.is_set():
            return "draining"
        reason = self.flags.pause or self.works.trip()
        return f"paused: {reason}" if reason else "running"

    def _pause(self, request: JsonObject) -> JsonObject:
        self.flags.pause = str(request.get("reason") or "by the operator")
        return {"state": self._state()}

    def _resume(self, request: JsonObject) -> JsonObject:
        self.works.resume()
        return {"state": self._state()}

    def _drain(self, request: JsonObject) -> JsonObject:
        self.flags.drain.set()
        return {"state": self._state()}

    def _ask_reload(self, request: JsonObject) -> JsonObject:
        self.flags.reload.set()
        return {"state": self._state()}

    def _rollback(self, request: JsonObject) -> JsonObject:
        row = rollback(
            self.works.ledger, self.works.registry, request.get("to"), str(request["reason"]), Actor.OPERATOR,
            also_working=bool(request.get("working")),
        )
        return row.to_json()

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        stop = self.flags.stop
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        signal.signal(signal.SIGHUP, lambda *_: self.flags.reload.set())


def run_next_cycle(works: Works) -> Outcome:
    """Resume the outermost cycle that is open, or run the next one."""
    ledger = works.ledger
    unfinished = [cycle for cycle in ledger.open_cycles() if cycle.parent is None]
    ordinal = unfinished[0].ordinal if unfinished else ledger.root_count()
    working = ledger.channel(Channel.WORKING)
    assert working is not None
    return run_cycle(works.house, works.outermost, None, ordinal, working, working, works.settings.budget.budget())


def nominate_now(works: Works) -> Row | None:
    """Ask the gate, when working has moved and the rate bound allows; a nomination a kill cut short is finished."""
    return nominate(works.desk)
