"""What is left when a worker, the nursery or the daemon is killed: nothing that runs, and nothing that is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import toy_house
from toy_house import House, alive, until

from state.jobs import JobFailed, JobResult, JobSpec

ROOT = Path(__file__).resolve().parents[2]
DAEMON_LIMIT_SECONDS = 1.0
COUNT = JobSpec("count", params={"steps": 12, "pause": 0.03}, seed=7)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> JobResult:
    """What COUNT gives when nobody kills anything."""
    with House(tmp_path_factory.mktemp("undisturbed")) as house:
        return house.runner.run(COUNT)


def daemon(folder: Path, spec: JobSpec, failpoint: str = "") -> subprocess.Popen[str]:
    """A real daemon process that runs one job."""
    return subprocess.Popen(
        [sys.executable, toy_house.__file__, str(folder), spec.kind, json.dumps(spec.params), str(spec.seed)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "KAIZEND_FAILPOINT": failpoint},
    )


def kill_once(house: House, whom: Any, after: float = 0.3) -> None:
    """Kill the process that `whom` names as soon as the job has got so far."""
    killed = threading.Event()

    def on_progress(kind: str, done: float, note: str) -> None:
        if done > after and not killed.is_set():
            killed.set()
            os.kill(whom(), signal.SIGKILL)

    house.runner.on_progress = on_progress


def test_a_worker_killed_in_the_middle_of_a_job_changes_nothing(tmp_path, undisturbed):
    with House(tmp_path) as house:
        kill_once(house, lambda: house.runner.in_flight()[0]["pid"])
        result = house.runner.run(COUNT)
        assert (result.values, result.outputs) == (undisturbed.values, undisturbed.outputs)
        assert house.book.starts(COUNT.digest) == 2


def test_a_job_that_kills_its_worker_twice_is_done_at_the_third_attempt(tmp_path):
    with House(tmp_path) as house:
        assert house.runner.run(JobSpec("die", params={"times": 2})).values == {"deaths": 2}


def test_a_job_that_kills_its_worker_every_time_fails_in_words(tmp_path):
    with House(tmp_path) as house:
        with pytest.raises(JobFailed, match=r"die: the worker was killed by signal 9 \(SIGKILL.*\), in 3 attempts"):
            house.runner.run(JobSpec("die", params={"times": 9}))
        assert house.book.starts(JobSpec("die", params={"times": 9}).digest) == 3


def test_a_job_that_saves_something_between_its_deaths_is_never_given_up(tmp_path):
    with House(tmp_path) as house:
        assert house.runner.run(JobSpec("climb", params={"steps": 7})).values == {"saved": 7}


def test_an_idle_worker_that_died_is_replaced_without_counting(tmp_path):
    with House(tmp_path) as house:
        house.runner.run(JobSpec("add", params={"numbers": [1]}))
        (idle,) = house.runner.pids()[1]
        os.kill(idle, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{idle}").exists())
        time.sleep(0.1)
        asked = JobSpec("add", params={"numbers": [2]})
        house.runner.run(asked)
        assert house.book.starts(asked.digest) == 1


def test_the_next_job_starts_a_new_nursery_where_the_last_was_killed(tmp_path):
    with House(tmp_path) as house:
        house.runner.run(JobSpec("add", params={"numbers": [1]}))
        nursery, (worker,) = house.runner.pids()
        assert nursery is not None
        os.kill(nursery, signal.SIGKILL)
        until(lambda: not alive(worker), DAEMON_LIMIT_SECONDS)
        assert house.runner.run(JobSpec("add", params={"numbers": [2]})).values == {"sum": 2}
        assert house.runner.pids()[0] != nursery


def test_a_nursery_killed_in_the_middle_of_a_job_changes_nothing(tmp_path, undisturbed):
    with House(tmp_path) as house:
        kill_once(house, lambda: house.runner.pids()[0])
        result = house.runner.run(COUNT)
        assert (result.values, result.outputs) == (undisturbed.values, undisturbed.outputs)


def test_the_nursery_outlives_the_thread_that_first_asked_for_it(tmp_path):
    with House(tmp_path) as house:
        thread = threading.Thread(target=house.runner.run, args=(JobSpec("add", params={"numbers": [1]}),))
        thread.start()
        thread.join()
        nursery, (worker,) = house.runner.pids()
        assert nursery is not None
        time.sleep(0.2)
        assert alive(nursery)
        assert alive(worker)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_outlives_a_killed_daemon_by_a_second_and_the_job_is_resumed(tmp_path, undisturbed, how):
    with daemon(tmp_path, COUNT) as process:
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        pids = [announced["nursery"], *announced["workers"]]
        assert all(alive(pid) for pid in pids)
        until(lambda: list((tmp_path / "jobs").glob(f"room-*/out/{COUNT.digest}/saved")))
        process.send_signal(how)
        process.wait()
        until(lambda: not any(alive(pid) for pid in pids), DAEMON_LIMIT_SECONDS)
    with House(tmp_path) as house:
        result = house.runner.run(COUNT)
        assert (result.values, result.outputs) == (undisturbed.values, undisturbed.outputs)


def test_a_daemon_killed_while_the_nursery_still_imports_leaves_nothing(tmp_path):
    slow = tmp_path / "slow_jobs.py"
    slow.write_text("import time\ntime.sleep(30)\nJOBS = {}\n")
    code = (
        "import sys, time; from pathlib import Path; from daemon.pool import Pool\n"
        f"nursery = Pool(Path({str(tmp_path)!r}), 1, '', Path({str(slow)!r})).nursery()\n"
        "while nursery.pid is None: time.sleep(.01)\n"
        "print(nursery.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        nursery = int(process.stdout.readline())
        time.sleep(0.5)
        process.kill()
        process.wait()
        until(lambda: not alive(nursery), DAEMON_LIMIT_SECONDS)


@pytest.mark.parametrize("moment", [
    "runner.started", "runner.produced", "registry.adopt.synced", "registry.adopt.renamed", "runner.adopted",
    "jobbook.finished.before", "runner.finished",
])
def test_a_daemon_killed_at_any_moment_of_a_job_loses_at_most_that_job(tmp_path, undisturbed, moment):
    with daemon(tmp_path, COUNT, moment) as process:
        assert process.wait() == -signal.SIGKILL
    with House(tmp_path) as house:
        house.runner.start()
        result = house.runner.run(COUNT)
        assert (result.values, result.outputs) == (undisturbed.values, undisturbed.outputs)
        assert house.registry.verify(result.outputs["model"]) == []
        assert house.book.starts(COUNT.digest) == (1 if moment == "runner.finished" else 2)
        assert not house.scratch(COUNT).exists()
