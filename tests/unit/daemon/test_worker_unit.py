"""The worker unit: a nursery of its own, which the daemon finds at a socket."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_house import TABLE, House, alive, until

from daemon.pool import environment_of_workers
from state.jobs import JobFailed, JobSpec

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def unit(tmp_path):
    """A listening nursery with the toy jobs: (socket, process)."""
    address = tmp_path / "run" / "worker.sock"
    address.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon.nursery", "--listen", str(address), "--table", str(TABLE)], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
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


def test_a_unit_that_never_answers_is_a_clear_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("daemon.pool.CONNECT_ATTEMPTS", 2)
    monkeypatch.setattr("daemon.pool.CONNECT_PAUSE_SECONDS", 0.01)
    with (
        House(tmp_path / "var", unit=tmp_path / "nobody.sock") as house,
        pytest.raises(JobFailed, match=r"worker unit at .* does not answer"),
    ):
        house.runner.run(JobSpec("add", params={"numbers": [1]}))


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
