"""The two units under a real systemd: ready, reload, stop and resume, watchdog, exit 78, and what the worker sees.

One machine for all of them, and one life of the daemon in it, so the tests stand in the order of that life. The one of
the watchdog is `long`: run alone, it starts its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import USER, Machine, why_not
from miniature import copy_of

STATE = "/var/lib/kaizend"
BOUNDS = "/etc/kaizend/bounds.toml"
STOP_SECONDS = 90                                   # the unit's TimeoutStopSec
PLACES = f'[service]\nstate = "{STATE}"\nnursery = "/run/kaizend-worker/worker.sock"'
LONG_TRAINING = {
    "stop_seconds = 5": "stop_seconds = 1",
    "steps = 16\n\n[pipeline.grpo]": "steps = 400\n\n[pipeline.grpo]",
}
DROP_INS = {
    # As shipped it would take two minutes to see that the daemon hangs, and ten seconds more until it is there again.
    "kaizend.service": "[Service]\nWatchdogSec=10\nRestartSec=1\n",
}
"""All that differs from the units as they are. The private root gives everything else that they ask for."""


@pytest.fixture(scope="module")
def furniture(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a machine is given; skipped with the reason where there can be none."""
    if reason := why_not():
        pytest.skip(f"no systemd of its own can be booted here: {reason}")
    folder = copy_of(trained, tmp_path_factory.mktemp("machine") / "mini")
    config = (folder / "kaizend.toml").read_text().replace("[service]", PLACES)
    for old, new in LONG_TRAINING.items():
        assert old in config
        config = config.replace(old, new)
    (folder / "kaizend.toml").write_text(config)
    return folder


@pytest.fixture(scope="module")
def machine(furniture: Path) -> Iterator[Machine]:
    """A booted machine whose daemon has not been started."""
    with Machine(furniture, DROP_INS) as booted:
        yield booted


