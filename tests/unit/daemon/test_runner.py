"""LocalRunner with real processes, a real registry and a real job book."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy_house import House, alive, until

from safety.bounds import Bounds
from state.jobs import JobFailed, JobResult, JobSpec, Parked
from state.records import Verdict

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def house(tmp_path):
    with House(tmp_path / "var with 'quotes' and spaces", workers=2) as house:
        yield house


def spec(kind: str, seed: int = 0, inputs: dict[str, str] | None = None, **params: object) -> JobSpec:
    return JobSpec(kind, inputs or {}, params, seed)


def folder_of(tmp_path: Path, name: str = "given") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "item.txt").write_text(name)
    return folder


def test_a_job_gives_values_and_what_it_cost(house):
    result = house.runner.run(spec("add", numbers=[1, 2, 3]))
    assert result.values == {"sum": 6}
    assert (result.cost.items, result.cost.tokens, result.cost.gpu_seconds) == (3, 7, 0.0)
    assert 0 < result.cost.seconds < 5


def test_a_finished_job_answers_without_running(house):
    asked = spec("add", numbers=[1])
    first = house.runner.run(asked)
    assert house.runner.run(asked) == first
    assert house.book.starts(asked.digest) == 1


def test_a_finished_job_answers_while_the_service_is_stopping(tmp_path):
    stop = threading.Event()
    with House(tmp_path, stopping=stop.is_set) as house:
        done = house.runner.run(spec("add", numbers=[1]))
        stop.set()
        assert house.runner.run(spec("add", numbers=[1])) == done
        with pytest.raises(Parked):
            house.runner.run(spec("add", numbers=[2]))


def test_outputs_are_adopted_under_their_kinds_and_the_scratch_is_gone(house):
    asked = spec("write", seed=3)
    result = house.runner.run(asked)
    assert {name: house.registry.kind(digest) for name, digest in result.outputs.items()} == {
        "model": "model", "scores": "scores"
    }
    assert (house.registry.path(result.outputs["model"]) / "config.json").read_text() == '{"seed": 3}'
    assert not house.scratch(asked).exists()


def test_an_input_whose_bytes_changed_fails_every_job_that_reads_it_until_it_is_back(house, tmp_path):
    digest = house.registry.add_copy(folder_of(tmp_path), "data")
    file = house.registry.path(digest) / "item.txt"
    assert house.runner.run(spec("read", inputs={"data:a": digest})).values == {"data:a": ["item.txt"]}
    file.chmod(0o644)
    file.write_text("gaven")
    with pytest.raises(JobFailed, match=r"read: its input 'data:b' is damaged: .*item\.txt was changed") as failure:
        house.runner.run(spec("read", inputs={"data:b": digest}))
    assert failure.value.verdict is Verdict.CRASHED
    assert house.runner.run(spec("read", inputs={"data:a": digest})).values == {"data:a": ["item.txt"]}
    file.write_text("given")
    assert house.runner.run(spec("read", inputs={"data:b": digest})).values == {"data:b": ["item.txt"]}


def test_a_finished_job_whose_output_was_given_up_runs_again(house):
    asked = spec("write", seed=4)
    first = house.runner.run(asked)
    house.registry.remove(first.outputs["model"])
    assert house.runner.run(asked).outputs == first.outputs
    assert house.book.starts(asked.digest) == 2


def test_inputs_arrive_as_paths(house, tmp_path):
    digest = house.registry.add_copy(folder_of(tmp_path), "data")
    assert house.runner.run(spec("read", inputs={"data:given": digest})).values == {"data:given": ["item.txt"]}


def test_a_missing_input_is_named(house):
    with pytest.raises(JobFailed, match="read: the registry does not hold its input 'model' \\(000000000000\\)"):
        house.runner.run(spec("read", inputs={"model": "0" * 64}))


@pytest.mark.parametrize("kind", ["read", "train", "add"])
def test_the_vault_is_refused_to_other_kinds(house, tmp_path, kind):
    digest = house.registry.add_copy(folder_of(tmp_path, "sealed"), "vault")
    asked = spec(kind, inputs={"anything": digest}, numbers=[])
    with pytest.raises(JobFailed, match="'anything' is the vault"):
        house.runner.run(asked)
    assert house.book.starts(asked.digest) == 0


@pytest.mark.parametrize("kind", ["gate", "report"])
def test_the_gate_and_the_report_may_read_the_vault(house, tmp_path, kind):
    digest = house.registry.add_copy(folder_of(tmp_path, "sealed"), "vault")
    assert house.runner.run(spec(kind, inputs={"vault": digest})).values == {"vault": ["item.txt"]}


def test_a_job_that_raises_fails_in_one_line_and_its_traceback_is_in_the_log_only(house, capfd):
    asked = spec("fail")
    with pytest.raises(JobFailed) as failed:
        house.runner.run(asked)
    assert str(failed.value) == "fail: ValueError: the loss is not finite"
    assert failed.value.verdict is Verdict.CRASHED
    log = (house.folder / "jobs" / "worker.log").read_text()
    assert asked.digest in log
    assert "Traceback" in log
    assert "at step 3 of 7" in log
    assert capfd.readouterr() == ("", "")
    assert not house.scratch(asked).exists()
    assert house.book.starts(asked.digest) == 1


def test_a_failed_job_costs_its_worker_so_that_no_half_changed_model_is_used_again(house):
    before = house.runner.run(spec("tell", seed=1)).values
    with pytest.raises(JobFailed):
        house.runner.run(spec("fail"))
    after = house.runner.run(spec("tell", seed=2)).values
    assert before["pid"] != after["pid"]
    assert not after["half_changed"]
    assert not alive(before["pid"])


@pytest.mark.parametrize(("what", "words"), [
    ("nan", "not JSON compliant"), ("outside", "lies outside the job's folder"), ("nothing", "was not written"),
])
def test_a_job_that_returns_nonsense_fails_and_nothing_is_adopted(house, tmp_path, what, words):
    digest = house.registry.add_copy(folder_of(tmp_path), "data")
    with pytest.raises(JobFailed, match=words):
        house.runner.run(spec("nonsense", inputs={"data:given": digest}, what=what))
    assert house.registry.verify(digest) == []


@pytest.mark.parametrize(("kind", "words"), [
    ("unheard", "there is no job kind 'unheard'"), ("absent", "No module named 'no_such_module'"),
])
def test_a_job_that_cannot_be_loaded_fails_and_the_others_run(house, kind, words):
    with pytest.raises(JobFailed, match=words):
        house.runner.run(spec(kind))
    assert house.runner.run(spec("add", numbers=[2])).values == {"sum": 2}


def test_a_job_past_its_deadline_is_killed_with_what_it_started(house):
    told: list[str] = []
    house.runner.on_progress = lambda kind, done, note: told.append(note)
    house.runner.bounds = lambda: replace(Bounds(), resources=replace(Bounds().resources, worker_processes=2))
    asked = spec("sleep", seconds=30)
    began = time.monotonic()
    with pytest.raises(JobFailed, match="sleep: not done when its 1 seconds were up") as failed:
        house.runner.run(asked, timeout_seconds=0.6)
    assert failed.value.verdict is Verdict.TIMED_OUT
    assert time.monotonic() - began < 5
    assert len(told[0].split()) == 2
    assert not any(alive(int(pid)) for pid in told[0].split())
    assert not house.scratch(asked).exists()
    assert house.runner.run(spec("add", numbers=[2])).values == {"sum": 2}


def test_a_job_that_ends_its_process_fails_after_three_attempts(house):
    asked = spec("leave")
    with pytest.raises(JobFailed, match="leave: the worker ended by itself with status 1, in 3 attempts"):
        house.runner.run(asked)
    assert house.book.starts(asked.digest) == 3


def test_a_job_for_another_version_of_the_program_is_refused(tmp_path):
    with House(tmp_path, code="") as house:
        house.runner.code = "a" * 64
        with pytest.raises(JobFailed, match="another version of the program"):
            house.runner.run(JobSpec("add", {}, {"numbers": []}, 0, "b" * 64))


def test_a_nursery_of_another_version_of_the_program_refuses_to_work(tmp_path):
    with House(tmp_path, code="a" * 64) as house, pytest.raises(JobFailed, match="restart kaizend"):
        house.runner.run(JobSpec("add", {}, {"numbers": []}, 0, "a" * 64))


def test_two_workers_run_two_jobs_side_by_side_and_results_keep_their_order(house):
    specs = [spec("meet", seed=seed, seconds=0.5) for seed in (1, 2)]
    first, second = house.runner.run_all(specs)
    assert isinstance(first, JobResult)
    assert isinstance(second, JobResult)
    assert first.values["pid"] != second.values["pid"]
    assert max(first.values["came"], second.values["came"]) < min(first.values["left"], second.values["left"])
    mixed = house.runner.run_all([spec("add", numbers=[1]), spec("fail"), spec("add", numbers=[2])])
    assert [type(result) for result in mixed] == [JobResult, JobFailed, JobResult]
    assert isinstance(mixed[2], JobResult)
    assert mixed[2].values == {"sum": 2}


def test_the_same_job_asked_twice_at_once_runs_once(house):
    asked = spec("count", steps=5, pause=0.05)
    first, second = house.runner.run_all([asked, asked])
    assert first == second
    assert house.book.starts(asked.digest) == 1


def test_no_more_jobs_run_at_once_than_there_are_workers(tmp_path):
    with House(tmp_path, workers=2) as house:
        seen: list[int] = []
        asked = [spec("count", seed=seed, steps=4, pause=0.02) for seed in range(6)]
        house.runner.on_progress = lambda *_: seen.append(len(house.runner.pids()[1]))
        assert all(isinstance(result, JobResult) for result in house.runner.run_all(asked))
        assert max(seen) <= 2


def test_jobs_asked_together_share_their_time(tmp_path):
    with House(tmp_path, workers=1) as house:
        asked = [spec("add", numbers=[1]), *(spec("meet", seed=seed, seconds=30) for seed in range(3))]
        house.runner.run(spec("tell"))                                  # the nursery has booted
        began = time.monotonic()
        results = house.runner.run_all(asked, timeout_seconds=2.5)
        assert time.monotonic() - began < 2 * 2.5
    assert [type(result) for result in results] == [JobResult, JobFailed, JobFailed, JobFailed]
    assert all(result.verdict is Verdict.TIMED_OUT for result in results[1:])


def test_a_warm_worker_keeps_its_cache_and_forgets_its_random_state(house):
    first, second = (house.runner.run(spec("tell", seed=5, visit=visit)).values for visit in (1, 2))
    assert first["pid"] == second["pid"]
    assert (first["visits"], second["visits"]) == (1, 2)
    assert first["random"] == second["random"]


def test_a_trial_has_a_process_of_its_own_that_ends_with_it(house):
    first, second = (house.runner.run(spec("train", visit=visit)).values for visit in (1, 2))
    assert first["pid"] != second["pid"]
    assert second["visits"] == 1
    until(lambda: not alive(second["pid"]))


def test_a_worker_is_quiet_offline_and_holds_nothing_of_its_neighbours(house, capfd, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    house.runner.run_all([spec("add", numbers=[number]) for number in range(4)])
    told = house.runner.run(spec("tell")).values
    assert told["sockets"] == 1
    assert told["killed_with_parent"] == signal.SIGKILL
    assert told["cwd_is_scratch"]
    assert not told["terminal"]
    wanted = {
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled",
    }
    assert wanted.items() <= told["environment"].items()
    assert "NOTIFY_SOCKET" not in told["environment"]
    assert "words on standard output" in (house.folder / "jobs" / "worker.log").read_text()
    assert capfd.readouterr() == ("", "")


def test_progress_is_passed_on(tmp_path):
    seen: list[tuple[str, float, str]] = []
    with House(tmp_path, on_progress=lambda *words: seen.append(words)) as house:
        house.runner.run(spec("count", steps=3, pause=0.0))
    assert seen[0] == ("count", 1 / 3, "step 1")
    assert seen[-1] == ("count", 1.0, "step 3")


def test_stopping_parks_the_job_after_a_grace_and_it_continues_later(tmp_path):
    stop = threading.Event()
    asked = spec("count", steps=20, pause=0.05)
    with House(tmp_path, stopping=stop.is_set, grace_seconds=0.2) as house:
        house.runner.on_progress = lambda kind, done, note: stop.set() if done > 0.2 else None
        with pytest.raises(Parked):
            house.runner.run(asked)
        assert house.runner.pids()[1] == []
        saved = int((house.scratch(asked) / "saved").read_text().split()[0])
        assert 4 < saved < 20
    with House(tmp_path) as house:
        seen: list[float] = []
        house.runner.on_progress = lambda kind, done, note: seen.append(done)
        house.runner.start()
        parked = house.runner.run(asked)
        assert min(seen) > saved / 20
    with House(tmp_path / "undisturbed") as house:
        assert house.runner.run(asked).outputs == parked.outputs


def test_a_job_that_ends_within_the_grace_is_kept(tmp_path):
    stop = threading.Event()
    asked = spec("count", steps=4, pause=0.05)
    with House(tmp_path, stopping=stop.is_set, grace_seconds=10.0) as house:
        house.runner.on_progress = lambda *_: stop.set()
        house.runner.run(asked)
        assert house.book.result(asked.digest) is not None


def test_stopping_parks_jobs_that_wait_for_a_place_too(tmp_path):
    stop = threading.Event()
    with House(tmp_path, workers=2, stopping=stop.is_set, grace_seconds=0.1) as house:
        house.runner.on_progress = lambda *_: stop.set()
        with pytest.raises(Parked):
            house.runner.run_all([spec("count", seed=seed, steps=100, pause=0.05) for seed in range(4)])


def test_old_and_finished_scratch_is_thrown_away_at_the_start(house):
    done = spec("add", numbers=[1])
    house.runner.run(done)
    recent, old = house.folder / "jobs" / ("a" * 64), house.folder / "jobs" / ("b" * 64)
    for scratch in (house.scratch(done), recent, old):
        scratch.mkdir()
    os.utime(old, (0, 0))
    house.runner.start()
    assert [scratch.exists() for scratch in (house.scratch(done), recent, old)] == [False, True, False]


def test_a_runner_says_what_is_in_flight_and_that_it_moves(tmp_path):
    with House(tmp_path) as house:
        flights = []
        house.runner.on_progress = lambda *_: flights.extend(house.runner.in_flight())
        began = time.monotonic()
        asked = spec("count", steps=2, pause=0.2)
        house.runner.run(asked)
        assert {(flight["kind"], flight["digest"]) for flight in flights} == {("count", asked.digest)}
        assert house.runner.last_moved > began
        assert house.runner.in_flight() == []


def test_a_closed_runner_leaves_no_process_behind(tmp_path):
    with House(tmp_path) as house:
        house.runner.start()
        assert house.runner.wait_ready(10)
        house.runner.run(spec("add", numbers=[1]))
        nursery, workers = house.runner.pids()
        assert nursery is not None
        assert len(workers) == 1
    until(lambda: not any(alive(pid) for pid in (nursery, *workers)), 1.0)


def test_the_log_is_kept_small(house):
    house.runner.run(spec("add", numbers=[1]))
    log = house.folder / "jobs" / "worker.log"
    with log.open("a") as out:
        out.write("x" * 1_100_000)
    house.runner.run(spec("add", numbers=[2]))
    assert log.stat().st_size < 1000
    assert log.with_name("worker.log.1").stat().st_size > 1_000_000


def test_the_daemon_side_imports_neither_torch_nor_any_loop():
    code = "import sys, daemon.runner; print([m for m in sys.modules if m.split('.')[0] in ('torch','numpy','loops')])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout == "[]\n"
