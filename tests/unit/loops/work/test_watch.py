"""Out of memory, an attempt is made once more with half the batch at a time, and nothing of the first one stays."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch

from loops.work.watch import halving


class Held:
    """What an attempt has in memory, in a circle as a trainer and its callbacks are."""

    def __init__(self) -> None:
        self.myself = self


def attempts(*errors: Exception) -> tuple[list[int], list[weakref.ref[Held]], Callable[[int], str]]:
    """An attempt that fails with each of these in turn; what it was told, and what it held."""
    told: list[int] = []
    held: list[weakref.ref[Held]] = []

    def attempt(micro_batch: int) -> str:
        assert [kept() for kept in held] == [None] * len(held)
        tensors = Held()
        held.append(weakref.ref(tensors))
        told.append(micro_batch)
        if len(told) <= len(errors):
            failure = errors[len(told) - 1]
            raise type(failure)(*failure.args)              # a new one: what is kept here must not keep the attempt
        return "done"

    return told, held, attempt


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
])
def test_whatever_says_that_memory_failed_halves_the_batch_and_frees_the_first_attempt(error: Exception) -> None:
    told, held, attempt = attempts(error)
    assert halving(8, attempt) == "done"
    assert told == [0, 4]
    assert held[0]() is None


def test_the_host_out_of_memory_is_recognised_by_what_torch_really_says() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60, dtype=torch.uint8)
    told, _, attempt = attempts(failure.value)
    assert halving(8, attempt) == "done"
    assert told == [0, 4]


def test_the_second_time_an_odd_batch_and_any_other_error_end_it() -> None:
    memory = torch.OutOfMemoryError("out of memory")
    told, _, attempt = attempts(memory, memory)
    with pytest.raises(torch.OutOfMemoryError):
        halving(8, attempt)
    assert told == [0, 4]
    for batch, error in ((7, memory), (8, RuntimeError("shapes differ")), (8, ValueError("no rows"))):
        told, _, attempt = attempts(error)
        with pytest.raises(type(error)):
            halving(batch, attempt)
        assert told == [0]