def told(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, (done.args, done.stdout, done.stderr)
    return done.stdout


def finished(machine: Machine) -> dict[str, Any]:
    """When each finished job was finished, and what it gave."""
    rows = machine.asked("SELECT digest, finished_at, result FROM jobs WHERE result IS NOT NULL")
    return {digest: (when, result) for digest, when, result in rows}


def training(machine: Machine) -> str:
    """The digest of the training job that is being run and has saved a step; "" where there is none."""
    jobs = json.loads(machine.kaizend("status", "--json").stdout).get("jobs", [])
    for job in jobs:
        if job["kind"] == "train" and machine.run("sh", "-c", f"ls {STATE}/jobs/*/out/{job['digest']}/steps").stdout:
            return str(job["digest"])
    return ""


def is_active(machine: Machine) -> bool:
    return machine.property("ActiveState") == "active"


def verified(machine: Machine) -> bool:
    return bool(json.loads(told(machine.kaizend("verify", "--json")))["holds"])


def test_nothing_that_happens_in_the_machine_reaches_the_host(furniture: Path) -> None:
    """Its mounts are compared, its cgroups removed and its processes gone when `Machine` is left."""
    name = f"kaizend-{uuid.uuid4().hex}"
    places = [f"{folder}/{name}" for folder in ("", "/tmp", "/var/tmp", "/run", "/etc", "/dev/shm", "/root")]
    fixed = [f"{folder}/{name}" for folder in ("/usr", "/opt/python", "/opt/kaizend/.venv/packages", "/sys")]
    lines = [*(f"touch {place} || exit 1" for place in places), *(f"touch {place} && exit 2" for place in fixed),
             "hostname other", "mount -t tmpfs other /tmp || exit 3", "echo all tried"]
    before = os.uname().nodename
    with Machine(furniture, {}, ("/bin/sh", "-c", "\n".join(lines))) as machine:
        assert machine.outer.wait(60) == 0, machine.said()
        assert "all tried" in machine.said()
    assert os.uname().nodename == before
    assert not [place for place in places + fixed if Path(place).exists()]


def test_start_returns_when_the_daemon_is_ready(machine: Machine) -> None:
    told(machine.systemctl("start", "kaizend"))
    assert (machine.property("Type"), machine.property("SubState")) == ("notify", "running")
    assert machine.property("StatusText").startswith("running")
    state = json.loads(told(machine.kaizend("status", "--json")))
    assert (state["state"], len(state["stable"]["digest"])) == ("running", 64)
    assert machine.property("ActiveState", "kaizend-worker") == "active"


@pytest.mark.long
def test_the_worker_sees_its_jobs_and_nothing_else_from_the_first_start_on(machine: Machine) -> None:
    made = machine.run("ls", STATE).stdout.split()
    assert {"kaizend.db", "signing.key", "vault", "artifacts", "jobs"} <= set(made)
    nursery = machine.property("MainPID", "kaizend-worker")
    inside = f"/proc/{nursery}/root"
    assert machine.run("ls", "-A", f"{inside}{STATE}").stdout.split() == ["jobs"]
    assert machine.run("ls", "-A", f"{inside}/etc/kaizend").stdout == ""
    assert machine.run("ls", f"/proc/{nursery}/task").stdout.split() == [nursery]       # fit to fork
    assert not [entry for entry in machine.journal("kaizend-worker") if "lacks" in str(entry["MESSAGE"])]


@pytest.mark.long
def test_the_daemon_sees_what_its_workers_use(machine: Machine) -> None:
    """As its user in its own namespaces: the bounds on memory, processes and threads are held by looking at /proc."""
    nursery, daemon = machine.property("MainPID", "kaizend-worker"), machine.property("MainPID")
    look = ["nsenter", "-t", daemon, "-m", "-U", "-S", str(USER), "-G", str(USER), "--"]
    assert "RssAnon" in told(machine.run(*look, "grep", "RssAnon", f"/proc/{nursery}/status"))
    told(machine.run(*look, "ls", "-d", f"/proc/{nursery}/task"))


def test_a_stop_in_the_middle_of_training_parks_the_job_and_a_start_continues_it(machine: Machine) -> None:
    job = machine.until(lambda: training(machine))
    began = time.monotonic()
    told(machine.systemctl("stop", "kaizend", seconds=STOP_SECONDS + 30))
    assert time.monotonic() - began < STOP_SECONDS
    assert (machine.property("Result"), machine.property("ExecMainStatus")) == ("success", "0")
    machine.until(lambda: machine.property("ActiveState", "kaizend-worker") == "inactive")  # a stop job of its own
    done = finished(machine)
    saved = machine.run("ls", f"{STATE}/jobs/{job}/steps").stdout.split()
    assert job not in done
    assert saved
    assert any('"event": "parked"' in str(entry["MESSAGE"]) for entry in machine.journal())

    told(machine.systemctl("start", "kaizend"))
    machine.until(lambda: job in finished(machine))
    starts = machine.asked(f"SELECT count(*) FROM job_starts WHERE digest = '{job}'")
    assert starts == [[2]]
    assert finished(machine).items() >= done.items()


@pytest.mark.long
def test_a_reload_tightens_the_bounds(machine: Machine) -> None:
    told(machine.systemctl("reload", "kaizend"))                        # of what is the same: no row
    before = machine.asked("SELECT count(*) FROM ledger WHERE event = 'bounds'")
    machine.write(BOUNDS, machine.read(BOUNDS).replace("margin = 0.2", "margin = 0.19"))
    told(machine.systemctl("reload", "kaizend"))
    query = "SELECT count(*) FROM ledger WHERE event = 'bounds'"
    machine.until(lambda: machine.asked(query) == [[before[0][0] + 1]])
    machine.until(lambda: is_active(machine))                           # no more "reloading"
    assert "0.19" in machine.kaizend("bounds", "show").stdout


@pytest.mark.long
def test_a_daemon_that_hangs_is_killed_and_started_again_and_nothing_finished_is_done_twice(machine: Machine) -> None:
    told(machine.systemctl("start", "kaizend"))
    machine.until(lambda: training(machine))
    done, first = finished(machine), machine.property("MainPID")
    told(machine.run("kill", "-STOP", first))
    machine.until(lambda: machine.property("NRestarts") == "1" and is_active(machine))
    assert machine.property("MainPID") not in ("0", first)
    assert any("Watchdog timeout" in str(entry["MESSAGE"]) for entry in machine.journal())
    machine.until(lambda: len(finished(machine)) > len(done))
    assert finished(machine).items() >= done.items()
    assert "core" not in machine.run("ls", STATE).stdout.split()
    assert verified(machine)


@pytest.mark.long
def test_bounds_that_need_a_person_end_it_with_78_and_it_is_not_started_again(machine: Machine) -> None:
    told(machine.systemctl("stop", "kaizend"))
    machine.write(BOUNDS, machine.read(BOUNDS).replace("margin = 0.19", "margin = 0.3"))
    assert machine.systemctl("start", "kaizend").returncode != 0
    time.sleep(3)                                                       # longer than RestartSec
    assert [machine.property(name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")] == ["failed", "78", "0"]
    told(machine.kaizend("bounds", "loosen", "--reason", "the tests do"))       # as root, and it stays the service's
    told(machine.systemctl("start", "kaizend"))
    assert is_active(machine)
    assert machine.run("find", STATE, "!", "-user", "kaizend").stdout == ""


@pytest.mark.long
def test_what_it_says_in_the_journal_is_json(machine: Machine) -> None:
    said = [str(entry["MESSAGE"]) for entry in machine.journal() if entry.get("SYSLOG_IDENTIFIER") == "kaizend"]
    people = [line for line in said if not line.startswith("{")]
    events = [json.loads(line)["event"] for line in said if line.startswith("{")]
    assert len(people) == 1                                             # why it could not start
    assert people[0].startswith("kaizend: ")
    assert {"started", "signed", "closed", "parked", "stopped", "reloaded"} <= set(events)
    told(machine.systemctl("stop", "kaizend"))
    assert verified(machine)
