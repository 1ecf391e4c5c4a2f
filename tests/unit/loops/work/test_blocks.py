"""What is freed is filled with zeros by the kernel again, unless it is kept."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
from collections.abc import Callable

import pytest

from loops.work.blocks import keep_blocks, keep_every_block

BLOCK, PAGES = 2**26, 2**26 // resource.getpagesize()
FORK = multiprocessing.get_context("fork")


def faults(prepare: Callable[[], None]) -> int:
    """Pages that a process of its own gets from the kernel for a large block, after one that it has freed."""
    def count() -> None:
        prepare()
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            block = b"x" * BLOCK
            pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            del block
        told.put(pages)

    told = FORK.SimpleQueue()
    process = FORK.Process(target=count)
    process.start()
    process.join()
    assert process.exitcode == 0
    return int(told.get())


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="there is no glibc here")
def test_what_training_frees_is_there_for_the_next_step_and_what_a_build_frees_goes_back() -> None:
    def build_after_training() -> None:
        keep_every_block()
        keep_blocks(2**22, 2**22)

    assert faults(keep_every_block) < PAGES / 10
    assert faults(build_after_training) > PAGES / 10
