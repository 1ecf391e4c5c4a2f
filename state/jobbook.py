"""What is known of jobs: which were started, how often, and what the finished ones gave.

Invariant: a job finishes once. A second result for the same digest changes nothing, since a job is a pure function
of its spec. Specs and results are never removed: a job whose outputs were given up counts as unfinished again, but how
a model was made stays known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from state.database import Database
from state.failpoints import failpoint
from state.jobs import JobResult, JobSpec
from state.records import Cost
from state.rows import as_text, count_one, stamp, utc_now
from state.tables import artefacts, job_starts, jobs

FINISHED = "job"           # the counter of finished jobs
SAVED = "saved"            # the counter of lives that left an unfinished job further than they found it


class JobBook:
    """The jobs of one state folder."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self.database = database
        self.clock = clock

    def result(self, digest: str) -> JobResult | None:
        """What the job gave; None while it is not finished, and where one of its outputs was given up since."""
        with self.database.snapshot() as connection:
            body = connection.execute(select(jobs.c.result).where(jobs.c.digest == digest)).scalar()
            return None if body is None or _given_up(connection, body) else JobResult.from_json(json.loads(body))

    def told(self, digest: str) -> JobResult | None:
        """What the job gave, whatever became of its outputs."""
        with self.database.snapshot() as connection:
            body = connection.execute(select(jobs.c.result).where(jobs.c.digest == digest)).scalar()
        return None if body is None else JobResult.from_json(json.loads(body))

    def started(self, spec: JobSpec, pid: int) -> None:
        """Record that process `pid` is about to run the job. Each call counts as one start."""
        digest = spec.digest
        with self.database.transaction() as connection:
            if connection.execute(select(jobs.c.digest).where(jobs.c.digest == digest)).first() is None:
                connection.execute(insert(jobs).values(digest=digest, kind=spec.kind, spec=as_text(spec.to_json())))
            connection.execute(insert(job_starts).values(digest=digest, time=stamp(self.clock()), pid=pid))
            failpoint("jobbook.started.before")
        failpoint("jobbook.started.after")

    def saved(self) -> None:
        """Count that an unfinished job was found further than it was left: progress, though nothing is finished."""
        with self.database.transaction() as connection:
            count_one(connection, SAVED)

    def finished(self, spec: JobSpec, result: JobResult) -> None:
        """Keep the result. Raises ValueError or TypeError when its values are not JSON."""
        digest, now = spec.digest, stamp(self.clock())
        kept = {"result": as_text(result.to_json()), "cost": as_text(result.cost.to_json()), "finished_at": now}
        with self.database.transaction() as connection:
            known = connection.execute(select(jobs).where(jobs.c.digest == digest)).first()
            if known is not None and known.result is not None and not _given_up(connection, known.result):
                return
            if known is not None:
                kept |= _with_earlier(known, result.cost, now)
            if known is None:
                connection.execute(
                    insert(jobs).values(digest=digest, kind=spec.kind, spec=as_text(spec.to_json()), **kept)
                )
            else:
                connection.execute(update(jobs).where(jobs.c.digest == digest).values(**kept))
            count_one(connection, FINISHED)
            failpoint("jobbook.finished.before")
        failpoint("jobbook.finished.after")

    def lost(self, spec: JobSpec, cost: Cost) -> None:
        """Record what an attempt cost that gave no result: it counts for its day like any other."""
        now = stamp(self.clock())
        with self.database.transaction() as connection:
            known = connection.execute(select(jobs).where(jobs.c.digest == spec.digest)).first()
            if known is not None and (known.result is None or _given_up(connection, known.result)):
                total = _with_earlier(known, cost, now)
                connection.execute(update(jobs).where(jobs.c.digest == spec.digest).values(**total))

    def starts(self, digest: str) -> int:
        """How often a process started the job."""
        with self.database.snapshot() as connection:
            query = select(func.count()).select_from(job_starts).where(job_starts.c.digest == digest)
            return connection.execute(query).scalar_one()

    def spent_since(self, moment: datetime) -> Cost:
        """What the jobs cost together that ended since then, with or without a result."""
        query = select(jobs.c.cost).where(jobs.c.finished_at >= stamp(moment))
        with self.database.snapshot() as connection:
            bodies = connection.execute(query).scalars()
            return sum((Cost.from_json(json.loads(body)) for body in bodies), Cost())

    def maker(self, digest: str) -> JobSpec | None:
        """The job that gave the artefact `digest` as its model, kept still or not; None for what was given to the
        daemon.
        """
        query = select(jobs.c.spec, jobs.c.result).where(jobs.c.result.contains(digest))
        with self.database.snapshot() as connection:
            found = connection.execute(query).all()
        for spec, result in found:
            if json.loads(result)["outputs"].get("model") == digest:
                return JobSpec.from_json(json.loads(spec))
        return None


def _given_up(connection: Connection, body: str) -> bool:
    """Whether an output of a result was removed from the registry."""
    outputs = json.loads(body)["outputs"].values()
    query = select(artefacts.c.digest).where(artefacts.c.digest.in_(outputs), artefacts.c.removed.is_not(None))
    return bool(outputs) and connection.execute(query).first() is not None


def _with_earlier(known: Any, cost: Cost, now: str) -> dict[str, str]:
    """The cost with that of the job's earlier attempts on the same day (UTC), and when the last of them ended.

    An attempt that the clock, set back since, places on a later day counts there, and this one with it.
    """
    day = len("2026-01-01")
    if known.finished_at is not None and known.finished_at[:day] >= now[:day]:
        cost, now = Cost.from_json(json.loads(known.cost)) + cost, max(known.finished_at, now)
    return {"cost": as_text(cost.to_json()), "finished_at": now}
