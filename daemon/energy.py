"""What the host's energy meters say while jobs run, and each job's share of it.

Processors: the packages' counters under /sys/class/powercap (RAPL), which wrap around. GPUs: power drawn, asked of
nvidia-smi every few seconds by a thread of its own, because a driver can hang for ever; one that does not answer in
time is given up and never waited for. Where the device of the workers cannot be read, energy is None, not a guess.

The share: meters count the whole package, idle draw and strangers included. What they count between two moments is
divided evenly among the jobs in hand then, so that the jobs' sum is what the host used while at least one ran, each
joule once. What it used with no job in hand belongs to none. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

POWERCAP: Final = Path("/sys/class/powercap")
PACKAGES: Final = "intel-rapl:[0-9]*"
SMI: Final = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits")
ANSWER_SECONDS: Final = 5.0        # for nvidia-smi to answer in
SAMPLE_SECONDS: Final = 5.0        # between two looks; RAPL wraps within minutes at the earliest
STALE_SECONDS: Final = 4 * SAMPLE_SECONDS


class Processors:
    """The counters of the processor packages below a powercap folder."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._last: dict[Path, int] = {}
        self._ranges: dict[Path, int] = {}
        for package in sorted(folder.glob(PACKAGES)) if folder.is_dir() else []:
            counter = package / "energy_uj"
            if package.name.count(":") == 1 and (value := _number(counter)) is not None:     # parts count in packages
                self._last[counter] = value
                self._ranges[counter] = _number(package / "max_energy_range_uj") or 0

    @property
    def readable(self) -> bool:
        return bool(self._last)

    def joules(self) -> float | None:
        """What was used since the last call; None where a counter cannot be read any more."""
        used = 0
        for counter, last in self._last.items():
            now = _number(counter)
            if now is None:
                return None
            self._last[counter] = now
            used += now - last if now >= last else now + self._ranges[counter] - last
        return used / 1e6


class Graphics:
    """The power that the GPUs draw, asked of a program that may hang."""

    def __init__(self, command: Sequence[str] = SMI, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.command = tuple(command)
        self.answer_seconds = answer_seconds
        self.hung = False

    def watts(self) -> float | None:
        """The sum over the GPUs; None where the program is not there, fails, or hangs, and after that for good."""
        if self.hung:
            return None
        try:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, start_new_session=True,
            )
        except OSError:
            return None
        try:
            said, _ = process.communicate(timeout=self.answer_seconds)
            return sum(float(line) for line in said.split("\n") if line.strip()) if process.returncode == 0 else None
        except subprocess.TimeoutExpired:
            self.hung = True
            process.kill()                  # one that hangs inside the driver cannot be killed: it is not waited for
            return None
        except ValueError:
            return None


class EnergyMeter:
    """Counts joules for the jobs in hand. `device` is that of the workers; on CUDA the GPUs must be readable."""

    def __init__(
        self, device: str, processors: Processors | None = None, graphics: Graphics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.processors = processors or Processors()
        self.graphics = graphics or Graphics((*SMI, *_which(device)))
        self.clock = clock
        self.cuda = device.startswith("cuda")
        self._lock = threading.Lock()
        self._own = threading.local()
        self._jobs = 0
        self._share = 0.0                       # joules that a job would have that was in hand all the time
        self._gaps = 0                          # stretches that could not be read: a job around one has no figure
        self._watts: tuple[float, float] | None = None          # power of the GPUs, and when it was asked
        self._settled = clock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)

    def start(self) -> None:
        """Begin to look at the meters by itself, where there are any."""
        if self.cuda or self.processors.readable:
            self._thread.start()

    def close(self) -> None:
        self._stopped.set()

    @contextmanager
    def job(self) -> Iterator[None]:
        """A job in hand of the calling thread, from entry to exit."""
        with self._lock:
            self._settle()
            self._jobs += 1
            self._own.began = self._share, self._gaps
            self._own.joules = None
        try:
            yield
        finally:
            self._own.joules = self.joules()
            with self._lock:
                self._jobs -= 1
            self._own.began = None

    def joules(self) -> float | None:
        """The share so far of the calling thread's job, or the whole share of its last one; None where unknown."""
        began = getattr(self._own, "began", None)
        if began is None:
            joules: float | None = getattr(self._own, "joules", None)
            return joules
        with self._lock:
            self._settle()
            share, gaps = began
            known = (self.cuda or self.processors.readable) and self._gaps == gaps
            return self._share - share if known else None

    def look(self) -> None:
        """Ask the meters now. Blocks for as long as nvidia-smi may take to answer."""
        watts = self.graphics.watts() if self.cuda else None
        with self._lock:
            self._settle()
            self._watts = None if watts is None else (watts, self.clock())

    def _watch(self) -> None:
        while True:
            self.look()
            if self._stopped.wait(SAMPLE_SECONDS):
                return

    def _settle(self) -> None:
        """Divide what was used since the last time among the jobs that were in hand. Call with the lock held."""
        now = self.clock()
        seconds, self._settled = now - self._settled, now
        used = self.processors.joules() if self.processors.readable else 0.0
        if self.cuda:
            fresh = self._watts is not None and now - self._watts[1] <= STALE_SECONDS
            drawn = self._watts[0] * seconds if self._watts is not None and fresh else None
            used = None if used is None or drawn is None else used + drawn
        if not self._jobs:
            return
        if used is None:
            self._gaps += 1
        else:
            self._share += used / self._jobs


def energy_in_words(device: str) -> str:
    """What of the host's energy can be read by this user, for `kaizend check`. Asks no driver."""
    counted = "are counted" if Processors().readable else "cannot be read"
    if not device.startswith("cuda"):
        return f"processor packages {counted}"
    found = "by nvidia-smi" if shutil.which(SMI[0]) else "cannot be read: there is no nvidia-smi, so energy is unknown"
    return f"processor packages {counted}; GPUs {found}"


def _which(device: str) -> tuple[str, ...]:
    """The option that names the workers' GPU among those of the host."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    number = device.partition(":")[2] or "0"
    if visible:
        return ("-i", visible[int(number)]) if number.isdecimal() and int(number) < len(visible) else ()
    return ("-i", number)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
