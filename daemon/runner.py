"""LocalRunner: runs jobs in worker processes of this host, and holds nothing that a restart would miss.

A finished job answers from the job book. Any other is started (recorded first), watched, and ended in one of five
ways: done, its outputs adopted by the registry; failed, in its own words; out of time; its worker dead too often
without anything saved in between; or parked, because the service is stopping. Its scratch folder stays only where it
may be run again: after a park or a kill, so that it continues from what it saved. While a worker unit is away its jobs
wait, and that it went away is no attempt of theirs.

Every worker is confined (`safety.sandbox`) to a room of its own (`daemon.rooms`), and what it uses is watched
(`daemon.meter`). Invariant: what a worker gave is taken only where no process can write to it any more. Never imports
torch.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from daemon.energy import EnergyMeter
from daemon.handover import end, plain, sensible, take_over
from daemon.kinds import OWN_PROCESS, READS_SEALED_ITEMS, SEALED_SPLITS, artefact_kind, sources_of
from daemon.meter import Meter, is_seen
from daemon.pool import Nursery, Pool, Worker
from daemon.rooms import Room, reclaim
from daemon.scratch import discard, open_again, sweep, went_on
from daemon.wire import Closed
from safety.bounds import Bounds
from safety.sandbox import Holds, Limits, Rules
from state.errors import HostError, StateError, UserError, in_one_line
from state.failpoints import failpoint
from state.jobbook import JobBook
from state.jobs import JobFailed, JobResult, JobSpec, Parked
from state.records import Cost, JsonObject, Verdict
from state.registry import Registry

MOST_ATTEMPTS: Final = 3
MOST_OUTAGES: Final = 10
"""As often may the worker unit go away under one job: one that takes it along every time must come to an end."""
TICK_SECONDS: Final = 0.1
START_SECONDS: Final = 300.0
UNIT_SECONDS: Final = 30.0


def ignore_progress(kind: str, done: float, note: str) -> None:
    """The default `on_progress`."""


class LocalRunner:
    """Satisfies `state.jobs.Runner` with at most `workers` jobs at once. `run` may be called by several threads.

    `folder` holds scratch folders by job digest, the workers' rooms and worker.log, and must be on the registry's file
    system. `stopping` is asked all the time: once true, a job gets `grace_seconds` to end and is then put aside.
    `table` is a Python file whose JOBS replaces the table of jobs; `unit` the socket of a worker unit to use instead of
    own processes. `bounds` says what a worker may use. `on_progress(kind, done, note)` is called by the thread that
    runs the job. `last_moved` is the monotonic time at which a thread of the runner last looked after its job.
    """

    def __init__(
        self, registry: Registry, jobbook: JobBook, *, folder: Path, workers: int = 1, device: str = "cpu",
        threads: int = 1, code: str = "", stopping: Callable[[], bool] = lambda: False, grace_seconds: float = 3.0,
        on_progress: Callable[[str, float, str], None] = ignore_progress, table: Path | None = None,
        unit: Path | None = None, bounds: Callable[[], Bounds] = Bounds, energy: EnergyMeter | None = None,
    ) -> None:
        self.registry = registry
        self.jobbook = jobbook
        self.folder = folder.absolute()
        self.workers = workers
        self.device = device
        self.threads = threads
        self.code = code
        self.stopping = stopping
        self.grace_seconds = grace_seconds
        self.on_progress = on_progress
        self.bounds = bounds
        self.last_moved = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        reclaim(self.folder)
        self._pool = Pool(self.folder, threads, code, table, unit)
        self._energy = energy or EnergyMeter(device)
        self._places = threading.BoundedSemaphore(workers)
        self._changed = threading.Condition()
        self._running: dict[str, JsonObject] = {}
        self.sandbox: Holds | None = None           # what the last worker said holds

    def start(self) -> None:
        """Throw old scratch away and begin to start the nursery, without waiting for it."""
        sweep(self.folder, lambda digest: self.jobbook.result(digest) is not None)
        self._energy.start()
        self._pool.nursery()

    def wait_ready(self, timeout_seconds: float = START_SECONDS) -> bool:
        """Whether workers can be forked, after waiting at most so long."""
        return self._pool.nursery().wait_started(timeout_seconds)

    def wait_settled(self, timeout_seconds: float) -> bool:
        """Whether it is known how the start of the nursery went, well or not, after waiting at most so long."""
        return self._pool.nursery().wait_settled(timeout_seconds)

    def outage(self) -> str | None:
        """Why no job runs, in words: the worker unit is away. None where it serves, and where there is none."""
        return self._pool.outage()

    def require_unit(self) -> None:
        """Wait for the worker unit, if there is one, for a start that cannot wait for ever. Raises UserError."""
        nursery = self._pool.nursery()
        if nursery.unit is None or nursery.wait_started(UNIT_SECONDS):
            return
        if not nursery.connected or not nursery.wait_started(START_SECONDS):
            raise UserError(self.outage() or "the worker unit is not ready")

    def close(self) -> None:
        """End the nursery and every worker. A runner that is closed runs nothing more."""
        self._energy.close()
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        """Run one job to its end. The time counts from when a worker has the job. Raises JobFailed or Parked."""
        digest = spec.digest
        with self._alone(spec, digest):
            if (finished := self._finished(digest)) is not None:
                return finished
            inputs = self._resolve(spec)
            scratch = self.folder / digest
            try:
                open_again(scratch)
                if went_on(scratch):
                    self.jobbook.saved()
                with self._place(), self._energy.job():
                    told, seconds = self._carry_out(spec, scratch, inputs, timeout_seconds)
                self._refuse_damaged(spec)                      # what it read is still what it was given
                result = self._keep(spec, told, seconds)
            except HostError:                                   # the job goes on from what it saved, once it can
                raise
            except OSError as error:
                raise in_one_line("run a job in", scratch, error) from error
            except Exception:
                discard(scratch)
                raise
            discard(scratch)
            return result

    def run_all(
        self, specs: Sequence[JobSpec], *, timeout_seconds: float | None = None
    ) -> list[JobResult | JobFailed]:
        """Run several jobs, as many at once as there are workers; `timeout_seconds` is for all of them together."""
        began = time.monotonic()

        def one(spec: JobSpec) -> JobResult | JobFailed:
            left = None if timeout_seconds is None else max(0.0, timeout_seconds - (time.monotonic() - began))
            try:
                return self.run(spec, timeout_seconds=left)
            except JobFailed as failure:
                return failure

        if self.workers == 1 or len(specs) < 2:
            return [one(spec) for spec in specs]
        with ThreadPoolExecutor(min(self.workers, len(specs)), "job") as threads:
            running: list[Future[JobResult | JobFailed]] = [threads.submit(one, spec) for spec in specs]
        return [future.result() for future in running]

    def in_flight(self) -> list[JsonObject]:
        """The jobs being run now: digest, kind, seconds since they were asked for, pid of the worker or None."""
        now = time.monotonic()
        with self._changed:
            return [
                {"digest": digest, "kind": job["kind"], "seconds": now - job["since"], "pid": job["pid"]}
                for digest, job in self._running.items()
            ]

    def pids(self) -> tuple[int | None, list[int]]:
        """The process ids of the nursery and of all living workers, idle ones included."""
        nursery, idle = self._pool.pids()
        busy = [job["pid"] for job in self.in_flight() if job["pid"] is not None]
        return nursery, sorted({*idle, *busy})

    # --- before ---------------------------------------------------------------------------------------------------

    def _finished(self, digest: str) -> JobResult | None:
        """The kept result, unless one of its artefacts has been given up since."""
        result = self.jobbook.result(digest)
        if result is None or not all(self.registry.holds(output) for output in result.outputs.values()):
            return None
        return result

    def _resolve(self, spec: JobSpec) -> dict[str, Path]:
        """Paths of the inputs. Raises JobFailed for one that is missing or damaged, or that this kind may not read."""
        if self.code and spec.code and spec.code != self.code:
            raise JobFailed(f"{spec.kind}: the job was made for another version of the program")
        paths = {}
        for name, digest in spec.inputs.items():
            if not self.registry.holds(digest):
                raise JobFailed(f"{spec.kind}: the registry does not hold its input {name!r} ({digest[:12]})")
            if (kept := self.registry.kind(digest)) in SEALED_SPLITS and spec.kind not in READS_SEALED_ITEMS:
                raise JobFailed(f"{spec.kind}: its input {name!r} is the {kept}, which this kind of job may not read")
            paths[name] = self.registry.path(digest).absolute()
        self._refuse_damaged(spec)
        return paths

    def _refuse_damaged(self, spec: JobSpec) -> None:
        """Raises JobFailed for an input whose bytes are not those that were kept: what came of others would stand under
        the wrong digest for ever."""
        for name, digest in spec.inputs.items():
            if damage := self.registry.damage(digest):
                raise JobFailed(f"{spec.kind}: its input {name!r} is damaged: {damage[0]}")

    @contextmanager
    def _alone(self, spec: JobSpec, digest: str) -> Iterator[None]:
        """Hold a digest: a second call for the same job waits, and finds the result."""
        with self._changed:
            while digest in self._running:
                self._changed.wait(TICK_SECONDS)
                self._step()
            self._running[digest] = {"kind": spec.kind, "since": time.monotonic(), "pid": None}
        try:
            yield
        finally:
            with self._changed:
                del self._running[digest]
                self._changed.notify_all()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of the `workers` places. Raises Parked when the service stops meanwhile."""
        self._step()
        while not self._places.acquire(timeout=TICK_SECONDS):
            self._step()
        try:
            yield
        finally:
            self._places.release()

    def _step(self) -> None:
        """Between two moments of waiting. Raises Parked."""
        self.last_moved = time.monotonic()
        if self.stopping():
            raise Parked

    # --- during ---------------------------------------------------------------------------------------------------

    def _carry_out(
        self, spec: JobSpec, scratch: Path, inputs: Mapping[str, Path], timeout_seconds: float | None
    ) -> tuple[JsonObject, float]:
        """What the job told when it was done, and how long workers had it, lost attempts included."""
        allowed_seconds = math.inf if timeout_seconds is None else timeout_seconds
        seconds, ending, in_vain, outages = 0.0, "", 0, 0
        while in_vain < MOST_ATTEMPTS and outages < MOST_OUTAGES:
            nursery = self._nursery()
            worker = self._worker(spec, nursery)
            in_vain += 1
            if worker is None:
                ending = "no worker could be started (worker.log says why)"
                if nursery.went_away():
                    in_vain, outages = in_vain - 1, outages + 1
                continue
            self._note_pid(spec, worker.pid)
            began = time.monotonic()
            try:
                here, given = worker.room.move_in(scratch, inputs)
                order = {
                    "job": spec.to_json(), "folder": str(here), "inputs": given, "device": self.device,
                    "threads": self.threads,
                }
                self.jobbook.started(spec, worker.pid)
                failpoint("runner.started")
                with sensible(spec.kind):
                    last = self._watch(worker, spec, order, began, allowed_seconds - seconds)
                    if "disk" in last:
                        failed = plain(last["failed"])
                        raise HostError(f"{spec.kind}: {failed}: look at the disk of {scratch} and start again")
                    if "failed" in last:
                        self._refuse_damaged(spec)              # it may have failed over what changed under it
                        raise JobFailed(f"{spec.kind}: {plain(last['failed'])}")
                    taken = take_over(self._pool, worker, spec, scratch, last["done"])
                return taken, seconds + time.monotonic() - began
            except Closed:
                seconds += time.monotonic() - began
                ending = how_it_ended(worker.nursery.ending(worker.pid))
                end(worker, scratch)
                if worker.nursery.went_away():
                    in_vain, outages = in_vain - 1, outages + 1
                if went_on(scratch):                # it goes on from what it saved, so this attempt was not in vain
                    in_vain = outages = 0
                    self.jobbook.saved()
            except BaseException:
                end(worker, scratch)
                with suppress(StateError):                      # the first error is the one to tell
                    self.jobbook.lost(spec, self._cost(seconds + time.monotonic() - began))
                raise
            finally:
                self._note_pid(spec, None)
        self.jobbook.lost(spec, self._cost(seconds))
        times = f"in {MOST_ATTEMPTS} attempts" if outages < MOST_OUTAGES else f"its unit with it, {MOST_OUTAGES} times"
        raise JobFailed(f"{spec.kind}: {ending}, {times}")

    def _nursery(self) -> Nursery:
        """The living nursery; a worker unit's as soon as it serves. Raises Parked."""
        while True:
            try:
                nursery = self._pool.nursery()
            except Closed:
                raise Parked from None
            if nursery.unit is None or nursery.wait_started(TICK_SECONDS):
                return nursery
            self._step()

    def _worker(self, spec: JobSpec, nursery: Nursery) -> Worker | None:
        """A warm worker, or a new one where the kind wants it; None where it died before its first word."""
        limits = Limits.of(self.bounds())
        if spec.kind not in OWN_PROCESS and (warm := self._pool.idle_worker(limits)) is not None:
            return warm
        room = Room(self.folder, limits.user)
        rules = Rules(
            (str(room.inside), *sources_of(spec)), room.writable, limits, str(room.temporary),
            limit_data=not self.device.startswith("cuda"),
        )
        try:
            worker = self._hello(spec, nursery, room, rules)
        except BaseException:
            room.remove()
            raise
        if worker is None:
            room.remove()
        return worker

    def _hello(self, spec: JobSpec, nursery: Nursery, room: Room, rules: Rules) -> Worker | None:
        """The new worker, once it is confined and has said so."""
        wire = nursery.fork(rules)
        deadline = time.monotonic() + START_SECONDS
        try:
            while (hello := wire.receive(TICK_SECONDS)) is None:
                self._step()
                if time.monotonic() > deadline:
                    raise JobFailed(f"{spec.kind}: no worker was ready within {START_SECONDS:.0f} seconds")
        except Closed:
            wire.close()
            nursery.settle()
            if nursery.refusal:
                raise JobFailed(f"{spec.kind}: {nursery.refusal}") from None
            return None
        except BaseException:
            wire.close()                            # the worker ends as soon as it finds nobody to greet
            raise
        if "refused" in hello:
            wire.close()
            raise JobFailed(f"{spec.kind}: {hello['refused']}", Verdict.REFUSED)
        if not is_seen(hello["hello"]) and nursery.ending(hello["hello"]) is None:
            wire.close()
            raise JobFailed(
                f"{spec.kind}: resources.worker_memory_gib cannot be held: /proc hides the workers from the daemon",
                Verdict.REFUSED,
            )
        self.sandbox = Holds.from_json(hello["sandbox"])
        return Worker(nursery, wire, hello["hello"], room, rules)

    def _watch(
        self, worker: Worker, spec: JobSpec, order: JsonObject, began: float, allowed_seconds: float
    ) -> JsonObject:
        """The worker's last word. Raises Closed when it died, JobFailed when its time is up or a bound is met, or
        Parked."""
        meter = Meter(
            worker.pid, worker.room.folder, worker.rules.limits, self.bounds().resources.min_disk_free_gib,
            worker.nursery.nameless,
        )
        worker.wire.send(order)
        give_up = math.inf
        while True:
            message = worker.wire.receive(TICK_SECONDS)
            self._pool.keep_log_small()
            last = message is not None and "progress" not in message
            if refusal := meter.breach(last=last):
                raise JobFailed(f"{spec.kind}: killed, {refusal}", Verdict.REFUSED)
            if message is not None and last:
                return message
            if message is not None:
                done, note = message["progress"]
                self.on_progress(spec.kind, float(done), plain(note))
            now = self.last_moved = time.monotonic()
            if now - began > allowed_seconds:
                raise JobFailed(f"{spec.kind}: not done when its {now - began:.0f} seconds were up", Verdict.TIMED_OUT)
            if give_up == math.inf and self.stopping():
                give_up = now + self.grace_seconds
            if now > give_up:
                raise Parked

    def _note_pid(self, spec: JobSpec, pid: int | None) -> None:
        with self._changed:
            self._running[spec.digest]["pid"] = pid

    # --- after ----------------------------------------------------------------------------------------------------

    def _keep(self, spec: JobSpec, told: JsonObject, seconds: float) -> JobResult:
        """Adopt the outputs and record the result."""
        failpoint("runner.produced")
        adopt = self.registry.add_copy if told["copied"] else self.registry.adopt
        outputs = {name: adopt(path, artefact_kind(name)) for name, path in sorted(told["outputs"].items())}
        failpoint("runner.adopted")
        result = JobResult(told["values"], outputs, self._cost(seconds, told["items"], told["tokens"]))
        self.jobbook.finished(spec, result)
        failpoint("runner.finished")
        return result

    def _cost(self, seconds: float, items: int = 0, tokens: int = 0) -> Cost:
        gpu_seconds = seconds if self.device.startswith("cuda") else 0.0
        return Cost(seconds, gpu_seconds, items, tokens, self._energy.joules())


def how_it_ended(status: int | None) -> str:
    """The end of a worker in words."""
    if status is None:
        return "the worker died with its nursery"
    if status < 0:
        hint = ", as the kernel does when memory runs out" if -status == signal.SIGKILL else ""
        return f"the worker was killed by signal {-status} ({signal.Signals(-status).name}{hint})"
    return f"the worker ended by itself with status {status}"
