"""What is freed is filled with zeros by the kernel again, unless it is kept."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PAGES = 2**14                                                   # of a block
COUNT = f"""
import resource
from loops.work.blocks import keep_blocks, keep_every_block

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * ({PAGES} * resource.getpagesize())
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def least():
    faults()
    return min(faults() for _ in range(4))                      # a small block may lie in the hole of a large one

keep_every_block()
kept = least()
keep_blocks(2**22, 2**22)
print(kept, least())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="there is no glibc here")
def test_what_training_frees_is_there_for_the_next_step_and_what_a_build_frees_goes_back() -> None:
    ended = subprocess.run((sys.executable, "-c", COUNT), capture_output=True, text=True, check=True)
    in_training, in_a_build = (int(faults) for faults in ended.stdout.split())
    assert in_training < in_a_build / 10                        # a fault is a page, and a page may be a huge one
