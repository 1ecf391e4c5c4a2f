"""Lives of a real daemon on the miniature: started, killed, started again with the same command, and looked at.

    python tests/lives.py TOTAL          serve the current folder until so many outermost cycles have closed

The daemon runs from a copy of the four packages, so that an edit meanwhile cannot become another code version. The
worker unit is `brood`'s, which saves every life the imports; whoever wants the daemon's own nursery writes no unit into
kaizend.toml.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("daemon", "loops", "safety", "state")
LIMIT_SECONDS = 240.0
UNTOLD = ("time", "hash", "prev", "cost")          # fields of a row that no two runs share
ITS_OWN = ("budget", "signing_key")                # the same in a row's evidence

Row = dict[str, Any]


def frozen_house(folder: Path) -> Path:
    """A copy of the four packages in `folder`."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@dataclass
class Unit:
    """The worker unit, from `__enter__` to `__exit__`."""

    house: Path
    address: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Unit:
        from daemon.pool import environment_of_workers

        temporary = self.address.parent / "tmp"
        temporary.mkdir(exist_ok=True)
        with (self.address.parent / "unit.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/brood.py"), str(self.address)], stdout=log, stderr=log,
                env=environment_of_workers(1, temporary) | {"PYTHONPATH": str(self.house)}, start_new_session=True,
            )
        until(self.address.exists, 120)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def tell_workers(self, **environment: str) -> None:
        """What the next nursery's workers find in their environment. Takes hold at the next connection."""
        Path(f"{self.address}.env").write_text(json.dumps(environment))

    def nursery(self) -> int | None:
        """Process id of the nursery that waits or serves."""
        return next(iter(children_of(self.process.pid)), None)

    def workers(self) -> list[int]:
        nursery = self.nursery()
        return children_of(nursery) if nursery else []


