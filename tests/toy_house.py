"""A state folder with a runner on it, for tests; run as a program, it is a daemon that runs one job.

    PYTHONPATH=. python tests/toy_house.py FOLDER KIND PARAMS_JSON SEED
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.runner import LocalRunner
from state.database import Database
from state.jobbook import JobBook
from state.jobs import JobSpec
from state.registry import Registry

TABLE = Path(__file__).with_name("toy_jobs.py")


class House:
    """Database, registry, job book and a runner of toy jobs. Closes what it opened."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.database = Database(folder / "kaizend.db")
        self.database.migrate()
        self.registry = Registry(folder, self.database)
        self.registry.reconcile()
        self.book = JobBook(self.database)
        self.runner = LocalRunner(self.registry, self.book, **{"folder": folder / "jobs", "table": TABLE, **settings})

    def __enter__(self) -> "House":
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()
        self.database.close()

    def scratch(self, spec: JobSpec) -> Path:
        return self.folder / "jobs" / spec.digest


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The condition's first true value; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return value


def main() -> None:
    """Run one job and print {"result"}; before it, as soon as a worker has it, {"nursery", "workers"}."""
    folder, kind, params, seed = sys.argv[1:]
    with House(Path(folder)) as house:
        spec = JobSpec(kind, params=json.loads(params), seed=int(seed))
        threading.Thread(target=announce, args=(house.runner,), daemon=True).start()
        result = house.runner.run(spec)
        say({"values": result.values, "outputs": dict(result.outputs)})


def announce(runner: LocalRunner) -> None:
    workers = until(lambda: runner.pids()[1])
    say({"nursery": runner.pids()[0], "workers": workers})


def say(line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
