"""Threads that each make whole tensors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from loops.work.blocks import keep_blocks

BLOCK_BYTES, KEPT_BYTES = 4 * 2**20, 64 * 2**20


@contextmanager
def tensor_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `count` threads that compute alone, each its own tensor.

    torch would divide every operation among as many, and wait for the slowest at each. What was not begun when the
    caller leaves is not done.
    """
    keep_blocks(BLOCK_BYTES, KEPT_BYTES)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "tensors", torch.set_num_threads, (1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)               # what a thread sets counts for later threads, too
