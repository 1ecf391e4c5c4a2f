"""The controls of a demo repeat the training behind a model as it was carried out, on another one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from daemon.controls import training_of
from state.jobs import JobResult, JobSpec
from state.records import Cost


def test_a_segment_that_paused_is_repeated_in_one_go_whatever_arm_it_was() -> None:
    params = {"steps": 24, "from_step": 0, "pause": None, "max_tokens": 5_000, "shaping": {}}
    rest = JobSpec("segment", {"model": "base", "seal": "s", "paused": "where another model stood"}, params, 7)
    made: dict[str, JobSpec] = {"trained": rest}
    result = JobResult({"steps": 22}, {"model": "trained"}, Cost())
    works: Any = SimpleNamespace(jobbook=SimpleNamespace(maker=made.get, told=lambda digest: result))
    (again,) = training_of(works, "trained")
    assert again.inputs == {"model": "base", "seal": "s"}
    assert again.params == {"steps": 22, "from_step": 0, "pause": None, "shaping": {}}
