"""Faults put into the real daemon, hundreds a minute: on make-believe models, by processes that are forked ready.

    python tests/mishaps.py              the forge: forks one command of kaizend for every line it reads

The forge has the program imported, and the library of `crash/mishaps.c` preloaded where a C compiler is there to make
it. A `Plant` is a forge and a worker unit; a `Victim` is one kaizend folder that goes through many commands.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lives import Life, Row, children_of, differences, until
from make_believe import make_folder

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "tests" / "crash" / "mishaps.c"
LIMIT_SECONDS = 60.0
PATIENCE = 2                    # attempts in vain, of the three there are
LEFT_OPEN = {
    "a cycle is still open": "SELECT id FROM cycles WHERE outcome IS NULL",
    "an intent is still open": "SELECT id FROM intents WHERE settled IS NULL",
    "a nomination is still open": "SELECT 1 WHERE (SELECT count(*) FROM ledger WHERE event = 'nominated') <> "
                                  "(SELECT count(*) FROM ledger WHERE event = 'release')",
}
TOTAL = "until"                 # the pseudo-command: `kaizend run` up to so many outermost cycles


def memory_folder() -> Path | None:
    """A folder whose fsyncs cost nothing, where the host has one."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else None


def shim_in(folder: Path) -> Path | None:
    """The library to preload; None where it cannot be made here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    made = folder / "mishaps.so"
    if compiler is None or sys.platform != "linux":
        return None
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(SHIM), "-ldl"]
    return made if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None


@dataclass
class Done:
    """How a command ended: its status as subprocess says it (None: it hung), and what it said."""

    status: int | None
    out: str
    err: str

    @property
    def complaint(self) -> list[str]:
        """The lines for a person: what is no log."""
        return [line for line in self.err.splitlines() if line and not line.startswith("{")]


class Plant:
    """A forge and a worker unit, from `__enter__` to `__exit__`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = folder / "unit.sock"
        self.shim = shim_in(folder)
        self._turn = threading.Lock()

    def __enter__(self) -> Plant:
        self.start_unit()
        with (self.folder / "unit.log").open("ab") as log:
            self.forge = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "mishaps.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, env=self.environment(), text=True, start_new_session=True,
            )
        until(self.address.exists, 120)
        return self

    def __exit__(self, *_: object) -> None:
        self.forge.kill()
        self.forge.wait()
        self.stop_unit()

    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("KAIZEND")}
        env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return env | ({"LD_PRELOAD": str(self.shim)} if self.shim is not None else {})

    def start_unit(self) -> None:
        tests = ROOT / "tests"
        with (self.folder / "unit.log").open("ab") as log:
            self.unit = subprocess.Popen(
                [sys.executable, str(tests / "brood.py"), str(self.address), str(tests / "make_believe.py")],
                stdout=log, stderr=log, env=self.environment(), start_new_session=True,
            )

    def stop_unit(self) -> None:
        """End it, its nursery and its workers."""
        self.unit.kill()
        self.unit.wait()

    def command(self, folder: Path, *words: str, seconds: float = LIMIT_SECONDS, **environment: str) -> Done:
        """One command of kaizend in `folder`, in a process of its own."""
        assert self.forge.stdin is not None and self.forge.stdout is not None
        with self._turn:
            order = {"folder": str(folder), "words": words, "env": environment, "seconds": seconds,
                     "unit": str(self.address)}
            self.forge.stdin.write(json.dumps(order) + "\n")
            self.forge.stdin.flush()
            answer = json.loads(self.forge.stdout.readline())
        return Done(answer["status"], answer["out"], answer["err"])

    def renew_nursery(self) -> None:
        """Have the unit fork a nursery anew, so that it takes up what `tell_workers` said."""
        for nursery in children_of(self.unit.pid):
            self.address.unlink(missing_ok=True)
            os.kill(nursery, signal.SIGKILL)
        until(self.address.exists, 30)

    def tell_workers(self, **environment: str) -> None:
        """What the workers of the daemons after the next find in their environment."""
        Path(f"{self.address}.env").write_text(json.dumps(environment))


