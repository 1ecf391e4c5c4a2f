"""What failures teach, and what they do not."""

from __future__ import annotations

from dataclasses import replace

from loops.pipeline.limits import MOST_LIMITS, added, forbidden, taught
from loops.pipeline.recipe import SFT, Adapter, AdapterKind, Stage

WHOLE = replace(SFT, adapter=Adapter())


def test_running_out_of_memory_forbids_what_is_as_large_or_larger():
    limit = taught(SFT, "OutOfMemoryError: CUDA out of memory")
    assert limit is not None
    assert forbidden(SFT, [limit])
    assert forbidden(replace(SFT, batch=64), [limit])
    assert forbidden(WHOLE, [limit])
    assert not forbidden(replace(SFT, batch=SFT.batch // 2), [limit])
    assert not forbidden(replace(SFT, adapter=Adapter(AdapterKind.LORA, 8)), [limit])
    assert not forbidden(replace(SFT, stage=Stage.GRPO, group=8), [limit])


def test_every_way_in_which_memory_runs_out_is_recognised():
    for reason in (
        "train: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "train: MemoryError",
        "train: RuntimeError: [enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory",
        "train: OSError: [Errno 12] Cannot allocate memory",
        "train: RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "train: the worker was killed by signal 9 (SIGKILL, as the kernel does when memory runs out), in 3 attempts",
    ):
        limit = taught(SFT, reason)
        assert limit is not None, reason
        assert limit["kind"] == "memory"


def test_divergence_forbids_what_is_as_fast_or_faster():
    limit = taught(SFT, "Diverged: the loss is not finite at step 3")
    assert limit is not None
    assert forbidden(replace(SFT, learning_rate=1e-3), [limit])
    assert not forbidden(replace(SFT, learning_rate=1e-5), [limit])
    assert not forbidden(replace(WHOLE, learning_rate=1e-3), [limit])


def test_other_failures_teach_nothing_about_the_recipe():
    assert taught(SFT, "FileNotFoundError: data.jsonl") is None
    assert taught(SFT, "train: its input 'data:a' is damaged: /var/lib/a.jsonl was changed") is None


def test_limits_are_kept_once_and_not_without_end():
    one = taught(SFT, "out of memory")
    assert added(added([], one), one) == [one]
    assert added([one], None) == [one]
    many: list = []
    for batch in range(1, 100):
        many = added(many, taught(replace(SFT, batch=batch), "out of memory"))
    assert len(many) == MOST_LIMITS