def children_of(pid: int) -> list[int]:
    """Living children, by the kernel's word."""
    try:
        found = [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                 for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [child for child in found if alive(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition: Callable[[], Any], seconds: float = LIMIT_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {seconds:g} seconds")
        time.sleep(0.01)
    return found


@dataclass
class Life:
    """One kaizend folder through many processes. `total` outermost cycles end it; `points` go into the environment."""

    house: Path
    folder: Path
    unit: Unit | None
    total: int
    hits: dict[str, int] = field(default_factory=dict)        # job -> how many kills met it unfinished
    kills: int = 0
    _known: dict[str, int] = field(default_factory=dict)      # job -> starts at the last look
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.unit is not None:
            self.change("[service]", f'[service]\nheads_file = "heads.jsonl"\nnursery = "{self.unit.address}"')

    def on_its_own(self) -> None:
        """From the next start on the daemon boots workers of its own."""
        assert self.unit is not None
        self.change(f'nursery = "{self.unit.address}"\n', "")
        self.unit = None

    def change(self, old: str, new: str) -> None:
        """Another line in kaizend.toml."""
        config = self.folder / "kaizend.toml"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new, 1))

    @property
    def state(self) -> Path:
        return self.folder / "var"

    # ---------------------------------------------------------------- processes

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """The daemon, always by the same command. Its log goes to daemon.log in the folder."""
        if self.unit is not None:
            until(lambda: self.unit.address.exists() or self.unit.process.poll() is not None, 30)
        with (self.folder / "daemon.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/lives.py"), str(self.total)], cwd=self.folder, stdout=log,
                stderr=log, env=self.environment(**environment), start_new_session=True,
            )
        self._processes.append(process)
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status, once it is there."""
        return process.wait(LIMIT_SECONDS)

    def end(self) -> None:
        """See that no daemon is left, whatever a test left."""
        for process in self._processes:
            process.kill()
            process.wait()

    def renew_nursery(self) -> None:
        """Have the unit fork a nursery anew, so that it takes up what `tell_workers` said."""
        assert self.unit is not None
        old = self.unit.nursery()
        if old is not None:
            self.unit.address.unlink(missing_ok=True)
            kill(old)
            until(lambda: self.unit and self.unit.nursery() not in (None, old) and self.unit.address.exists())

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KAIZEND")}
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        return {**kept, **quiet, "PYTHONPATH": str(self.house), **more}

    def kill(self, process: subprocess.Popen[bytes], *, workers: bool = False) -> bool:
        """SIGKILL to the daemon, at the same instant to its workers if asked; returns when nobody is left.

        False where the daemon came to its own end in that instant.
        """
        pids = self.workers(process)
        process.kill()
        for pid in pids if workers else ():
            kill(pid)
        if self.ended(process) == 0:
            return False
        self.buried(process, pids)
        return True

    def workers(self, process: subprocess.Popen[bytes]) -> list[int]:
        if self.unit is not None:
            return self.unit.workers()
        return [pid for nursery in children_of(process.pid) for pid in [nursery, *children_of(nursery)]]

    def buried(self, process: subprocess.Popen[bytes], pids: Sequence[int] = ()) -> None:
        """Wait for a daemon that was killed, see that nobody outlives it, and note which job it met."""
        assert process.wait(LIMIT_SECONDS) == -signal.SIGKILL, self.last_words()
        pids = pids or self.workers(process)
        until(lambda: not any(alive(pid) for pid in pids), 5)
        self.kills += 1
        self.note()

    def finish(self, **environment: str) -> None:
        process = self.start(**environment)
        try:
            assert process.wait(LIMIT_SECONDS) == 0, self.last_words()
        finally:
            process.kill()

    def last_words(self) -> str:
        return (self.folder / "daemon.log").read_text(errors="replace")[-3000:]

    # ---------------------------------------------------------------- what is found

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(f"file:{self.state / 'kaizend.db'}?mode=ro", uri=True, timeout=15) as connection:
            try:
                return connection.execute(text).fetchall()
            except sqlite3.OperationalError as error:
                assert "no such table" in str(error)
                return []

    def jobs(self) -> dict[str, tuple[int, bool]]:
        """How often each job was started, and whether it has a result."""
        if not (self.state / "kaizend.db").exists():
            return {}
        return {digest: (starts, bool(done)) for digest, starts, done in self.query(
            "SELECT digest, (SELECT count(*) FROM job_starts s WHERE s.digest = j.digest), result IS NOT NULL "
            "FROM jobs j"
        )}

    def note(self) -> None:
        """After a kill: a job started since the last look and not finished is one the kill has met."""
        for digest, (starts, done) in self.jobs().items():
            if starts > self._known.get(digest, 0) and not done:
                self.hits[digest] = self.hits.get(digest, 0) + 1
            self._known[digest] = starts

    def note_worker(self) -> None:
        """After the kill of a busy worker: the job that it had, which the daemon is about to start again."""
        digest = self.query("SELECT digest FROM job_starts ORDER BY id")[-1][0]
        self.hits[digest] = self.hits.get(digest, 0) + 1
        self._known[digest] = self._known.get(digest, 0) + 1

    def finished_jobs(self) -> int:
        return sum(done for _, done in self.jobs().values())

    def attempts_in_vain(self) -> int:
        """How often the daemon was taken down since it last got any further, as the daemon itself counts."""
        if not (self.state / "kaizend.db").exists():
            return 0
        found = self.query(
            "SELECT max(count) FROM attempts WHERE marker = (SELECT sum(count) FROM counters "
            "WHERE subject IN ('job', 'saved', 'opened', 'closed'))"
        )
        return int(found[0][0] or 0) if found else 0

    def story(self) -> list[Row]:
        """The ledger's rows as values, without what no two runs share: times, costs, hashes, the key that signs."""
        rows = []
        for row in self.rows():
            told = {name: value for name, value in row.items() if name not in UNTOLD}
            told["evidence"] = {name: value for name, value in told["evidence"].items() if name not in ITS_OWN} | {
                f"budget.{name}": value
                for name, value in told["evidence"].get("budget", {}).items() if name != "seconds"
            }
            rows.append(told)
        return rows

    def rows(self) -> list[Row]:
        from state.reading import Reading

        with Reading(self.state / "kaizend.db") as reading:
            return [row.to_json() for row in reading.every_row()]

    def problems(self) -> list[str]:
        """What does not hold at this instant, the daemon dead or not: chain, channels, the bytes under both links."""
        from state.errors import StateError
        from state.files import manifest_of
        from state.reading import Reading
        from state.records import digest_of

        try:
            with Reading(self.state / "kaizend.db") as reading:
                found, begun = reading.problems(), bool(reading.channels())
        except StateError:
            return []                                                    # not even the tables are there yet
        if not begun:
            return found
        once = {row["evidence"].get("moves", {}).get("stable") for row in self.rows()}
        link = self.state / "stable"
        if not link.is_symlink():
            return found if len(self.rows()) < 4 else [*found, "there is no link stable"]
        target = link.resolve()
        if target.name not in once:
            found.append(f"stable points at {target.name[:12]}, which was never released")
        if digest_of(manifest_of(target)) != target.name:
            found.append(f"the bytes of stable are not those of {target.name[:12]}")
        return found

    def verify(self) -> dict[str, Any]:
        """`kaizend verify --json`, the real command."""
        done = subprocess.run(
            [sys.executable, "-m", "daemon", "verify", "--json"], cwd=self.folder, env=self.environment(),
            capture_output=True, text=True, timeout=120, check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        body: dict[str, Any] = json.loads(done.stdout)
        return body

    def wasted(self) -> list[str]:
        """Jobs that were started after they were finished, by the times of the job book."""
        return [digest for digest, in self.query(
            "SELECT j.digest FROM jobs j JOIN job_starts s ON s.digest = j.digest "
            "WHERE j.result IS NOT NULL AND s.time > j.finished_at"
        )]


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def differences(one: list[Row], other: list[Row]) -> list[str]:
    """Field by field, where two stories part; the first few."""
    found = [] if len(one) == len(other) else [f"{len(one)} rows and {len(other)}"]
    for mine, yours in zip(one, other, strict=False):
        found += [
            f"row {mine['id']} ({mine['event']}) {name}: {mine.get(name)!r} and {yours.get(name)!r}"
            for name in sorted({*mine, *yours}) if mine.get(name) != yours.get(name)
        ]
    return found[:12]


def serve(total: int) -> int:
    """`kaizend run` up to a total of outermost cycles, whatever was done before."""
    from daemon.foreground import log_row
    from daemon.logs import configure_logs
    from daemon.notify import Notifier
    from daemon.places import find_config, read_places
    from daemon.service import Service
    from daemon.settings import load_settings
    from daemon.wiring import wire

    places = read_places(find_config(None))
    settings = load_settings(places.config)
    log = configure_logs("json")
    with wire(settings, places, on_row=lambda row: log_row(log, row)) as works:
        return Service(works, log, total, Notifier()).run()


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1])))