@dataclass
class Victim:
    """One kaizend folder on make-believe models. `total` outermost cycles end its life."""

    plant: Plant
    folder: Path
    total: int
    faults: list[str] = field(default_factory=list)
    _finished: dict[str, int] = field(default_factory=dict)     # finished job -> how often it was started

    @classmethod
    def new(cls, plant: Plant, folder: Path, total: int) -> Victim:
        folder.mkdir(parents=True)
        make_folder(folder)
        config = folder / "kaizend.toml"
        config.write_text(config.read_text().replace("[service]", f'[service]\nnursery = "{plant.address}"'))
        return cls(plant, folder, total)

    def copied(self, folder: Path) -> Victim:
        shutil.copytree(self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        return Victim(self.plant, folder, self.total)

    @property
    def life(self) -> Life:
        return Life(ROOT, self.folder, None, self.total)

    def command(self, *words: str, **environment: str) -> Done:
        return self.plant.command(self.folder, *words, **environment)

    def live(self, **environment: str) -> Done:
        return self.command(TOTAL, str(self.total), **environment)

    def struck(self, fault: str, *words: str) -> list[str] | None:
        """A command (none: the daemon) with a fault, "name:n=fault": what did not hold, at the end of that process.

        None where it was over without having met the fault.
        """
        mark = self.folder / "struck"
        mark.unlink(missing_ok=True)
        environment = {
            "KAIZEND_FAILPOINT": fault, "KAIZEND_FAILPOINT_ONCE": str(mark),
            "KAIZEND_MISHAP_ROOT": str(self.folder / "var"),
        }
        done = self.command(*words, **environment) if words else self.live(**environment)
        if not mark.exists():
            assert done.status == 0, (fault, done)
            return None
        mark.unlink()
        self.faults.append(fault)
        return [f"{fault}: {found}" for found in [*told_well(done, fault), *self.life.problems(), *self.note_jobs()]]

    def struck_in_a_worker(self, fault: str) -> list[str] | None:
        """As `struck`, but it is a worker that the fault befalls; the daemon lives on, or ends as it should."""
        mark = self.folder / "struck"
        mark.unlink(missing_ok=True)
        self.plant.tell_workers(
            KAIZEND_FAILPOINT=fault, KAIZEND_FAILPOINT_ONCE=str(mark), KAIZEND_MISHAP_ROOT=str(self.folder / "var")
        )
        self.plant.renew_nursery()
        done = self.live()
        self.plant.tell_workers()
        self.plant.renew_nursery()
        if not mark.exists():
            return None
        mark.unlink()
        self.faults.append(fault)
        found = told_well(done, fault.replace("=kill", "=clock").replace("=raise", "=clock"))
        return [f"{fault}: {what}" for what in [*found, *self.life.problems(), *self.note_jobs()]]

    def breathe(self) -> list[str]:
        """Where the cycle at hand was begun in vain too often, be killed once it has got further. Three times in vain
        close it, as they should."""
        if self.life.attempts_in_vain() < PATIENCE:
            return []
        return self.struck("jobbook.finished.after=kill") or []

    def ended(self, undisturbed: list[Row] | None) -> list[str]:
        """Live to the end; what does not hold then. Without `undisturbed` the story may be another one."""
        done = self.live()
        found = [] if done.status == 0 else [f"the last start ended with {done.status}: {done.err[-2000:]}"]
        found += [f"{digest[:12]} was run again after it was finished" for digest in self.note_jobs()]
        found += self.life.problems()
        verified = self.command("verify")
        found += [] if verified.status == 0 else [f"verify: {verified.out} {verified.err}"]
        for what, query in LEFT_OPEN.items():
            found += [what] if self.life.query(query) else []
        for name, digest in self.life.query("SELECT name, digest FROM channels"):
            found += [] if (self.life.state / name).resolve().name == digest else [f"{name} is not what its row says"]
        found += [f"{path} was left" for path in (self.life.state / "incoming").iterdir()]
        if undisturbed is not None:
            found += [f"{path} was left" for path in (self.life.state / "jobs").iterdir() if len(path.name) == 64]
            found += [f"not as undisturbed: {what}" for what in differences(undisturbed, self.life.story())]
        else:
            reasons = [row["reason"] for row in self.life.rows() if row["verdict"] == "CRASHED"]
            found += [f"CRASHED: {reason}" for reason in reasons if "a fault at" not in reason
                      and "around it was closed" not in reason]
        return found

    def note_jobs(self) -> list[str]:
        """Jobs that were started again although they had been finished when this was last asked."""
        found = self.life.jobs()
        again = [digest for digest, starts in self._finished.items() if digest in found and found[digest][0] > starts]
        self._finished = {digest: starts for digest, (starts, done) in found.items() if done}
        return again


def told_well(done: Done, fault: str) -> list[str]:
    """What is wrong with how a process took a fault: killed, or at its end with a verdict or with one clear line."""
    kind = fault.partition("=")[2] or "kill"
    if kind == "kill":
        return [] if done.status == -signal.SIGKILL else [f"it ended with {done.status}"]
    if "Traceback" in done.err:
        return [f"a traceback: {done.err[-2000:]}"]
    if done.status == 0:
        return [f"ended well, and said {line}" for line in done.complaint]
    allowed = {"raise": (70,), "clock": ()}.get(kind, (2,))
    if done.status not in allowed or len(done.complaint) != 1 or not done.complaint[0].startswith("kaizend: "):
        return [f"it ended with {done.status} and said {done.complaint}"]
    return []


def obey(order: dict[str, Any], forge: int, out: Path, err: Path) -> None:
    """The forked process, to its end: it becomes one command of kaizend."""
    import traceback

    import daemon.foreground
    from daemon.__main__ import main
    from daemon.nursery import die_with

    code = 1
    try:
        die_with(forge)
        os.chdir(order["folder"])
        os.environ.update(order["env"])
        for number, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        words = list(order["words"])
        if words[0] == TOTAL:
            total, service = int(words[1]), daemon.foreground.Service
            daemon.foreground.Service = (        # type: ignore[misc,assignment]
                lambda works, log, until, notifier: service(works, log, total, notifier)
            )
            words = ["run"]
        sys.argv = ["kaizend", *words]
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:                                        # noqa: BLE001  as the interpreter would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def forge() -> None:
    """Fork a command for every line; one line back when it has ended."""
    import alembic.command
    import alembic.config
    import alembic.script  # noqa: F401

    import daemon.audit
    import daemon.cli
    import daemon.foreground
    import daemon.keeping
    import daemon.operate  # noqa: F401
    import safety.rollback  # noqa: F401
    from daemon.nursery import die_with

    die_with(os.getppid())
    for line in sys.stdin:
        order = json.loads(line)
        until(Path(order["unit"]).exists, 30)
        files = [Path(order["folder"]) / name for name in (".out", ".err")]
        mine, pid = os.getpid(), os.fork()
        if pid == 0:
            obey(order, mine, *files)
        status = ended(pid, order["seconds"])
        out, err = (file.read_text(errors="replace") if file.exists() else "" for file in files)
        sys.stdout.write(json.dumps({"status": status, "out": out, "err": err}) + "\n")
        sys.stdout.flush()


def ended(pid: int, seconds: float) -> int | None:
    """The status of a child, which is killed when it takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


if __name__ == "__main__":
    forge()
