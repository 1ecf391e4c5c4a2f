"""The one place that names concrete classes: from two files to everything the service works with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.bounds_in_force import BoundsInForce
from daemon.flags import Flags
from daemon.genesis import Beginnings, begin, refuse_unusable
from daemon.lock import Lock
from daemon.places import Places
from daemon.provenance import ancestry
from daemon.runner import LocalRunner
from daemon.settings import Settings
from daemon.standing import readings_now
from loops.architecture.loop import ArchitectureLoop
from loops.cycle import House
from loops.loop import Loop
from loops.pipeline.loop import PipelineLoop
from loops.reward.loop import STRIKES, RewardLoop, frozen, rearm
from safety.bounds import load_bounds
from safety.breaker import JOULES_PER_KWH, Breaker, Signs
from safety.headers import HeaderError
from safety.layers import Sizes, depth_of, forecast, sizes_of
from safety.noise import too_noisy
from safety.protected import stopped
from safety.release import ReleaseDesk, Seals, noise_now
from safety.sandbox import Limits, require
from state.code import code_version
from state.database import Database
from state.errors import StateError, UserError
from state.jobbook import JobBook
from state.ledger import Ledger
from state.reading import Reading
from state.records import Actor, Cost, Entry, Event, JsonObject, LoopName, Row
from state.registry import Registry
from state.rows import stamp
from state.signed import signed_ledger
from state.signer import OnHead, OnMissed

GIB = 2**30
VERDICTS_LOOKED_AT = 50

OnRow = Callable[[Row], None]
OnProgress = Callable[[str, float, str], None]


@dataclass(slots=True)
class Works:
    """Everything of a running daemon. Leaving its context ends the processes and frees the state folder."""

    settings: Settings
    places: Places
    database: Database
    registry: Registry
    ledger: Ledger
    jobbook: JobBook
    runner: LocalRunner
    bounds: BoundsInForce
    beginnings: Beginnings
    house: House
    desk: ReleaseDesk
    outermost: Loop
    flags: Flags
    closing: ExitStack

    def __enter__(self) -> Works:
        return self

    def __exit__(self, *raised: object) -> None:
        self.closing.close()

    def status(self) -> JsonObject:
        """What only the running daemon knows: jobs in flight, budgets left today."""
        spent, resources = self.spent_today(), self.bounds().resources
        left = {
            "seconds": max(0.0, resources.seconds_per_day - spent.seconds),
            "gpu_hours": max(0.0, resources.gpu_hours_per_day - spent.gpu_seconds / 3600),
        }
        if spent.joules is not None:
            left["energy_kwh"] = max(0.0, resources.energy_kwh_per_day - spent.joules / JOULES_PER_KWH)
        return {"jobs": self.runner.in_flight(), "budgets_left": left}

    def warnings(self) -> list[str]:
        """What of the ledger, the day's spending and the host is past a warning level now."""
        bounds = self.bounds()
        return bounds.warnings(readings_now(self.places, bounds)) if bounds.warn else []

    def spent_today(self) -> Cost:
        return self.jobbook.spent_since(datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0))

    def trip(self) -> str | None:
        """Why the breaker wants a pause now, or None."""
        bounds, spent = self.bounds(), self.spent_today()
        seen = self.ledger.latest(Event.OPERATOR)          # an operator's act excuses the failures before it
        return Breaker(bounds).reason(Signs(
            verdicts=self.ledger.root_verdicts(after=seen.id if seen else 0, count=VERDICTS_LOOKED_AT),
            stop_file=(self.places.state / bounds.breaker.stop_file).exists(),
            disk_free_gib=shutil.disk_usage(self.places.state).free / GIB,
            rollbacks_this_week=self.rollbacks_since(datetime.now(UTC) - timedelta(days=7), seen.id if seen else 0),
            seconds_today=spent.seconds,
            gpu_hours_today=spent.gpu_seconds / 3600,
            joules_today=spent.joules,
            tampered=stopped(self.ledger),
        ))

    def trouble(self) -> str | None:
        """Why the daemon is not well although it is not paused, or None."""
        outage = self.runner.outage()
        if outage:
            return f"{outage}; jobs wait for it"
        tested = self.jobbook.result(noise_now(self.desk).digest)
        refusal = tested and too_noisy(tested.values, self.bounds())
        if refusal:
            return f"nothing is released until it is explained why stable disagrees with itself: {refusal}"
        if frozen(self.ledger.loop_state(LoopName.REWARD) or {}):
            return f"the reward loop shapes nothing after {STRIKES} alarms; `kaizend resume` re-arms it"
        return None

    def rollbacks_since(self, moment: datetime, after: int) -> int:
        """How many rollbacks the daemon made by itself since then, after a row."""
        rows = self.ledger.rows(after=after, event=Event.ROLLBACK)
        return sum(row.actor == Actor.LOOP and row.time >= stamp(moment) for row in rows)

    def resume(self) -> None:
        """Go on after a pause, and re-arm the reward loop where three alarms froze it.

        What the breaker or the monitor stopped is resumed by an operator's act, and that goes into the ledger.
        """
        self.flags.pause = None
        with self.ledger.deciding:
            reward = self.ledger.loop_state(LoopName.REWARD)
            if reward and frozen(reward):
                self.ledger.set_loop_state(LoopName.REWARD, rearm(reward), "the reward loop was re-armed")
        reason = self.trip()
        if reason:
            self.ledger.append(Entry(
                Event.OPERATOR, f"resumed after: {reason}", change={"act": "resume"}, actor=Actor.OPERATOR
            ))


