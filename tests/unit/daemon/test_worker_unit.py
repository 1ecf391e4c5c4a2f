"""The worker unit: a nursery of its own, which the daemon finds at a socket."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_house import TABLE, House, alive, until

from daemon.pool import environment_of_workers
from daemon.runner import MOST_ATTEMPTS
from daemon.wiring import Works
from state.errors import UserError
from state.jobs import JobFailed, JobSpec, Parked

ROOT = Path(__file__).resolve().parents[3]


def listening(address: Path) -> subprocess.Popen[bytes]:
    """A nursery with the toy jobs, as systemd would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "daemon.nursery", "--listen", str(address), "--table", str(TABLE)], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def unit(tmp_path):
    """A listening nursery with the toy jobs: (socket, process)."""
    address = tmp_path / "run" / "worker.sock"
    address.parent.mkdir()
    process = listening(address)
    yield address, process
    process.kill()
    process.wait()


def test_jobs_run_in_the_unit_and_its_end_follows_the_daemon(tmp_path, unit):
    address, process = unit
    with House(tmp_path / "var", unit=address) as house:
        assert house.runner.run(JobSpec("add", params={"numbers": [1, 2]})).values == {"sum": 3}
        assert house.runner.pids()[0] is None
    until(lambda: not alive(process.pid))


def test_the_socket_is_its_owners_alone(unit):
    address, _ = unit
    until(address.exists)
    assert address.stat().st_mode & 0o777 == 0o600


def test_at_a_first_start_a_unit_that_never_answers_is_a_clear_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("daemon.runner.UNIT_SECONDS", 0.1)
    with (
        House(tmp_path / "var", unit=tmp_path / "nobody.sock") as house,
        pytest.raises(UserError, match=r"worker unit at .* does not answer: No such file"),
    ):
        house.runner.require_unit()


def running(house, spec):
    """The job in a thread of its own: (that, what came of it)."""
    found = []

    def act():
        try:
            found.append(house.runner.run(spec).values)
        except (JobFailed, Parked) as end:
            found.append(end)

    thread = threading.Thread(target=act)
    thread.start()
    return thread, found


def begun(house, spec, times):
    """Wait until a worker has had the job so often; its pid."""
    until(lambda: house.book.starts(spec.digest) == times)
    return until(lambda: [job["pid"] for job in house.runner.in_flight() if job["pid"]])[0]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_waits_while_the_unit_is_away_and_is_charged_no_attempt(tmp_path, unit, by):
    """systemd ends the nursery and its workers at once, and more often than a job may die."""
    address, process = unit
    spec = JobSpec("count", params={"steps": 1000, "pause": 0.05})
    with House(tmp_path / "var", unit=address) as house:
        thread, found = running(house, spec)
        for times in range(1, MOST_ATTEMPTS + 2):
            worker = begun(house, spec, times)
            for pid in (worker, process.pid):
                os.kill(pid, by)
            process.wait()
            until(house.runner.outage)
            assert house.runner.wait_settled(0.05) is False               # nothing is begun meanwhile
            assert not found
            if times <= MOST_ATTEMPTS:
                process = listening(address)
                until(lambda: house.runner.outage() is None, 30)
        house.runner.stopping = lambda: True
        thread.join(5)
        assert [type(end) for end in found] == [Parked]
    process.kill()
    process.wait()


def test_a_worker_that_dies_while_its_unit_lives_counts_its_attempts(tmp_path, unit):
    address, _ = unit
    with House(tmp_path / "var", unit=address) as house:
        assert house.runner.run(JobSpec("die", params={"times": 2})).values == {"deaths": 2}
        with pytest.raises(JobFailed, match=r"killed by signal 9 .* in 3 attempts"):
            house.runner.run(JobSpec("die", params={"times": 9}))
        assert house.runner.outage() is None


def test_a_job_that_takes_its_unit_along_every_time_comes_to_an_end(tmp_path, unit, monkeypatch):
    monkeypatch.setattr("daemon.runner.MOST_OUTAGES", 2)
    address, process = unit
    spec = JobSpec("count", params={"steps": 1000, "pause": 0.05, "seed": 1})
    with House(tmp_path / "var", unit=address) as house:
        thread, found = running(house, spec)
        begun(house, spec, 1)
        process.kill()
        process.wait()
        second = listening(address)
        begun(house, spec, 2)
        second.kill()
        second.wait()
        thread.join(10)
        assert str(found[0]).endswith("its unit with it, 2 times")


def test_the_status_of_a_running_daemon_is_degraded_while_the_unit_is_away(tmp_path, unit):
    address, process = unit
    with House(tmp_path / "var", unit=address) as house:
        assert house.runner.wait_ready(30)
        works = SimpleNamespace(runner=house.runner)
        process.kill()
        process.wait()
        words = until(house.runner.outage)
        assert words == f"the worker unit at {address} has gone away"
        assert Works.trouble(works) == f"{words}; jobs wait for it"
        house.runner.wait_settled(0.1)
        until(lambda: "does not answer" in house.runner.outage())


def test_a_unit_whose_workers_proc_hides_gets_no_jobs(tmp_path, unit, monkeypatch):
    """What is hidden would count as using no memory."""
    monkeypatch.setattr("daemon.runner.is_seen", lambda pid: False)
    address, _ = unit
    with (
        House(tmp_path / "var", unit=address) as house,
        pytest.raises(JobFailed, match=r"worker_memory_gib cannot be held: /proc hides the workers"),
    ):
        house.runner.run(JobSpec("add", params={"numbers": [1]}))


def test_the_unit_file_gives_the_workers_what_the_daemon_would_give_them(tmp_path):
    """All that must be set before an import, but for threads (systemd/environment.example) and the folder of a room."""
    lines = (ROOT / "systemd" / "kaizend-worker.service").read_text().splitlines()
    given = dict(
        pair.split("=", 1) for line in lines if line.startswith("Environment=")
        for pair in line.removeprefix("Environment=").split()
    )
    wanted = environment_of_workers(1, tmp_path)
    its_own = {name: value for name, value in wanted.items() if os.environ.get(name) != value or name in given}
    others = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TMPDIR"}
    assert {name: value for name, value in its_own.items() if name not in others} == given
