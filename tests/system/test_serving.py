"""A daemon that runs: paused, resumed, drained, stopped and told new bounds, small while idle and never with torch."""

import signal
import time
from pathlib import Path

import psutil
import pytest
from watching import (
    asked,
    channels,
    complaint,
    in_flight,
    kaizend,
    links_agree,
    previous,
    rows,
    serving,
    state_of,
    stop,
    until,
)

IDLE_MIB = 120


@pytest.fixture
def stopped(life: Path) -> Path:
    """A life whose daemon comes up paused by the stop file, so that it costs no cycle."""
    (life / "var" / "STOP").touch()
    return life


def paused(folder: Path) -> None:
    until(lambda: not in_flight(folder) and state_of(folder)[0] == 2)


def bounds_rows(folder: Path) -> list:
    return [row for row in rows(folder) if row.event == "bounds"]


def test_pause_resume_and_drain_with_a_small_daemon_that_never_imports_torch(life: Path) -> None:
    with serving(life) as process:
        assert process.stderr is not None
        assert state_of(life) == (0, "running")
        cycle = until(lambda: in_flight(life))[0]
        assert kaizend(life, "pause").stdout == "paused: by the operator\n"
        paused(life)
        assert any(row.event == "closed" and row.cycle == cycle for row in rows(life))
        body = asked(life, "status")
        assert body["state"] == "paused: by the operator"
        assert (body["cycle"], body["jobs"]) == (None, [])
        assert body["budgets_left"].keys() == {"seconds", "gpu_hours"}
        still = len(rows(life))
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in mapped
        assert "numpy" in mapped                                   # the question would see a library
        assert psutil.Process(process.pid).memory_info().rss < IDLE_MIB * 2**20
        assert len(rows(life)) == still
        assert kaizend(life, "resume").stdout == "running\n"
        assert kaizend(life, "drain").stdout == "draining\n"
        assert process.wait(60) == 0
        assert in_flight(life) == []
        assert "Traceback" not in process.stderr.read()
    assert state_of(life)[0] == 3
    assert asked(life, "verify")["holds"]


def test_sigterm_parks_within_stop_seconds_and_the_next_start_goes_on(life: Path) -> None:
    with serving(life) as process:
        until(lambda: in_flight(life))
        began = time.monotonic()
        assert stop(process, 10) == 0
        assert time.monotonic() - began < 5 + 1
    cycle = in_flight(life)
    assert cycle
    assert not (life / "var" / "kaizend.sock").exists()
    with serving(life) as process:
        until(lambda: cycle[0] not in in_flight(life))
        assert stop(process, 10) == 0
    closed = next(row for row in rows(life) if row.event == "closed" and row.cycle == cycle[0])
    assert closed.verdict in ("PROMOTED", "REJECTED")
    assert len([row for row in rows(life) if row.event == "opened" and row.id == cycle[0]]) == 1
    assert asked(life, "verify")["holds"]


def test_control_c_stops_without_a_traceback(stopped: Path) -> None:
    with serving(stopped) as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert "Traceback" not in process.stderr.read()


def test_the_stop_file_pauses_and_taking_it_away_goes_on(stopped: Path) -> None:
    with serving(stopped):
        assert state_of(stopped) == (2, "paused: breaker.stop_file: the file STOP is there")
        assert "breaker.stop_file" in kaizend(stopped, "resume").stdout
        assert in_flight(stopped) == []
        (stopped / "var" / "STOP").unlink()
        until(lambda: in_flight(stopped))


def test_a_rollback_through_the_running_daemon_takes_seconds(stopped: Path) -> None:
    before, earlier = channels(stopped), previous(stopped)
    with serving(stopped):
        began = time.monotonic()
        done = kaizend(stopped, "rollback", "--reason", "worse in use")
        assert (done.returncode, time.monotonic() - began < 5) == (0, True)
        assert channels(stopped) == {**before, "stable": earlier}
        assert links_agree(stopped)
        assert rows(stopped)[-1].verdict == "ROLLED_BACK"
        while channels(stopped)["stable"] != rows(stopped)[0].result:
            assert kaizend(stopped, "rollback", "--reason", "again").returncode == 0
        assert "no earlier stable model" in complaint(kaizend(stopped, "rollback", "--reason", "again"))


def test_sighup_tightens_bounds_and_keeps_the_old_ones_where_the_file_is_looser(stopped: Path) -> None:
    file = stopped / "bounds.toml"
    first = file.read_text()
    with serving(stopped) as process:
        file.write_text(first.replace("margin = 0.2", "margin = 0.1"))
        process.send_signal(signal.SIGHUP)
        until(lambda: len(bounds_rows(stopped)) == 2)
        row = bounds_rows(stopped)[-1]
        assert (row.reason, row.actor, row.change["looser"]) == ("bounds tightened on reload", "operator", [])
        assert row.change["after"]["guards"]["margin"] == 0.1
        file.write_text(first)
        process.send_signal(signal.SIGHUP)
        time.sleep(1.5)
        assert len(bounds_rows(stopped)) == 2
        stop(process, 10)
        assert process.stderr is not None
        reloads = [line for line in process.stderr.read().splitlines() if '"reloaded"' in line]
        assert len(reloads) == 2
        assert "the file is looser (guards.margin: 0.1 -> 0.2)" in reloads[1]


def test_looser_bounds_refuse_a_start_until_the_operator_has_said_why(stopped: Path) -> None:
    file = stopped / "bounds.toml"
    file.write_text(file.read_text().replace("margin = 0.2", "margin = 0.3"))
    count = len(rows(stopped))
    said = complaint(kaizend(stopped, "run", "--cycles", "1"), 78)
    assert "guards.margin: 0.2 -> 0.3" in said
    assert "kaizend bounds loosen --reason" in said
    assert "guards.margin: 0.2 -> 0.3" in kaizend(stopped, "bounds", "check").stdout
    assert "needs a reason" in complaint(kaizend(stopped, "bounds", "loosen", "--reason", " "))
    assert len(rows(stopped)) == count
    assert kaizend(stopped, "bounds", "loosen", "--reason", "small guards").stdout == "guards.margin: 0.2 -> 0.3\n"
    row = rows(stopped)[-1]
    assert (row.event, row.reason, row.actor, row.change["looser"]) == (
        "bounds", "small guards", "operator", ["guards.margin: 0.2 -> 0.3"])
    with serving(stopped) as process:
        assert state_of(stopped)[0] == 2
        assert stop(process, 10) == 0
