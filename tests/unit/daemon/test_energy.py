"""Energy: counters that wrap, jobs side by side, and a nvidia-smi that fails, lies or hangs."""

import threading
import time
from pathlib import Path

import pytest
from toy_house import House, until

from daemon.energy import STALE_SECONDS, EnergyMeter, Graphics, Processors
from state.jobs import JobSpec

WRAPS_AT = 262_143_328_850


class Sysfs:
    """A powercap tree as the kernel shows it: two packages, and parts of one of them that count in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("intel-rapl", "intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
            (folder / name).mkdir(parents=True)
        for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
            (folder / name / "max_energy_range_uj").write_text(f"{WRAPS_AT}\n")
            self.set(name, 1_000_000)

    def set(self, name: str, microjoules: int) -> None:
        (self.folder / name / "energy_uj").write_text(f"{microjoules}\n")

    def use(self, joules: float, name: str = "intel-rapl:0") -> None:
        before = int((self.folder / name / "energy_uj").read_text())
        self.set(name, (before + round(joules * 1e6)) % WRAPS_AT)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def smi(tmp_path: Path, body: str, answer_seconds: float = 2.0) -> Graphics:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return Graphics((str(program),), answer_seconds)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "powercap")


def test_packages_are_summed_and_their_parts_are_not(sysfs: Sysfs) -> None:
    processors = Processors(sysfs.folder)
    assert processors.joules() == 0.0
    sysfs.use(3.0)
    sysfs.use(2.0, "intel-rapl:0:0")
    sysfs.use(4.0, "intel-rapl:1")
    assert processors.joules() == pytest.approx(7.0)
    assert processors.joules() == 0.0


def test_a_counter_that_wraps_around_goes_on_counting(sysfs: Sysfs) -> None:
    sysfs.set("intel-rapl:0", WRAPS_AT - 1_000_000)
    processors = Processors(sysfs.folder)
    sysfs.use(5.0)
    assert int((sysfs.folder / "intel-rapl:0" / "energy_uj").read_text()) == 4_000_000
    assert processors.joules() == pytest.approx(5.0)


def test_where_nothing_can_be_read_there_is_no_figure(tmp_path: Path, sysfs: Sysfs) -> None:
    assert not Processors(tmp_path / "none").readable
    meter = EnergyMeter("cpu", Processors(tmp_path / "none"))
    with meter.job():
        assert meter.joules() is None
    assert meter.joules() is None
    processors = Processors(sysfs.folder)
    (sysfs.folder / "intel-rapl:1" / "energy_uj").unlink()
    assert processors.joules() is None


def test_a_job_has_what_was_used_while_it_was_in_hand(sysfs: Sysfs) -> None:
    meter = EnergyMeter("cpu", Processors(sysfs.folder))
    sysfs.use(100.0)                                        # nobody's
    with meter.job():
        sysfs.use(3.0)
        assert meter.joules() == pytest.approx(3.0)
        sysfs.use(2.0)
    sysfs.use(50.0)
    assert meter.joules() == pytest.approx(5.0)
    with meter.job():
        pass
    assert meter.joules() == 0.0


def test_jobs_side_by_side_share_evenly_and_sum_to_what_was_used(sysfs: Sysfs) -> None:
    meter = EnergyMeter("cpu", Processors(sysfs.folder))
    inside, leave = threading.Event(), threading.Event()
    other: list[float | None] = []

    def beside() -> None:
        with meter.job():
            inside.set()
            leave.wait()
        other.append(meter.joules())

    with meter.job():
        sysfs.use(10.0)
        thread = threading.Thread(target=beside)
        thread.start()
        inside.wait()
        sysfs.use(6.0)
        leave.set()
        thread.join()
        sysfs.use(1.0)
    assert other == [pytest.approx(3.0)]
    assert meter.joules() == pytest.approx(10.0 + 3.0 + 1.0)


def test_gpu_power_is_counted_over_time_and_added(tmp_path: Path, sysfs: Sysfs) -> None:
    clock = Clock()
    meter = EnergyMeter("cuda", Processors(sysfs.folder), smi(tmp_path, "echo 300.5; echo 99.5"), clock)
    meter.look()
    with meter.job():
        clock.now += 2.0
        sysfs.use(50.0)
    assert meter.joules() == pytest.approx(2 * 400.0 + 50.0)


@pytest.mark.parametrize("body", ["exit 9", "echo '[N/A]'", "echo 'No devices were found'"])
def test_a_gpu_that_cannot_be_read_gives_no_figure_rather_than_half_of_one(
    tmp_path: Path, sysfs: Sysfs, body: str
) -> None:
    clock = Clock()
    meter = EnergyMeter("cuda", Processors(sysfs.folder), smi(tmp_path, body), clock)
    meter.look()
    with meter.job():
        clock.now += 2.0
        sysfs.use(50.0)
    assert meter.joules() is None


def test_power_that_was_read_long_ago_is_not_taken_for_power_now(tmp_path: Path) -> None:
    clock = Clock()
    meter = EnergyMeter("cuda", Processors(tmp_path / "none"), smi(tmp_path, "echo 100"), clock)
    meter.look()
    with meter.job():
        clock.now += STALE_SECONDS + 1
    assert meter.joules() is None


def test_a_nvidia_smi_that_hangs_is_given_up_once_and_holds_up_no_job(tmp_path: Path) -> None:
    graphics = smi(tmp_path, "trap '' TERM; echo asked >> \"$0.log\"; while :; do sleep 1; done", 1.0)
    meter = EnergyMeter("cuda", Processors(tmp_path / "none"), graphics)
    meter.start()
    began = time.monotonic()
    with meter.job():
        pass
    assert time.monotonic() - began < 0.8
    assert meter.joules() is None
    until(lambda: graphics.hung)
    assert graphics.watts() is None
    assert (tmp_path / "nvidia-smi.log").read_text() == "asked\n"
    meter.close()


def test_a_job_of_the_runner_costs_its_energy_and_the_day_knows(tmp_path: Path, sysfs: Sysfs) -> None:
    meter = EnergyMeter("cpu", Processors(sysfs.folder))

    def burn(kind: str, done: float, note: str) -> None:
        sysfs.use(7.0)

    with House(tmp_path / "var", energy=meter, on_progress=burn) as house:
        result = house.runner.run(JobSpec("add", {}, {"numbers": [1]}))
        assert result.cost.joules == 0.0
        told = house.runner.run(JobSpec("count", {}, {"steps": 3, "pause": 0.0}))
        assert told.cost.joules is not None and told.cost.joules >= 7.0
        assert house.book.spent_since(house.book.clock().replace(hour=0)).joules == told.cost.joules
