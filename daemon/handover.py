"""From a worker to the runner: its words, and what it made, taken where no process can write to it any more.

What a worker says is the job's word, and a job may lie; nothing here believes a path, a kind or a form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from daemon.kinds import MAKES_SEALED_ITEMS, OWN_PROCESS, SEALED_KINDS, artefact_kind
from daemon.meter import group_of
from daemon.pool import Pool, Worker
from state.files import size_of
from state.jobs import JobFailed, JobSpec
from state.records import JsonObject

MOST_COPIED_BYTES: Final = 1 << 26
"""Outputs of a warm worker up to this size are copied; a worker with larger ones is ended instead."""
LONGEST_WORDS: Final = 1000


def take_over(pool: Pool, worker: Worker, spec: JobSpec, scratch: Path, done: JsonObject) -> JsonObject:
    """What was done, its outputs where the worker cannot write to them any more. Raises JobFailed, StateError.

    A warm worker might hold a file open still: small outputs are copied, so that it stays warm, and for large
    ones it is ended. A failed job costs its worker anyhow: it may have left a model half changed.
    """
    room = worker.room.outside / scratch.name
    worker.room.move_out(scratch)
    outputs = {name: inside(scratch, room, Path(path)) for name, path in done["outputs"].items()}
    if None in outputs.values():
        raise JobFailed(f"{spec.kind}: an output lies outside the job's folder")
    kinds = {artefact_kind(name) for name in outputs}
    if kinds & SEALED_KINDS and spec.kind not in MAKES_SEALED_ITEMS:
        makers = ", ".join(sorted(MAKES_SEALED_ITEMS))
        raise JobFailed(f"{spec.kind}: sealed items come from the jobs {makers} alone")
    size = sum(size_of(path) for path in outputs.values() if path)
    keeps = spec.kind not in OWN_PROCESS and size <= MOST_COPIED_BYTES and not any(left_behind(worker))
    if keeps:
        pool.take_back(worker)
    else:
        end(worker, scratch)
    return {
        "values": dict(done["values"]), "items": int(done["items"]), "tokens": int(done["tokens"]),
        "outputs": outputs, "copied": keeps,
    }


def end(worker: Worker, scratch: Path) -> None:
    """End a worker, and take what it had in hand out of its room."""
    worker.kill()
    worker.room.move_out(scratch)
    worker.room.remove()


@contextmanager
def sensible(kind: str) -> Iterator[None]:
    """What a worker says is the job's word, and a job can go wrong in every way: nonsense is a failure like others."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise JobFailed(f"{kind}: its worker said what no worker says ({type(error).__name__})") from error


def plain(words: Any) -> str:
    """A worker's words as one line that a terminal shows as it is."""
    return "".join(letter if letter.isprintable() else " " for letter in str(words))[:LONGEST_WORDS]


def inside(scratch: Path, room: Path, told: Path) -> Path | None:
    """Where an output that a worker names lies now; None where it is none of the job's own files."""
    if not told.is_relative_to(room) or not (path := scratch / told.relative_to(room)).exists():
        return None
    return path if scratch.resolve() in path.resolve().parents else None


def left_behind(worker: Worker) -> Iterator[int]:
    """Processes that a job started and did not end."""
    return (pid for pid in (group_of(worker.pid) if worker.rules.limits.processes else ()) if pid != worker.pid)
