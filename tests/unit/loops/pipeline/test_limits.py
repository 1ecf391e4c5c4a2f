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


def test_divergence_forbids_what_is_as_fast_or_faster():
    limit = taught(SFT, "Diverged: the loss is not finite at step 3")
    assert limit is not None
    assert forbidden(replace(SFT, learning_rate=1e-3), [limit])
    assert not forbidden(replace(SFT, learning_rate=1e-5), [limit])
    assert not forbidden(replace(WHOLE, learning_rate=1e-3), [limit])


def test_other_failures_teach_nothing_about_the_recipe():
    assert taught(SFT, "FileNotFoundError: data.jsonl") is None


def test_limits_are_kept_once_and_not_without_end():
    one = taught(SFT, "out of memory")
    assert added(added([], one), one) == [one]
    assert added([one], None) == [one]
    many: list = []
    for batch in range(1, 100):
        many = added(many, taught(replace(SFT, batch=batch), "out of memory"))
    assert len(many) == MOST_LIMITS
