"""A job: one unit of heavy work, a pure function of its spec, and the seam behind which it runs.

Standard library only. The functions that do the work live in `loops.work` and `safety.yardstick`; the processes that
run them in `daemon`. Invariant: a spec's digest is its identity, so a finished job answers from its kept result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from state.records import Cost, JsonObject, Verdict, digest_of


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Kind, inputs (name -> artefact digest), parameters, seed and code version: all that a result depends on."""

    kind: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    code: str = ""

    @property
    def digest(self) -> str:
        return digest_of(self.to_json())

    def to_json(self) -> JsonObject:
        return {
            "kind": self.kind, "inputs": dict(self.inputs), "params": dict(self.params),
            "seed": self.seed, "code": self.code,
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> JobSpec:
        return cls(**body)


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job gave: small values as JSON, files as artefact digests by name."""

    values: JsonObject
    outputs: Mapping[str, str]
    cost: Cost

    def to_json(self) -> JsonObject:
        return {"values": self.values, "outputs": dict(self.outputs), "cost": self.cost.to_json()}

    @classmethod
    def from_json(cls, body: JsonObject) -> JobResult:
        return cls(body["values"], body["outputs"], Cost.from_json(body["cost"]))


class JobFailed(Exception):
    """A job ended without a result. `verdict` is CRASHED or TIMED_OUT; the text is the reason in words."""

    def __init__(self, reason: str, verdict: Verdict = Verdict.CRASHED) -> None:
        super().__init__(reason)
        self.verdict = verdict


class Parked(BaseException):
    """The service is stopping: the job in flight was put aside and its cycle stays open. Never a verdict."""


class Runner(Protocol):
    """Where jobs run. A finished job's result is returned at once; holds no durable state of its own."""

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        """Run one job to its end. Raises JobFailed, or Parked when the service is stopping."""
        ...

    def run_all(
        self, specs: Sequence[JobSpec], *, timeout_seconds: float | None = None
    ) -> list[JobResult | JobFailed]:
        """Run several jobs side by side, as many at once as there are workers; results in the order of `specs`. All of
        them together have `timeout_seconds`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Produced:
    """What a job function returns inside a worker: values, files or folders by name, items scored, tokens used."""

    values: JsonObject
    outputs: Mapping[str, Path] = field(default_factory=dict)
    items: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Desk:
    """What a job function may touch inside a worker.

    `folder` is its scratch folder, the same one when the job is run again after a crash; `inputs` maps the spec's
    input names to read-only paths; `cache` outlives the job in a warm worker and is keyed by digests, so it can only
    save time.
    """

    folder: Path
    inputs: Mapping[str, Path]
    device: str = "cpu"
    threads: int = 1
    cache: dict[str, Any] = field(default_factory=dict)
    progress: Callable[[float, str], None] = lambda done, note: None


JobFunction = Callable[[JobSpec, Desk], Produced]
