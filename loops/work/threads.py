"""Threads that each make whole tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1         # of mallopt(3)
BLOCK_BYTES, KEPT_BYTES = 4 * 2**20, 64 * 2**20


@contextmanager
def tensor_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `count` threads that compute alone, each its own tensor.

    torch would divide every operation among as many, and wait for the slowest at each. What was not begun when the
    caller leaves is not done.
    """
    _keep_blocks()
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "tensors", torch.set_num_threads, (1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)               # what a thread sets counts for later threads, too


def _keep_blocks() -> None:
    """Have malloc keep what blocks of a tensor were computed in for the next ones: the kernel would fill every page of
    it with zeros each time. What is larger goes back at once, as ever. Other libraries than glibc do without.
    """
    if tune := getattr(ctypes.CDLL(None), "mallopt", None):
        tune(MMAP_THRESHOLD, BLOCK_BYTES)
        tune(TRIM_THRESHOLD, KEPT_BYTES)
