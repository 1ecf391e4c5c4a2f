"""Memory that glibc's malloc keeps for later blocks: what it gives back, the kernel fills with zeros the next time, a
page after the other. Other libraries do without.
"""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4           # of mallopt(3)
NEVER, NONE, MANY = -1, 0, 65536                               # the last is what it begins with


def keep_blocks(largest: int, kept: int) -> None:
    """Keep what blocks of up to `largest` bytes leave, and up to `kept` bytes at the end of the heap."""
    _tune({MMAP_MAX: MANY, MMAP_THRESHOLD: largest, TRIM_THRESHOLD: kept})


def keep_every_block() -> None:
    """Keep whatever is freed, for a process that does the same again and again and then ends."""
    _tune({MMAP_MAX: NONE, TRIM_THRESHOLD: NEVER})


def _tune(settings: dict[int, int]) -> None:
    if tune := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, value in settings.items():
            tune(parameter, value)
