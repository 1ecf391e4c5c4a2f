"""The service: start, then as many cycles in flight as there are workers, until told to stop.

The main thread opens cycles and hands them, and nominations, to threads that wait for their jobs; with one worker
everything is one after another. A ticker (APScheduler, in memory) beats the watchdog and looks at the breaker; the
control socket answers people. Signals only set flags. Everything durable is in the ledger, so stopping at any point
and starting again continues.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final

from apscheduler.schedulers.background import BackgroundScheduler

from daemon import heap
from daemon.control import ControlServer
from daemon.logs import Log
from daemon.notify import Notifier
from daemon.wiring import Works
from loops.cycle import propose_cycle, run_cycle
from safety.approval import settle
from safety.noise import too_noisy, week_of
from safety.recall import to_watch, watch
from safety.release import compare_with_itself, due, noise_now, nominate
from safety.rollback import rollback
from state.errors import UserError
from state.jobs import JobFailed, Parked
from state.records import Actor, Channel, Cycle, JsonObject

TICK, TICK_SECONDS = "tick", 2.0
NOMINATION: Final = 0
"""Stands among the ids of cycles for the nomination in flight: there is one at most."""
WATCH: Final = -1
"""The same for the watch over the last release."""
NOISE: Final = -2
"""The same for the A/A test of the stable model."""


class Service:
    """The daemon in the foreground; whoever made `works` closes them. `until` ends it at that many outermost cycles."""

    def __init__(self, works: Works, log: Log, until: int | None = None, notifier: Notifier | None = None) -> None:
        self.works = works
        self.log = log
        self.until = until
        self.flags = works.flags
        self.notifier = notifier or Notifier()
        self.beat = time.monotonic()
        self.time_of_day = time.time()
        self.paused_by: str | None = None
        self.warned: frozenset[str] = frozenset()           # the bounds past whose warning level we are
        self.trouble: str | None = None                     # why we are degraded
        self.week_tested: int | None = None                 # when stable last met itself in this life of the daemon
        self.workers = works.settings.service.workers
        self.one_by_one = works.ledger.was_cut_short()      # so that what took the daemon down is found
        self.scheduler = BackgroundScheduler(
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}, timezone="UTC"
        )

    def run(self) -> int:
        """Run until stopped. Returns the exit code."""
        self._catch_signals()
        heap.settle()
        with ControlServer(self.works.places.socket, self.answer):
            self.scheduler.add_job(self.tick, "interval", seconds=TICK_SECONDS, id=TICK)
            self.scheduler.start()
            self.notifier.ready(self._state())
            self.log.info("started", cycles=self.works.ledger.root_count(), workers=self.works.settings.service.workers)
            try:
                self._serve()
            except Parked:
                self.log.info("parked", reason="stopping; the job in flight continues at the next start")
            finally:
                self.notifier.stopping()
                self.scheduler.shutdown(wait=False)
            self.works.ledger.forget_attempts()             # an orderly end: what is open took nothing down
            self.works.ledger.sign_last()
        self.log.info("stopped", cycles=self.works.ledger.root_count())
        return 0

    def _serve(self) -> None:
        """Keep the workers busy until it is time to end. Raises Parked, or what a task raised that is no verdict."""
        tasks: dict[Future[object], int] = {}
        faults: list[BaseException] = []
        with ThreadPoolExecutor(self.workers, "task") as threads:
            try:
                while tasks or not self._finished():
                    self._reload()
                    self._keep_up()
                    heap.trim()
                    while len(tasks) < self.workers and (task := self._next(tasks.values())):
                        tasks[threads.submit(task[1])] = task[0]
                        self.beat = time.monotonic()
                    if not tasks:
                        self._rest()
                    for done in wait(tasks, TICK_SECONDS, FIRST_COMPLETED).done:
                        del tasks[done]
                        self.beat = time.monotonic()
                        if error := done.exception():
                            faults.append(error)
                            self.flags.stop.set()                   # the others are put aside
            except BaseException:
                self.flags.stop.set()
                raise
        if faults:
            raise min(faults, key=lambda fault: isinstance(fault, Parked))

    def _finished(self) -> bool:
        """Whether nothing is to be begun any more."""
        if self.flags.stop.is_set() or self.flags.drain.is_set():
            return True
        ledger, desk = self.works.ledger, self.works.desk
        return self._enough() and not ledger.open_cycles() and to_watch(ledger) is None and not due(desk)

    def _enough(self) -> bool:
        return self.until is not None and self.works.ledger.root_count() >= self.until

    def _rest(self) -> None:
        """A moment in which nothing is in flight."""
        self.beat = time.monotonic()
        if self.paused_by:
            self.notifier.status(f"paused: {self.paused_by}")
            self.flags.stop.wait(self.works.settings.service.idle_seconds)

    def _next(self, in_flight: Collection[int]) -> tuple[int, Callable[[], object]] | None:
        """What to begin now, with the id of its cycle; None where there is nothing."""
        if self.flags.stop.is_set() or self.flags.drain.is_set() or self._is_paused():
            return None
        if not self.works.runner.wait_settled(TICK_SECONDS):
            return None                                     # a kill while the workers boot counts for no cycle
        if self.one_by_one and in_flight:
            return None
        ledger, desk = self.works.ledger, self.works.desk
        waiting = [cycle for cycle in ledger.open_cycles() if cycle.parent is None and cycle.id not in in_flight]
        if waiting:
            return self._carry_out(waiting[0])
        if WATCH not in in_flight and to_watch(ledger) is not None:      # before a nomination: see `rate.dwell_seconds`
            return WATCH, lambda: watch(desk)
        if NOISE not in in_flight and self.week_tested != (week := week_of(desk.now())):
            self.week_tested = week
            return NOISE, self._test_noise
        if not {NOMINATION, NOISE} & set(in_flight) and due(desk):  # after a kill, too, none falls inside a lone cycle
            return NOMINATION, lambda: nominate(desk)
        self.one_by_one = False
        return None if self._enough() else self._carry_out(self._open(ledger.root_count()))

    def _test_noise(self) -> None:
        """The A/A test, at the start and as each week begins. Where it fails, the next nomination tries it again."""
        desk, jobbook = self.works.desk, self.works.jobbook
        known = jobbook.result(noise_now(desk).digest)
        try:
            values = known.values if known else compare_with_itself(desk)
        except JobFailed as failure:
            self.log.warning("noise not tested", reason=str(failure))
            return
        told = self.log.warning if too_noisy(values, desk.bounds()) else self.log.info
        told("noise tested", noise=values["noise"], allowed=desk.bounds().gate.max_noise)

    def _is_paused(self) -> bool:
        reason = self.flags.pause or self.works.trip()
        if reason != self.paused_by:
            self.paused_by = reason
            self.log.warning("paused" if reason else "resumed", reason=reason)
        return reason is not None

    def _open(self, ordinal: int) -> Cycle:
        """The outermost cycle of that ordinal, proposed and opened."""
        works = self.works
        working = works.ledger.channel(Channel.WORKING)
        assert working is not None
        return propose_cycle(
            works.house, works.outermost, None, ordinal, working, working, works.settings.budget.budget()
        )

    def _carry_out(self, cycle: Cycle) -> tuple[int, Callable[[], object]]:
        works, candidate = self.works, cycle.candidate
        return cycle.id, lambda: run_cycle(
            works.house, works.outermost, None, cycle.ordinal, candidate.base, candidate.incumbent, cycle.budget
        )

    def _reload(self) -> None:
        """Read the bounds again where that was asked for."""
        if not self.flags.reload.is_set():
            return
        self.flags.reload.clear()
        self.notifier.reloading()
        with self.works.ledger.deciding:
            self.log.warning("reloaded", bounds=self.works.bounds.reload())
        self.notifier.ready(self._state())

    def _keep_up(self) -> None:
        """Move a link that could not follow its channel, and the ticker's next turn where the clock was set back: it
        goes by the time of day."""
        for channel in Channel:
            self.works.registry.repair_link(channel)
        now = time.time()
        if now < self.time_of_day:
            self.scheduler.reschedule_job(TICK, trigger="interval", seconds=TICK_SECONDS)
            self.log.warning("clock set back", seconds=round(self.time_of_day - now))
        self.time_of_day = now

    def tick(self) -> None:
        """Beat the watchdog only if the main thread is alive: either it moved or a job of its is being watched."""
        alive = time.monotonic() - max(self.beat, self.works.runner.last_moved) < self.notifier.watchdog_seconds / 2
        if alive and self.works.database.responds():
            self.notifier.watchdog()
        try:
            self.notifier.status(self._state())
            self._warn()
        except (UserError, OSError) as error:                       # the main thread meets it as well, and ends
            self.log.warning("state unknown", reason=str(error))

    def _warn(self) -> None:
        """A line of the log for each bound that has come past its warning level since the last look, and for trouble
        that began or ended."""
        lines = {line.partition(":")[0]: line for line in self.works.warnings()}
        for name in sorted(lines.keys() - self.warned):
            self.log.warning("warned", warning=lines[name])
        self.warned = frozenset(lines)
        trouble = self.works.trouble()
        if trouble != self.trouble:
            self.log.warning("degraded" if trouble else "recovered", reason=trouble)
        self.trouble = trouble

    def answer(self, request: JsonObject) -> JsonObject:
        """One request of the control socket. Raises UserError for what cannot be done."""
        acts: dict[str, Callable[[JsonObject], JsonObject]] = {
            "status": lambda _: {"state": self._state(), **self.works.status()},
            "pause": self._pause,
            "resume": self._resume,
            "drain": self._drain,
            "reload": self._ask_reload,
            "rollback": self._rollback,
            "approve": lambda request: self._settle(request, approved=True),
            "reject": lambda request: self._settle(request, approved=False),
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
        if reason:
            return f"paused: {reason}"
        trouble = self.works.trouble()
        return f"degraded: {trouble}" if trouble else "running"

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

    def _settle(self, request: JsonObject, *, approved: bool) -> JsonObject:
        works = self.works
        row = settle(
            works.ledger, works.registry, works.bounds(), int(request["id"]), str(request["reason"]), approved=approved
        )
        return row.to_json()

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        stop = self.flags.stop
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        signal.signal(signal.SIGHUP, lambda *_: self.flags.reload.set())
