"""Inside a worker: serve jobs one after another, each by the function that its kind names.

A worker is a process that `daemon.nursery` forked. It is told a job and answers with progress, then one last word:

    <- {"hello": pid, "sandbox": what holds}
    -> {"job": spec, "folder": path, "inputs": {name: path}, "device": "cpu", "threads": 1}
    <- {"progress": [done, note]}
    <- {"done": {"values": ..., "outputs": {name: path}, "items": n, "tokens": n}}  or  {"failed": reason}
       (with "disk": true where the disk was full or failing, which is no fault of the job)

A job that raises gives one line to the runner; its traceback goes to the log. Invariant: outputs lie inside the job's
own folder, because the registry moves them away. This module imports neither torch nor any loop: the functions are
named by text, and whoever runs them loads them.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from daemon.wire import Closed, Wire
from safety.sandbox import Holds, words_for
from state.errors import OF_THE_DISK
from state.jobs import Desk, JobFunction, JobSpec, Produced
from state.records import JsonObject, canonical

JOBS: Final[Mapping[str, str]] = {
    "build": "loops.work.build:build",
    "screen": "loops.work.screen:screen",
    "random_search": "loops.work.control:random_search",
    "train": "loops.work.train:train",
    "prefer": "loops.work.prefer:prefer",
    "segment": "loops.work.reinforce:segment",
    "pairs": "loops.work.pairs:pairs",
    "reward_model": "loops.work.reward_model:reward_model",
    "reward_check": "loops.work.reward_model:reward_check",
    "score": "safety.yardstick.jobs:score",
    "compare": "safety.yardstick.jobs:compare",
    "report": "safety.yardstick.jobs:score",
    "gate": "safety.yardstick.gating:gate",
    "watch": "safety.yardstick.looking:look",
    "deal": "safety.yardstick.fresh:deal",
    "seal": "safety.yardstick.sealed:seal_tasks",
    "measure": "safety.drift:measure",
    "serve": "safety.serving:serve",
}
"""Which function does which kind of job: "module:function"."""

LONGEST_REASON: Final = 300
PROGRESS_PAUSE_SECONDS: Final = 0.1


def serve(wire: Wire, table: Mapping[str, str], holds: Holds) -> None:
    """Announce itself, then serve jobs until the runner closes the wire."""
    cache: dict[str, Any] = {}
    try:
        wire.send({"hello": os.getpid(), "sandbox": holds.to_json()})
        while (order := wire.receive()) is not None:
            wire.send(do(order, table, cache, wire))
            os.chdir("/")
            leave_tidy()
    except Closed:
        return


def do(order: JsonObject, table: Mapping[str, str], cache: dict[str, Any], wire: Wire) -> JsonObject:
    """One job, from order to last word. A broad except: here an exception of a job becomes words."""
    spec = JobSpec.from_json(order["job"])
    desk = Desk(
        Path(order["folder"]), {name: Path(path) for name, path in order["inputs"].items()},
        order["device"], order["threads"], cache, reporter(wire),
    )
    try:
        prepare(desk, spec)
        answer: JsonObject = {"done": told(load(table, spec.kind)(spec, desk), desk)}
        canonical(answer)
    except Closed:
        raise
    except Exception as error:                                      # noqa: BLE001  a failed job is an answer
        log(f"job {spec.digest} ({spec.kind}) failed\n{traceback.format_exc()}")
        denied = words_for(error)
        failed = f"{one_line(error)} ({denied})" if denied else one_line(error)
        return {"failed": failed, **({"disk": True} if is_of_the_disk(error) else {})}
    return answer


def load(table: Mapping[str, str], kind: str) -> JobFunction:
    """The function that does `kind`. Raises ValueError for a kind that is not in the table."""
    if kind not in table:
        raise ValueError(f"there is no job kind {kind!r}")
    module, _, name = table[kind].partition(":")
    return cast(JobFunction, getattr(importlib.import_module(module), name))


def told(produced: Produced, desk: Desk) -> JsonObject:
    """What was produced, as the last word says it. Raises ValueError for an output outside the job's folder."""
    home = desk.folder.resolve()
    for name, path in produced.outputs.items():
        if not path.exists():
            raise ValueError(f"its output {name!r} was not written")
        if home not in path.resolve().parents:
            raise ValueError(f"its output {name!r} lies outside the job's folder")
    return {
        "values": produced.values,
        "outputs": {name: str(path.absolute()) for name, path in produced.outputs.items()},
        "items": produced.items,
        "tokens": produced.tokens,
    }


def prepare(desk: Desk, spec: JobSpec) -> None:
    """Stray files land in the scratch folder, and no generator remembers the job before."""
    os.chdir(desk.folder)
    random.seed(spec.seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(spec.seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(spec.seed)
        if torch.get_num_threads() != desk.threads:
            torch.set_num_threads(desk.threads)


def leave_tidy() -> None:
    """Give back what the job no longer uses; a trial in another process may want the device's memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def reporter(wire: Wire) -> Callable[[float, str], None]:
    """The desk's `progress`: at most some ten reports a second, and always the last one."""
    last = -PROGRESS_PAUSE_SECONDS

    def progress(done: float, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done >= 1 or now - last >= PROGRESS_PAUSE_SECONDS:
            last = now
            wire.send({"progress": [float(done), note]})

    return progress


def log(text: str) -> None:
    """A line for worker.log, which is where a worker's standard error goes."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} [{os.getpid()}] {text.rstrip()}\n")
    sys.stderr.flush()


def is_of_the_disk(error: Exception) -> bool:
    """Whether the disk was full or failing. Libraries in other languages tell of it in words only."""
    number = error.errno if isinstance(error, OSError) else None
    return number in OF_THE_DISK or any(os.strerror(known) in str(error) for known in OF_THE_DISK)


def one_line(error: Exception) -> str:
    """The kind of an exception and the first line of its words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
