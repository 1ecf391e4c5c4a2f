"""What a job uses of the host, measured from outside: memory, disk space, processes, threads. Standard library only.

The kernel enforces what it can inside the sandbox; this is for what it counts differently or not at all. Invariant: a
look changes nothing and takes little; whoever looks decides what to do about the refusal.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from safety.limits import Refusal
from safety.nameless import BLOCK, nameless
from safety.sandbox import GIB, MOST_THREADS, Limits

MEMORY_PAUSE_SECONDS: Final = 0.1
DISK_PAUSE_SECONDS: Final = 0.5
MOST_FILES: Final = 100_000
MOST_LEVELS: Final = 32
MEMORY_KEYS: Final = ("RssAnon", "RssShmem", "VmSwap")
KIB_PER_GIB: Final = 2**20


class Meter:
    """Watches one job of one worker. `room` is where the worker can write; `min_free_gib` must remain on its disk.
    `ask` tells of a worker what this process cannot see: the bytes of its files without a name.

    A job may not use up the last half of what must remain free: the service pauses between cycles, a job would not.
    """

    def __init__(
        self, pid: int, room: Path, limits: Limits, min_free_gib: float = 0.0,
        ask: Callable[[int], int | None] = lambda pid: None,
    ) -> None:
        self.pid = pid
        self.room = room
        self.limits = limits
        self.min_free_gib = min_free_gib
        self.ask = ask
        self._next_memory = self._next_disk = 0.0
        self._used_before = disk_used(room)[0] + self._nameless()

    def breach(self, *, last: bool = False) -> Refusal | None:
        """The first bound that the job is found outside of, or None. Each is looked at every so often and at `last`."""
        now = time.monotonic()
        if now >= self._next_memory or last:
            self._next_memory = now + MEMORY_PAUSE_SECONDS
            if refusal := self._tasks() or self._memory():
                return refusal
        if now >= self._next_disk or last:
            self._next_disk = now + DISK_PAUSE_SECONDS
            return self._disk()
        return None

    def _memory(self) -> Refusal | None:
        used = sum(memory_gib(pid) for pid in self._pids())
        if used > self.limits.memory_gib:
            return Refusal("resources.worker_memory_gib", used, self.limits.memory_gib)
        return None

    def _tasks(self) -> Refusal | None:
        pids = self._pids()
        if len(pids) - 1 > self.limits.processes:
            return Refusal("resources.worker_processes", len(pids) - 1, self.limits.processes)
        threads = sum(map(threads_of, pids))
        return Refusal("threads of a worker", threads, MOST_THREADS) if threads > MOST_THREADS else None

    def _pids(self) -> list[int]:
        return list(group_of(self.pid)) if self.limits.processes else [self.pid]

    def _disk(self) -> Refusal | None:
        used, files, depth = disk_used(self.room)
        used += self._nameless()
        if used > self.limits.scratch_gib * GIB:
            return Refusal("resources.scratch_gib", used / GIB, self.limits.scratch_gib)
        if files > MOST_FILES:
            return Refusal("files of a job", files, MOST_FILES)
        if depth > MOST_LEVELS:
            return Refusal("folders of a job inside each other", depth, MOST_LEVELS)
        free = shutil.disk_usage(self.room).free / GIB
        wanted = self.min_free_gib / 2
        if free < wanted and (used - self._used_before) / GIB > wanted - free:
            return Refusal("resources.min_disk_free_gib", free, self.min_free_gib)
        return None

    def _nameless(self) -> int:
        """Bytes of the job's files without a name. What nobody sees counts as none, and `kaizend check` says so."""
        seen = nameless(self._pids())
        return (self.ask(self.pid) if seen is None else seen) or 0


def is_seen(pid: int) -> bool:
    """Whether /proc shows the process, dead or alive. What it hides would count as using nothing."""
    return Path(f"/proc/{pid}/status").exists()


def memory_gib(pid: int) -> float:
    """Memory of a process that no file backs, swapped out or not; 0 for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(values[key].split()[0]) for key in MEMORY_KEYS if key in values) / KIB_PER_GIB


def threads_of(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}/task").stat().st_nlink - 2
    except OSError:
        return 0


def group_of(leader: int) -> Iterator[int]:
    """The living processes of a process group, the leader first."""
    yield leader
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != leader:
            try:
                state, _, group = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:3]
            except (OSError, ValueError):
                continue
            if int(group) == leader and state not in "ZX":
                yield int(entry)


def disk_used(room: Path) -> tuple[int, int, int]:
    """Bytes on disk of what a worker wrote in its room; number of files; levels of folders.

    The count ends where it has shown enough.
    """
    used, files, deepest = 0, 0, 0
    folders = [(0, room / "out"), (0, room / "tmp")]
    while folders and files <= MOST_FILES and deepest <= MOST_LEVELS:
        level, folder = folders.pop()
        deepest = max(deepest, level)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    files += 1
                    used += entry.stat(follow_symlinks=False).st_blocks * BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((level + 1, Path(entry.path)))
        except OSError:
            continue                                # it was removed while this looked
    return used, files, deepest