def device_of(settings: Settings) -> str:
    """The device of the workers: `auto` is CUDA where the driver's control node exists. The daemon asks no library."""
    if settings.service.device != "auto":
        return settings.service.device
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def wire(
    settings: Settings, places: Places, *, on_row: OnRow = lambda row: None,
    on_progress: OnProgress = lambda kind, done, note: None, on_head: OnHead = lambda head: None,
    on_missed: OnMissed = lambda reason: None,
) -> Works:
    """Lock the state folder, open and repair it, start the workers and read or make the beginnings.

    Raises UserError (ConfigurationError where only a person can help); then nothing is left running.
    """
    if not places.database.is_file():
        refuse_unusable(settings, places.config.parent, load_bounds(places.bounds))
    with ExitStack() as closing:
        make_state_folder(places.state)
        closing.enter_context(Lock(places.state / "lock"))
        database = Database(places.database)
        closing.callback(database.close)
        database.migrate()
        registry = Registry(places.state, database)
        registry.reconcile()
        ledger = signed_ledger(
            database, registry, places.signing_key, places.public_key, places.heads_file, on_row=on_row,
            on_head=on_head, on_missed=on_missed,
        )
        flags = Flags()
        jobbook = JobBook(database)
        code = code_version()
        bounds = BoundsInForce(places.bounds, ledger)
        if not settings.service.nursery:                  # a worker unit is not this process's to try
            require(Limits.of(bounds()), places.state)
        runner = LocalRunner(
            registry, jobbook, folder=places.state / "jobs", workers=settings.service.workers,
            device=device_of(settings), threads=settings.threads, code=code, stopping=flags.stop.is_set,
            grace_seconds=min(settings.service.stop_seconds, 30.0), on_progress=on_progress,
            unit=Path(settings.service.nursery) if settings.service.nursery else None, bounds=bounds,
        )
        closing.enter_context(runner)
        runner.start()
        if ledger.latest(Event.GENESIS) is None:
            runner.require_unit()
        beginnings = begin(settings, places.config.parent, ledger, registry, runner, bounds(), code)
        bounds.record()
        house = House(ledger, runner, bounds, code, settings.seed, foresight(registry, beginnings))
        desk = ReleaseDesk(
            ledger, registry, runner, bounds, beginnings.tasks,
            Seals(beginnings.vault, beginnings.guard, beginnings.seal), code, settings.seed, data=beginnings.data,
        )
        return Works(
            settings, places, database, registry, ledger, jobbook, runner, bounds, beginnings, house, desk,
            loops_of(
                settings, beginnings, lambda digest: depth_of(registry.path(beginnings.whole(digest))),
                lambda digest: lineage(places.database, digest),
            ), flags,
            closing.pop_all(),
        )


def loops_of(
    settings: Settings, beginnings: Beginnings, depth: Callable[[str], int],
    ancestors: Callable[[str], Collection[str]],
) -> Loop:
    """The nest: architecture is given pipeline, which is given reward. `depth` tells how many layers a model has,
    `ancestors` what it was made from.
    """
    tasks: list[dict[str, Any]] = [task.to_json() for task in beginnings.targets]
    guards = [task.to_json() for task in beginnings.tasks if task.role == "guard"]
    data, preferences = beginnings.data_of(preferences=False), beginnings.data_of(preferences=True)
    reward = RewardLoop(settings.reward, tasks, beginnings.seal, data)
    pipeline = PipelineLoop(settings.pipeline, tasks, beginnings.seal, data, reward, preferences, ancestors)
    return ArchitectureLoop(
        settings.architecture, tasks, pipeline, beginnings.base, beginnings.parents, beginnings.seal, guards, depth,
        frozenset(beginnings.adapters),
    )


def lineage(database: Path, digest: str) -> list[str]:
    """A model and every model that it was made from, as the ledger tells it."""
    with Reading(database) as reading:
        return [descent.model for descent in ancestry(reading, digest)]


def foresight(registry: Registry, beginnings: Beginnings) -> Callable[[JsonObject], JsonObject]:
    """What the headers of kept models tell of a change's result before it is made. What cannot be read tells nothing:
    the job that needs it will say so.
    """
    known: dict[str, Sizes] = {}

    def sizes(digest: str) -> Sizes:
        if digest not in known:
            known[digest] = sizes_of(registry.path(beginnings.whole(digest)))
        return known[digest]

    def foretold(change: JsonObject) -> JsonObject:
        try:
            return forecast(change, sizes)
        except (HeaderError, StateError):
            return {}

    return foretold


def make_state_folder(folder: Path) -> None:
    """Make the state folder if needed. Raises UserError when it cannot be written."""
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"the state folder {folder} cannot be written: {error.strerror}") from error
